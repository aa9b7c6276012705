"""What to look at while a run trains: how sound the signal is, and where in a response.

All of it comes from what the step has at hand: no forward pass, no product with a head (but for the rows of the
end-of-sequence ids), and sums with counts, so that micro-batches and devices add up.

    by position     first eighth of the reach | second | ... | last          reach: the batch's longest completion
"""

import jax
import jax.numpy as jnp

from opd_jax.objectives.objective import Loss, Objective
from opd_jax.objectives.reading import Reading
from opd_jax.telemetry.metrics import Metrics, Ratio

POSITIONS = 8  # equal parts of the reach
TAILS = (2.0, 5.0, 10.0)  # nats by which the teacher's log-prob of a written token is below the student's
_GRAM = 4  # tokens in a row that count as a repetition when they come again


def diagnose(objective: Objective, loss: Loss, reach: jax.Array, eos_ids: tuple[int, ...]) -> Metrics:
  """Metrics of the tokens that the loss looked at.

  Args:
    objective, loss: who answered, and what.
    reach: int32 scalar, tokens of the longest completion of the global batch.
    eos_ids: ids that end a row.

  Returns:
    `*_by_position`: [8] means over eighths of the reach: of the loss a token (`loss_by_position`: the divergence, or
    the log-ratio where it is sampled) and of both models' entropies.
    `log_ratio`: mean of log p - log q of the written tokens; `log_ratio_tails`: shares above 2, 5 and 10 nats.
    `student_mass`, `teacher_mass`, `overlap`: on the support, where there is one.
    `student_eos`, `teacher_eos`: mean probability of ending the row.
  """
  result, mask_bs = loss.result, loss.signals.mask_bs
  part_bs = loss.signals.positions_bs * POSITIONS // jnp.maximum(reach, 1)

  def by_position(values_bs: jax.Array) -> Ratio:
    return Ratio.stack([Ratio.of(values_bs, mask_bs & (part_bs == part)) for part in range(POSITIONS)])

  ratio_bs = result.student_logprob - result.teacher_logprob
  metrics = {
    "loss_by_position": by_position(result.per_token),
    "student_entropy_by_position": by_position(result.student_entropy),
    "teacher_entropy_by_position": by_position(result.teacher_entropy),
    "log_ratio": Ratio.of(ratio_bs, mask_bs),
    "log_ratio_tails": Ratio.stack([Ratio.of(ratio_bs > tail, mask_bs) for tail in TAILS]),
  }
  for name in ("student_mass", "teacher_mass", "overlap"):
    if getattr(result, name) is not None:
      metrics[name] = Ratio.of(getattr(result, name), mask_bs)
  if eos_ids:
    sums = result.student_logsumexp, result.teacher_logsumexp
    temperatures = objective.temperature, objective.teacher_temperature
    for role, sum_bs, temperature in zip(("student", "teacher"), sums, temperatures, strict=True):
      mass_bs = _mass(getattr(loss, role), eos_ids, temperature, sum_bs)
      metrics[f"{role}_eos"] = Ratio.of(mass_bs, mask_bs)
  return metrics


def _mass(reading: Reading, ids: tuple[int, ...], temperature: float, logsumexp_bs: jax.Array) -> jax.Array:
  """[B, S] probability that a model gives to some ids together."""
  hidden_bsd, head_ed = jax.lax.stop_gradient((reading.hidden_bsd, reading.head_vd[jnp.asarray(ids)]))
  logits_bse = jnp.einsum("bsd,ed->bse", hidden_bsd, head_ed, preferred_element_type=jnp.float32)
  return jnp.exp(logits_bse / temperature - logsumexp_bs[..., None]).sum(-1)


def repetition(tokens_bs: jax.Array, mask_bs: jax.Array) -> Ratio:
  """The share of runs of four tokens that their own response has written before; a loop drives it towards 1.

  Args:
    tokens_bs: int32 [B, S], completions; mask_bs: bool [B, S], true on a prefix of each row.
  """
  if tokens_bs.shape[1] < _GRAM:
    return Ratio.zero()
  width = tokens_bs.shape[1] - _GRAM + 1
  gram_bs = jnp.zeros((tokens_bs.shape[0], width), jnp.uint32)
  for i in range(_GRAM):  # a hash of four ids: two different runs meet in one of four billion cases
    gram_bs = (gram_bs ^ tokens_bs[:, i : i + width].astype(jnp.uint32)) * jnp.uint32(0x9E3779B1)
    gram_bs ^= gram_bs >> 15
  valid_bs = mask_bs[:, _GRAM - 1 :]
  # Runs off the mask sort behind all others, whatever their hash.
  valid_bs, gram_bs = jax.lax.sort((~valid_bs, gram_bs), dimension=1, num_keys=2)
  again_bs = (gram_bs[:, 1:] == gram_bs[:, :-1]) & ~valid_bs[:, 1:]
  return Ratio(again_bs.sum(dtype=jnp.float32), (~valid_bs).sum(dtype=jnp.float32))
