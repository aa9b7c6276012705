"""Objectives as a whole: gradients against float64 autodiff of their definitions, and one's own from outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.config import from_config_dict
from opd_jax.errors import InputError
from opd_jax.objectives import (
  SCORES,
  Call,
  Objective,
  PolicyGradient,
  Reading,
  Signals,
  TokenWeights,
  make_objective,
  register,
)

B, S, D, E, V, K = 4, 7, 8, 12, 30, 5
UNIFORM = TokenWeights()
POSITIONS = np.broadcast_to(np.arange(S), (B, S))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  mask = np.arange(S) < rng.integers(2, S + 1, B)[:, None]
  tokens = rng.integers(0, V, (B, S)).astype(np.int32)
  arrays = [rng.normal(size=shape) for shape in ((B, S, D), (V, D), (B, S, E), (V, E))]
  return arrays, tokens, mask, -rng.exponential(2.0, (B, S)), rng.exponential(1.0, (B, S))


def objective_of(**fields):
  return make_objective(from_config_dict({"objective": fields}, check=False).objective, V)


def run(objective, batch, weights=UNIFORM):
  """Loss, its gradient in the student's hidden states and head, and the rest."""
  (hidden, head, teacher_hidden, teacher_head), tokens, mask, behaviour, entropy = jax.tree.map(jnp.asarray, batch)
  weights_bs = weights(tokens, mask)
  signals = Signals(tokens, POSITIONS, mask, weights_bs, behaviour.astype(jnp.float32), entropy.astype(jnp.float32))

  def loss(hidden, head):
    answer = objective(Reading(hidden, head), Reading(teacher_hidden, teacher_head), signals)
    return answer.value, answer

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)


def define(batch, per_token):
  """The gradient of mean over valid tokens of `per_token(log_p, log_q, tokens, behaviour)`, float64, dense."""
  arrays, tokens, mask, behaviour, _ = batch
  with jax.enable_x64(True):
    hidden, head, teacher_hidden, teacher_head = map(jnp.asarray, arrays)

    def loss(hidden, head):
      log_p = jax.nn.log_softmax(hidden @ head.T)
      log_q = jax.nn.log_softmax(teacher_hidden @ teacher_head.T)
      return jnp.where(mask, per_token(log_p, log_q, tokens, jnp.asarray(behaviour)), 0).sum() / mask.sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(hidden, head)


def at(log, tokens):
  return jnp.take_along_axis(log, tokens[..., None], axis=-1)[..., 0]


def best(log, tokens=None):
  """bool [B, S, V]: the K entries that a model ranks highest, and the written token."""
  inside = jnp.argsort(jnp.argsort(-log, axis=-1), axis=-1) < K
  return inside if tokens is None else inside | (jnp.arange(V) == tokens[..., None])


def renormalised(log_p, log_q, inside):
  log_p, log_q = (jax.nn.log_softmax(jnp.where(inside, log, -1e30)) for log in (log_p, log_q))
  return jnp.where(inside, jnp.exp(log_p) * (log_p - log_q), 0).sum(-1)


def head_tail(log_p, log_q, tokens, inside):
  p, q = at(log_p, tokens), at(log_q, tokens)
  rho = jnp.exp(p - jax.lax.stop_gradient(p))
  missed = ~jnp.take_along_axis(inside, tokens[..., None], axis=-1)[..., 0]
  return jnp.where(inside, jnp.exp(log_p) * (log_p - log_q), 0).sum(-1) + missed * rho * jax.lax.stop_gradient(p - q)


def policy(advantage):
  return lambda log_p, log_q, tokens, behaviour: (
    -jax.lax.stop_gradient(advantage(log_p, log_q, tokens)) * at(log_p, tokens)
  )


def log_ratio(log_p, log_q, tokens):
  return at(log_q, tokens) - at(log_p, tokens)


def entropy_aware(log_p, log_q, tokens, behaviour):
  unsure = -(jnp.exp(log_q) * log_q).sum(-1) > 1.5
  cover = jnp.where(best(log_q), jnp.exp(log_q) * (log_q - log_p), 0).sum(-1)
  return policy(log_ratio)(log_p, log_q, tokens, behaviour) + unsure * cover


