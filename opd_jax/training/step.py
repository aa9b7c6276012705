"""One step, as a reader follows it: the student writes, both read, the student moves.

    state ─► decode layout ─┐
    prompts ────────────────┴► Rollout ─► score(student), score(teacher) ─► objective ─► gradient ─► optax ─► state
             "decode_layout", "rollout" └────────────── "update", or "probe" with two gradients ─────────────┘
    where asked for:              data set's answers ─┘ └─ the teacher's own prompts; score(reference)

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
  Loss,
  Objective,
  Reading,
  Signals,
  TokenWeights,
  diagnose,
  make_margin_drop,
  make_objective,
  make_token_weights,
  repetition,
)
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Sampling, decode_layout, sample_completions
from opd_jax.scoring import score
from opd_jax.telemetry.metrics import Metrics, Ratio, Total, merge
from opd_jax.training import skips
from opd_jax.training.batch import Batch
from opd_jax.training.state import Frozen, TrainState, make_optimizer, state_specs

# XLA for CPU hands products and sums to YNNPACK, whose graphs are built at a program's first call, by each simulated
# device for itself: half a step's time, in the step after the horizon has grown. The sums are half of them, and are as
# fast without; the products stay, for in XLA's own form they can leave the devices' threads waiting for one another.
_SIMULATED = {"xla_cpu_experimental_ynn_fusion_type": "-LIBRARY_FUSION_TYPE_REDUCE"}


def define_programs(
  table: ProgramTable,
  config: Config,
  eos_ids: tuple[int, ...],
  vocab_size: int,
  token_weights: TokenWeights | None = None,
) -> None:
  """Enters "decode_layout", "rollout", "update" and "probe" into the table. `token_weights`: None is the config's,
  without the ids of its masks, for which a tokenizer is needed.

  decode_layout(model) -> model; its bucket is 0; in int8 under `rollout.int8`
  rollout(student, prompts_bp, prompt_mask_bp, horizon, seed, step, rows_r) -> Rollout
  update(state, frozen, batch) -> (state, metrics); the old state is used up
  probe(state, frozen, batch, prefix) -> (state, metrics); the same, and what the first tokens alone would have done
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
  training = functools.partial(
    update,
    objective=make_objective(config.objective, vocab_size, make_margin_drop(config)),
    token_weights=token_weights or make_token_weights(config),
    eos_ids=eos_ids,
    optimizer=make_optimizer(config),
    dtype=dtype,
    micro_batches=config.optimizer.micro_batches,
    remat=config.student.remat,
    teacher_dtype=jnp.dtype(config.teacher.dtype),
    ema=config.teacher.ema,
    skip_above=config.optimizer.skip_above,
    compare_decoding=(c.temperature or 1.0) == config.objective.temperature,  # greedy: log-probs at temperature 1
  )
  for name in ("update", "probe"):
    table.define(name, training, donate=(0,), simulated=_SIMULATED)


