"""What an objective is made of: terms, each of which looks at a few numbers a token and asks for gradient calls.

    Signals ([B, S] each, no gradient)  ─►  term.calls  ─►  Call, Call, ...  ─►  one pass over both heads each

A term is frozen and pure. It says which signals it needs; those that no term of an objective needs are not computed.
One's own is such a class and one line, from anywhere (`register`):

    @dataclasses.dataclass(frozen=True)
    class Hinge:
      margin: float
      needs = frozenset({SCORES})

      def calls(self, signals):
        far_bs = signals.student_logprob_bs - signals.teacher_logprob_bs > self.margin
        return (Call(signals.weights_bs * far_bs, "reverse_kl"),)

    register("hinge", lambda config: Hinge(margin=1.0))
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax.errors import InputError, nearest

SCORES = "scores"  # log-probs of the written tokens, entropies and the divergence, of both models: one forward pass
REFERENCE = "reference"  # log-probs of the written tokens by a third model, the reference
OWN_TOKENS = "own_tokens"  # every token was drawn by the student: no row is the data set's answer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signals:
  """What a term may look at: [B, S] each, one value a generated token, float32 where not said otherwise, no gradient.

  Attributes:
    tokens_bs: int32, the completions.
    positions_bs: int32, columns of the completion, from 0.
    mask_bs: bool, true on a completion's tokens.
    weights_bs: of each token in the loss; 0 off the mask. Over the global batch they sum to 1, unless positions are
      weighted.
    behaviour_logprob_bs: of each token when it was written (`rollout.Rollout`); 0 in a row from the data set.
    behaviour_entropy_bs: of the student when it wrote the token, nats; None unless the rollout has it.
    student_logprob_bs, teacher_logprob_bs: SCORES; of each token at the temperatures of the loss, in nats.
    student_entropy_bs, teacher_entropy_bs: SCORES; nats.
    reverse_kl_bs: SCORES; KL(student || teacher), nats.
    reference_logprob_bs: REFERENCE; nats, at the student's temperature.
  """

  tokens_bs: jax.Array
  positions_bs: jax.Array
  mask_bs: jax.Array
  weights_bs: jax.Array
  behaviour_logprob_bs: jax.Array
  behaviour_entropy_bs: jax.Array | None = None
  student_logprob_bs: jax.Array | None = None
  teacher_logprob_bs: jax.Array | None = None
  student_entropy_bs: jax.Array | None = None
  teacher_entropy_bs: jax.Array | None = None
  reverse_kl_bs: jax.Array | None = None
  reference_logprob_bs: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of the divergence op; the names are those of its arguments.

  Attributes:
    weights_bs: float32 [B, S]; may be negative.
    kind: reverse_kl, forward_kl, jsd or sampled.
    beta: of jsd.
    support, top_k, repair: a local support, or None, None, None for the whole vocabulary.
    with_sampled: the written token joins the support.
    advantages_bs: of sampled; None is log q - log p, the reverse KL's own.
    shown: name -> [B, S], logged as means over the valid tokens.
  """

  weights_bs: jax.Array
  kind: str
  beta: float = 0.5
  support: str | None = None
  top_k: int | None = None
  repair: str | None = None
  with_sampled: bool = False
  advantages_bs: jax.Array | None = None
  shown: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

  def where(self, here_bs: jax.Array) -> "Call":
    """The same call with weight on some tokens alone: those that bool [B, S] marks."""
    return dataclasses.replace(self, weights_bs=jnp.where(here_bs, self.weights_bs, 0.0))


class Term(Protocol):
  """Part of an objective.

  Attributes:
    needs: any of SCORES, REFERENCE and OWN_TOKENS.
  """

  needs: frozenset[str]

  def calls(self, signals: Signals) -> tuple[Call, ...]:
    """The gradient calls whose losses this term adds up. No gradient flows through what it computes."""
    ...


_LARGEST_FACTOR = 1e9
_KNOWN: dict[str, Callable[[configs.Objective], Term]] = {}


def register(name: str, make: Callable[[configs.Objective], Term]) -> None:
  """Lets `objective.kind` say `name`. Raises ValueError for a name that is taken or that has a sign in it."""
  if not name.isidentifier():
    raise ValueError(f"{name!r} cannot name a term: letters, digits and underscores")
  if name in _KNOWN:
    raise ValueError(f"a term {name!r} is registered already")
  _KNOWN[name] = make


def make_terms(config: configs.Objective) -> tuple[tuple[float, Term], ...]:
  """The terms of `objective.kind` with their factors: `lsm`, or a sum such as `sampled + 0.1 * forward_kl`.

  Raises InputError for a name that is not registered (nearest named) and for what is no such sum.
  """
  terms = []
  for part in config.kind.split("+"):
    *factor, name = (word.strip() for word in part.split("*"))
    try:
      (scale,) = map(float, factor or ["1"])
    except ValueError:
      raise InputError(
        f"config.objective.kind is {config.kind!r}: it must be a term or a sum such as sampled + 0.1 * forward_kl"
      ) from None
    if not 0 < scale <= _LARGEST_FACTOR:
      raise InputError(
        f"config.objective.kind is {config.kind!r}: a factor must be above 0 and at most {_LARGEST_FACTOR:g}"
      )
    if name not in _KNOWN:
      raise InputError(f"config.objective.kind: no term {name!r}{nearest(name, _KNOWN)}; known: {', '.join(_KNOWN)}")
    terms.append((scale, _KNOWN[name](config)))
  return tuple(terms)