DEFINITIONS = {
  "reverse_kl": lambda p, q, t, b: (jnp.exp(p) * (p - q)).sum(-1),
  "forward_kl": lambda p, q, t, b: (jnp.exp(q) * (q - p)).sum(-1),
  "jsd": lambda p, q, t, b: (
    0.3 * (jnp.exp(q) * (q - jnp.log(0.3 * jnp.exp(q) + 0.7 * jnp.exp(p)))).sum(-1)
    + 0.7 * (jnp.exp(p) * (p - jnp.log(0.3 * jnp.exp(q) + 0.7 * jnp.exp(p)))).sum(-1)
  ),
  "sampled": policy(log_ratio),
  "lsm": lambda p, q, t, b: renormalised(p, q, best(q)),
  "lsm_student": lambda p, q, t, b: renormalised(p, q, best(p, t)),
  "lsm_teacher": lambda p, q, t, b: renormalised(p, q, best(q, t)),
  "head_tail_student": lambda p, q, t, b: head_tail(p, q, t, best(p)),
  "head_tail_teacher": lambda p, q, t, b: head_tail(p, q, t, best(q)),
  "entropy_aware": entropy_aware,
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_gradient_is_that_of_the_definition(batch, kind):
  _, gradient = run(objective_of(kind=kind, beta=0.3, top_k=K, entropy_above=1.5), batch)
  _, wanted = define(batch, DEFINITIONS[kind])
  for got, exact in zip(gradient, wanted):
    np.testing.assert_allclose(got, exact, atol=3e-6 * np.abs(exact).max() + 1e-7)


def test_a_sum_of_terms_is_their_sum(batch):
  (_, together), gradient = run(objective_of(kind="sampled + 0.25*forward_kl", beta=0.3), batch)
  parts = [run(objective_of(kind=kind), batch) for kind in ("sampled", "forward_kl")]
  np.testing.assert_allclose(together.value, parts[0][0][0] + 0.25 * parts[1][0][0], rtol=1e-5)
  for whole, first, second in zip(gradient, *(part[1] for part in parts)):
    np.testing.assert_allclose(whole, first + 0.25 * second, atol=1e-6)


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_teacher_equal_to_student_gives_zero(batch, kind):
  """But for head and tail as published, whose gradient moves mass out of the support even then, and for the forward KL
  that entropy-aware OPD truncates, which gathers mass on its support."""
  (hidden, head, *_), *rest = batch
  (value, _), gradient = run(objective_of(kind=kind, beta=0.3, top_k=K), ((hidden, head, hidden, head), *rest))
  assert abs(float(value)) < 1e-5 or kind == "entropy_aware"
  largest = max(float(jnp.abs(g).max()) for g in gradient)
  assert (largest > 1e-3) == kind.startswith(("head_tail", "entropy_aware"))
  assert largest < 1e-6 or kind.startswith(("head_tail", "entropy_aware"))


def test_three_temperatures_have_three_names(batch):
  """The student's and the teacher's logits are divided each by its own; 0 means the student's."""
  (hidden, head, teacher_hidden, teacher_head), *rest = batch
  cooled = ((hidden / 0.7, head, teacher_hidden / 1.3, teacher_head), *rest)
  (wanted, _), _ = run(objective_of(kind="reverse_kl"), cooled)
  (got, _), _ = run(objective_of(kind="reverse_kl", temperature=0.7, teacher_temperature=1.3), batch)
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  assert objective_of(kind="reverse_kl", temperature=0.7).teacher_temperature == 0.7


@pytest.mark.parametrize("by", ["entropy", "divergence"])
def test_selected_tokens_alone_give_the_gradient_and_are_all_that_is_multiplied(batch, by):
  arrays, tokens, mask, behaviour, entropy = batch
  log_p, log_q = (jax.nn.log_softmax(hidden @ head.T) for hidden, head in (arrays[:2], arrays[2:]))
  kl = np.asarray((jnp.exp(log_p) * (log_p - log_q)).sum(-1))
  score = np.where(mask, entropy if by == "entropy" else kl, -np.inf)
  chosen = np.zeros((B, S), bool)
  for row in range(B):
    count = int(np.ceil(mask[row].sum() * 0.3 - 1e-9))
    chosen[row, np.argsort(-score[row])[:count]] = True
  objective = objective_of(kind="forward_kl", select_by=by, select_share=0.3)
  (value, answer), gradient = run(objective, batch, TokenWeights(share=0.3))
  wanted, exact = define((arrays, tokens, chosen, behaviour, entropy), DEFINITIONS["forward_kl"])
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  for got, one in zip(gradient, exact):
    np.testing.assert_allclose(got, one, atol=3e-6 * np.abs(one).max())
  assert answer.result.per_token.shape == (B, 3)  # ceil(0.3 * 7) columns went through the heads


def test_an_objective_from_outside_the_package(batch):
  """By its public interface alone: a class, one line to register it, and a config can name it."""

  @dataclasses.dataclass(frozen=True)
  class FarTokens:
    margin: float
    needs = frozenset({SCORES})

    def calls(self, signals):
      far_bs = signals.student_logprob_bs - signals.teacher_logprob_bs > self.margin
      return (Call(signals.weights_bs * far_bs, "reverse_kl", shown={"far": far_bs}),)

  register("far_tokens", lambda config: FarTokens(margin=1.0))

  def definition(log_p, log_q, tokens, behaviour):
    far = jax.lax.stop_gradient(at(log_p, tokens) - at(log_q, tokens) > 1.0)
    return far * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)

  (_, answer), gradient = run(objective_of(kind="far_tokens"), batch)
  for got, exact in zip(gradient, define(batch, definition)[1]):
    np.testing.assert_allclose(got, exact, atol=3e-6 * np.abs(exact).max())
  assert 0 < answer.metrics["far"].to_float() < 1
  with pytest.raises(ValueError, match="registered already"):
    register("far_tokens", lambda config: FarTokens(2.0))
  with pytest.raises(ValueError, match="cannot name"):
    register("far + near", lambda config: FarTokens(2.0))


@pytest.mark.parametrize(
  "kind, words", [("lsn", "`lsm`"), ("sampled + ", "no term ''"), ("0.5 sampled", "no term"), ("a * b * lsm", "a sum")]
)
def test_a_kind_that_is_no_sum_of_terms_is_named(kind, words):
  with pytest.raises(InputError, match=words):
    objective_of(kind=kind)


def test_scores_are_read_only_where_a_term_needs_them(batch):
  def products(objective):
    (hidden, head, teacher_hidden, teacher_head), tokens, mask, behaviour, entropy = jax.tree.map(jnp.asarray, batch)
    signals = Signals(tokens, POSITIONS, mask, UNIFORM(tokens, mask), behaviour, entropy)

    def loss(hidden, head):
      return objective(Reading(hidden, head), Reading(teacher_hidden, teacher_head), signals).value

    return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, head)).count("dot_general")

  bare, looking = (products(Objective(((1.0, PolicyGradient(gamma)),), V)) for gamma in (0.0, 0.5))
  assert looking == bare + bare // 2  # two products of the four that the gradient takes, on every platform