def update(
  state: TrainState,
  frozen: Frozen,
  batch: Batch,
  prefix: jax.Array | None = None,
  *,
  bucket: int,
  objective: Objective,
  token_weights: TokenWeights,
  eos_ids: tuple[int, ...],
  optimizer: optax.GradientTransformation,
  dtype,
  micro_batches: int,
  remat: bool,
  teacher_dtype,
  ema: float,
  skip_above: float,
  compare_decoding: bool,
) -> tuple[TrainState, Metrics]:
  """One optimizer step on a batch.

  Args:
    state: float32 master weights (or factors) and optimizer state; and the teacher, where it follows the student.
    frozen: the other models that are scored. None of them is differentiated.
    batch: the rollout [B, P + S] with S = `bucket`, and what goes with it.
    prefix: int32 scalar, tokens of a response; asks what the gradient of these alone has to do with the whole one.
    objective, token_weights: what is minimised, and how much each token counts in it.
    eos_ids: ids that end a row.
    dtype: of the student's computation.
    micro_batches: the rows are scored in this many parts (a divisor of B); the gradient is that of the whole.
    remat: recompute the student's layers in the backward pass.
    teacher_dtype: of the computation of a teacher that is part of the state.
    ema: the share of the way to the new student that it moves then.
    skip_above: the gradient's norm above which the update is skipped; 0: whatever is finite is made.
    compare_decoding: adds `decode_gap` and `decode_kl`; only where the rollout's log-probs and the objective's are of
      one temperature.

  Returns:
    The next state, where the update was skipped (`skips.is_sound`) the old one with its step counted; and metrics over
    the valid tokens of the global batch: loss in nats a token, entropies of both models in nats, tokens, completion
    length, share of rows that were cut, those of `objectives.diagnose` and `repetition`; of the update: `skipped`, 0 or
    1, `grad_norm` before clipping, `largest_gradient`, the parameter that has most of it (`skips.measure`),
    `update_ratio`, its norm over that of the weights (or factors) that are trained, and `moved`, the share of them that
    it changes as bfloat16 would hold them (arXiv 2606.13657: few move far).

    And how far the student that wrote is from the same student as it is scored here (d = log p scored - log p when
    written): `decode_gap`, the mean of |d| in nats, and `decode_kl`, the mean of exp(d) - 1 - d, which estimates
    KL(writer || scored) in nats a token where tokens are drawn from the whole softmax (no top-k, no top-p, not greedy).
    Rows from the data set count in all but these two; `dataset_rows` is their number, where there may be any.

    Under `prefix`: `probe_cosine` of its gradient with the whole one (NaN where that is 0), and `probe_norm_ratio`, its
    norm over that of the whole. Where responses are cut: those of `MarginDrop.metrics`.
  """
  if batch.rollout.completion_mask_bs.shape[1] != bucket:
    columns = batch.rollout.completion_mask_bs.shape[1]
    raise ValueError(f"a rollout of {columns} columns cannot train at bucket {bucket}")
  student = state.student.astype(dtype)
  teacher = state.teacher.astype(teacher_dtype) if state.teacher else frozen.teacher
  rollout = batch.mixed()
  batch = batch._replace(rollout=rollout)
  weights_bs = token_weights(rollout.completions_bs, rollout.completion_mask_bs)
  reach = rollout.completion_mask_bs.sum(axis=1, dtype=jnp.int32).max()

  def metrics_of(loss: Loss, part: Batch) -> Metrics:
    result, mask_bs = loss.result, loss.signals.mask_bs
    metrics = loss.metrics | {
      "loss": Total(jnp.sum(loss.value)),
      "student_entropy": Ratio.of(result.student_entropy, mask_bs),
      "teacher_entropy": Ratio.of(result.teacher_entropy, mask_bs),
    }
    if compare_decoding:
      d_bs = result.student_logprob - loss.signals.behaviour_logprob_bs
      own_bs = mask_bs if part.answers is None else mask_bs & ~part.answers.from_data_b[:, None]
      metrics["decode_gap"] = Ratio.of(jnp.abs(d_bs), own_bs)
      metrics["decode_kl"] = Ratio.of(jnp.expm1(d_bs) - d_bs, own_bs)
    if loss.cut:
      metrics |= objective.margin_drop.metrics(loss.cut, mask_bs, part.rollout.truncated_b)
    return metrics | diagnose(objective, loss, reach, eos_ids)

  def gradient_of(part: Batch, weights_bs: jax.Array):
    """Gradients and metrics of some of the rows, whose weights are shares of the whole batch: one gradient, or under
    `prefix` two, of the tokens before it and of the others."""
    rows = part.rollout
    prompts, completions = (rows.prompts_bp, rows.prompt_mask_bp), (rows.completions_bs, rows.completion_mask_bs)
    signals = Signals(
      tokens_bs=rows.completions_bs,
      positions_bs=jnp.broadcast_to(jnp.arange(bucket), rows.completions_bs.shape),
      mask_bs=rows.completion_mask_bs,
      weights_bs=weights_bs,
      behaviour_logprob_bs=rows.behaviour_logprob_bs,
      behaviour_entropy_bs=rows.behaviour_entropy_bs,
    )
    of_teacher = Reading(score(teacher, *(part.teacher_prompts or prompts), *completions), teacher.split_head())
    of_reference = None
    if frozen.reference:
      of_reference = Reading(score(frozen.reference, *prompts, *completions), frozen.reference.split_head())

    def loss_of(params):
      model = student.with_trained(params)
      of_student = Reading(score(model, *prompts, *completions, remat=remat), model.split_head())
      loss = objective(of_student, of_teacher, signals, of_reference, prefix)
      return loss.value, metrics_of(loss, part)

    if prefix is None:
      gradient, metrics = jax.grad(loss_of, has_aux=True)(student.trained)
      gradients = (gradient,)
    else:
      _, pull, metrics = jax.vjp(loss_of, student.trained, has_aux=True)
      gradients = tuple(pull(one)[0] for one in jnp.eye(2))
    metrics |= {
      "tokens": Total(rows.completion_mask_bs.sum(dtype=jnp.float32)),
      "completion_length": Ratio.of(rows.completion_mask_bs.sum(1)),
      "truncated": Ratio.of(rows.truncated_b),
      "repetition": repetition(rows.completions_bs, rows.completion_mask_bs),
    }
    return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), metrics

  if micro_batches == 1:
    gradients, metrics = gradient_of(batch, weights_bs)
  else:
    gradients, metrics = _accumulate(gradient_of, (batch, weights_bs), micro_batches)
  gradient = gradients[0]
  if prefix is not None:
    gradient = jax.tree.map(jnp.add, *gradients)
    metrics |= _compare(gradients[0], gradient)

  trained = state.student.trained
  updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
  learned = state.student.with_trained(optax.apply_updates(trained, updates))
  new = TrainState(learned, opt_state, state.step, _follow(state.teacher, learned, ema))
  gradient_norm, largest = skips.measure(gradient)
  update_norm = optax.tree.norm(updates)
  sound = skips.is_sound(metrics["loss"].total, gradient_norm, update_norm, weights_bs, skip_above)
  new = skips.take(sound, new, state)
  metrics["grad_norm"] = Total(gradient_norm)
  metrics["largest_gradient"] = Total(largest)
  metrics["skipped"] = Total(~sound)
  ratio = update_norm / optax.tree.norm(trained)
  metrics["update_ratio"] = Total(jnp.where(sound, ratio, 0.0))
  metrics["moved"] = _moved(trained, new.student.trained)
  if batch.answers:
    metrics["dataset_rows"] = Total(batch.answers.from_data_b.sum(dtype=jnp.float32))
  return _pinned(new, optimizer), metrics


