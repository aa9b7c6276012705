"""One step, as a reader follows it: the student writes, both read, the student moves.

    state ─► decode layout ─┐
    prompts ────────────────┴► Rollout ─► score(student), score(teacher) ─► objective ─► gradient ─► optax ─► state
             "decode_layout", "rollout" └───────────────────────── "update" ────────────────────────────────┘

The programs hand arrays to each other on the devices; nothing of size comes to the host.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from opd_jax.config import Config
from opd_jax.distributed import constrain
from opd_jax.models import Model
from opd_jax.objectives import (
  ENTROPY,
  Objective,
  Reading,
  Signals,
  TokenWeights,
  make_objective,
  make_token_weights,
)
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Rollout, Sampling, decode_layout, sample_completions
from opd_jax.scoring import score
from opd_jax.telemetry.metrics import Metrics, Ratio, Total, merge
from opd_jax.training.state import TrainState, make_optimizer, state_specs


def define_programs(
  table: ProgramTable,
  config: Config,
  eos_ids: tuple[int, ...],
  vocab_size: int,
  token_weights: TokenWeights | None = None,
) -> None:
  """Enters "decode_layout", "rollout" and "update" into the table. `token_weights`: None is the config's, without the
  ids of its masks, for which a tokenizer is needed.

  decode_layout(model) -> model; its bucket is 0; in int8 under `rollout.int8`
  rollout(student, prompts_bp, prompt_mask_bp, horizon, seed, step, rows_r) -> Rollout
  update(state, teacher, rollout) -> (state, metrics); the old state is used up.
  """
  c, dtype = config.rollout, jnp.dtype(config.student.dtype)
  table.define("decode_layout", functools.partial(decode_layout, dtype=dtype, int8=c.int8))
  table.define(
    "rollout",
    functools.partial(
      sample_completions,
      sampling=Sampling(c.temperature, c.top_k, c.top_p),
      eos_ids=eos_ids,
      vocab_size=vocab_size,
      compactions=c.compactions,
      entropy=config.objective.select_by == ENTROPY,
    ),
  )
  table.define(
    "update",
    functools.partial(
      update,
      objective=make_objective(config.objective, vocab_size),
      token_weights=token_weights or make_token_weights(config.objective),
      optimizer=make_optimizer(config),
      dtype=dtype,
      micro_batches=config.optimizer.micro_batches,
      remat=config.student.remat,
      compare_decoding=(c.temperature or 1.0) == config.objective.temperature,  # greedy: log-probs at temperature 1
    ),
    donate=(0,),
  )


def update(
  state: TrainState,
  teacher: Model,
  rollout: Rollout,
  *,
  bucket: int,
  objective: Objective,
  token_weights: TokenWeights,
  optimizer: optax.GradientTransformation,
  dtype,
  micro_batches: int,
  remat: bool,
  compare_decoding: bool,
) -> tuple[TrainState, Metrics]:
  """One optimizer step on a rollout batch.

  Args:
    state: float32 master weights and optimizer state.
    teacher: frozen; it is scored, never differentiated.
    rollout: [B, P + S] with S = `bucket`.
    objective, token_weights: what is minimised, and how much each token counts in it.
    dtype: of the student's computation.
    micro_batches: the rows are scored in this many parts (a divisor of B); the gradient is that of the whole.
    remat: recompute the student's layers in the backward pass.
    compare_decoding: adds `decode_gap` and `decode_kl`; only where the rollout's log-probs and the objective's are of
      one temperature.

  Returns:
    The next state, and metrics over the valid tokens of the global batch: loss in nats a token, entropies of both
    models in nats, gradient norm (before clipping), tokens, completion length, share of rows that were cut; and how far
    the student that wrote is from the same student as it is scored here (d = log p scored - log p when written):
    `decode_gap`, the mean of |d| in nats, and `decode_kl`, the mean of exp(d) - 1 - d, which estimates KL(writer ||
    scored) in nats a token where tokens are drawn from the whole softmax (no top-k, no top-p, not greedy).
  """
  if rollout.completion_mask_bs.shape[1] != bucket:
    raise ValueError(f"a rollout of {rollout.completion_mask_bs.shape[1]} columns cannot train at bucket {bucket}")
  student = state.student.astype(dtype)
  weights_bs = token_weights(rollout.completions_bs, rollout.completion_mask_bs)

  def gradient_of(part: Rollout, weights_bs: jax.Array):
    """Gradient and metrics of some of the rows; their weights are shares of the whole batch."""
    context = (part.prompts_bp, part.prompt_mask_bp, part.completions_bs, part.completion_mask_bs)
    signals = Signals(
      part.completions_bs, part.completion_mask_bs, weights_bs, part.behaviour_logprob_bs, part.behaviour_entropy_bs
    )
    of_teacher = Reading(score(teacher, *context), teacher.split_head())

    def loss_of(params):
      model = dataclasses.replace(student, params=params)
      of_student = Reading(score(model, *context, remat=remat), model.split_head())
      loss = objective(of_student, of_teacher, signals)
      return loss.value, loss

    gradient, loss = jax.grad(loss_of, has_aux=True)(student.params)
    result, mask_bs = loss.result, loss.signals.mask_bs
    metrics = loss.metrics | {
      "loss": Total(loss.value),
      "student_entropy": Ratio.of(result.student_entropy, mask_bs),
      "teacher_entropy": Ratio.of(result.teacher_entropy, mask_bs),
      "tokens": Total(part.completion_mask_bs.sum(dtype=jnp.float32)),
      "completion_length": Ratio.of(part.completion_mask_bs.sum(1)),
      "truncated": Ratio.of(part.truncated_b),
    }
    if compare_decoding:
      d_bs = result.student_logprob - loss.signals.behaviour_logprob_bs
      metrics["decode_gap"] = Ratio.of(jnp.abs(d_bs), mask_bs)
      metrics["decode_kl"] = Ratio.of(jnp.expm1(d_bs) - d_bs, mask_bs)
    return jax.tree.map(lambda g: g.astype(jnp.float32), gradient), metrics

  if micro_batches == 1:
    gradient, metrics = gradient_of(rollout, weights_bs)
  else:
    gradient, metrics = _accumulate(gradient_of, (rollout, weights_bs), micro_batches)

  updates, opt_state = optimizer.update(gradient, state.opt_state, state.student.params)
  params = optax.apply_updates(state.student.params, updates)
  metrics["grad_norm"] = Total(optax.tree.norm(gradient))
  state = TrainState(dataclasses.replace(state.student, params=params), opt_state, state.step + 1)
  return _pinned(state, optimizer), metrics


def _pinned(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
  """The new state with the shardings of the old one, so that the next step is the same program."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return state
  return jax.lax.with_sharding_constraint(state, state_specs(state.student.config, optimizer, mesh))


def _accumulate(gradient_of, batch, parts: int):
  """The sum of gradients and metrics over `parts` micro-batches, one after the other.

  Rows are dealt like cards (row r goes to part r % parts), so each part holds rows of every device:

      device 0: rows 0 1 2 3     parts = 2     part 0: 0 2 | 4 6
      device 1: rows 4 5 6 7                   part 1: 1 3 | 5 7
  """

  def deal(x: jax.Array) -> jax.Array:
    dealt = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return constrain(dealt, None, "batch", *(None,) * (x.ndim - 1))

  def add(total, part):
    gradient, metrics = gradient_of(*part)
    return (jax.tree.map(jnp.add, total[0], gradient), merge(total[1], metrics)), None

  dealt = jax.tree.map(deal, batch)
  shapes = jax.eval_shape(gradient_of, *jax.tree.map(lambda x: x[0], dealt))
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(add, zero, dealt)[0]
