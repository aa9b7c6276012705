"""The calls of an objective, one segment of columns after the other, where what one shows decides what the next trains.

    columns     0 ..... w ..... 2w .... 3w
    row 0       trains  trains  trains  trains
    row 1       trains  trains  |                   its margin had dropped by 2w
    head        dW0  +  dW1  +  dW2  +  dW3         summed as they come

The op makes its gradient along with its values, and the head's is a sum over tokens that no weight can be taken out of
afterwards. In segments the weights are known in time, and everything is multiplied once, as ever: no pass is added. On
a mesh each segment adds up the head's gradient over the devices, which one call does once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from opd_jax.distributed import constrain
from opd_jax.divergence import Divergence
from opd_jax.objectives.margin_drop import Cut, MarginDrop
from opd_jax.objectives.reading import Reading
from opd_jax.objectives.term import Call

Calls = Sequence[tuple[float, Call]]


def add_up_in_segments(
  drop: MarginDrop,
  add_up: Callable[[Calls, Reading, Reading, jax.Array], tuple[jax.Array, Divergence]],
  calls: Calls,
  student: Reading,
  teacher: Reading,
  tokens_bs: jax.Array,
  mask_bs: jax.Array,
) -> tuple[jax.Array, Divergence, Cut]:
  """The loss with each response's tokens after its cut left out; what is left weighs as much as it did.

  Args:
    drop: where to cut.
    add_up: (calls, student, teacher, tokens) of some columns -> (their loss, the first call's result).
    calls: with their factors, for all columns.
    student, teacher: readings [B, S, D]. Only the student's has a gradient.
    tokens_bs: int32 [B, S]; mask_bs: bool [B, S], true on a completion's tokens.

  Returns:
    The loss, float32 []; the first call's result, [B, S] a field; the cut.
  """
  B, S = tokens_bs.shape
  N = -(-S // drop.window)

  def split(array_bs: jax.Array) -> jax.Array:
    """[N, B, w, ...] of [B, S, ...]."""
    rest = array_bs.shape[2:]
    array_bs = jnp.pad(array_bs, [(0, 0), (0, N * drop.window - S)] + [(0, 0)] * len(rest))
    array_nbw = jnp.moveaxis(array_bs.reshape(B, N, drop.window, *rest), 1, 0)
    return constrain(array_nbw, None, "batch", *(None,) * (1 + len(rest)))

  def join(array_nbw: jax.Array) -> jax.Array:
    return jnp.moveaxis(array_nbw, 0, 1).reshape(B, N * drop.window)[:, :S]

  def loss_of(hidden_bwd, head_vd, teacher_head_vd, part, kept_b):
    teacher_bwd, tokens_bw, _, arrays = part
    weighted = [
      (factor, dataclasses.replace(call, weights_bs=weights_bw * kept_b[:, None], advantages_bs=advantages_bw))
      for (factor, call), (weights_bw, advantages_bw) in zip(calls, arrays, strict=True)
    ]
    return add_up(weighted, Reading(hidden_bwd, head_vd), Reading(teacher_bwd, teacher_head_vd), tokens_bw)

  def scan(hidden_nbwd, head_vd, teacher_head_vd, parts, gradient: bool):
    def body(carry, segment):
      past, value, d_head_vd = carry
      hidden_bwd, part = segment
      kept_b, d_hidden_bwd = ~past.found_b, None
      of = functools.partial(loss_of, teacher_head_vd=teacher_head_vd, part=part, kept_b=kept_b)
      if gradient:
        answer, (d_hidden_bwd, d_more_vd) = jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(hidden_bwd, head_vd)
        d_head_vd += d_more_vd.astype(jnp.float32)
      else:
        answer = of(hidden_bwd, head_vd)
      more, result = answer
      past = drop.look(past, result.teacher_logprob - result.student_logprob, part[2])
      kept_bw = jnp.broadcast_to(kept_b[:, None], part[2].shape)
      return (past, value + more, d_head_vd), (d_hidden_bwd, result, kept_bw)

    d_head_vd = jnp.zeros_like(head_vd, dtype=jnp.float32) if gradient else None
    start = drop.begin(B), jnp.float32(0), d_head_vd
    (past, value, d_head_vd), (d_hidden_nbwd, result, kept_nbw) = jax.lax.scan(body, start, (hidden_nbwd, parts))
    return (value, result, kept_nbw, past.found_b), (d_hidden_nbwd, d_head_vd)

  # Differentiated as it is, the scan would keep the head's gradient of every segment until the backward pass.
  @jax.custom_vjp
  def run(hidden_nbwd, head_vd, teacher_head_vd, parts):
    return scan(hidden_nbwd, head_vd, teacher_head_vd, parts, gradient=False)[0]

  def forward(hidden_nbwd, head_vd, teacher_head_vd, parts):
    return scan(hidden_nbwd, head_vd, teacher_head_vd, parts, gradient=True)

  def backward(gradients, cotangent):
    d_hidden_nbwd, d_head_vd = ((g * cotangent[0]) for g in gradients)
    return d_hidden_nbwd.astype(student.hidden_bsd.dtype), d_head_vd.astype(student.head_vd.dtype), None, None

  run.defvjp(forward, backward)
  arrays = [(call.weights_bs, call.advantages_bs) for _, call in calls]
  parts = jax.tree.map(split, (teacher.hidden_bsd, tokens_bs, mask_bs, arrays))
  value, result, kept_nbw, found_b = run(split(student.hidden_bsd), student.head_vd, teacher.head_vd, parts)
  result = jax.tree.map(lambda array: join(array) if array.ndim == 3 else array.sum(), result)
  return value, result, Cut(join(kept_nbw), found_b)