def _compare(part, whole) -> Metrics:
  """How far a part of a gradient points where the whole of it does, and how long it is."""
  products = jax.tree.map(lambda a, b: jnp.sum(a * b), part, whole)
  part_norm, whole_norm = optax.tree.norm(part), optax.tree.norm(whole)
  return {
    "probe_cosine": Total(sum(jax.tree.leaves(products)) / (part_norm * whole_norm)),
    "probe_norm_ratio": Total(part_norm / whole_norm),
  }


def _moved(old, new) -> Ratio:
  """The share of parameters that differ in bfloat16."""
  pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
  counts = [Ratio.of(a.astype(jnp.bfloat16) != b.astype(jnp.bfloat16)) for a, b in pairs]
  return functools.reduce(Ratio.merge, counts)


def _follow(teacher: Model | None, student: Model, ema: float) -> Model | None:
  """The teacher, a share `ema` of the way nearer to the student; None where it is frozen."""
  if teacher is None:
    return None
  return dataclasses.replace(teacher, params=optax.incremental_update(student.params, teacher.params, ema))


def _pinned(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
  """The new state with the shardings of the old one, so that the next step is the same program."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return state
  specs = state_specs(state.student, optimizer, mesh, follows=state.teacher is not None)
  return jax.lax.with_sharding_constraint(state, specs)


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
