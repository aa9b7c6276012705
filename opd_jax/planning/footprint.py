"""Bytes of one chip: by role, exactly, from shapes and shardings; and temporaries, roughly, without a compiler.

    all through a run     student (float32 master, or frozen with factors) | optimizer | teacher (and reference)
    while a program runs                                             + batch + temporaries (a rollout's hold its cache)
    while an update runs                                             + the next rollout's weights, already asked for

The model of the temporaries adds up the large arrays that each program makes: those that the weights ask for, and
those that grow with the rows. What XLA makes of the latter (which of them live at the same time, which are fused away)
is not modelled: the search scales them by a compile of the same program, and has its final candidate compiled.

Against libtpu's numbers for Qwen3-1.7B <- Qwen3-8B on v5e:4x4 with remat: update of 64 rows of 256 + 512 tokens 6.6 GB
(libtpu 6.4), in 4 micro-batches 6.5 (6.1), of 512 + 1,024 tokens with tensor=4 7.2 (5.6), its rollout 1.28 (1.25).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from opd_jax.config import Config
from opd_jax.distributed import DECODING, sharding
from opd_jax.distributed.topologies import Topology
from opd_jax.models import Architecture, factor_table
from opd_jax.models.attention import queries_at_once
from opd_jax.planning.compiled import CompiledProgram, bytes_on_chip, refused_program
from opd_jax.programs import ProgramTable
from opd_jax.training.programs import Architectures, Program, abstract_model, abstract_models

_FLOAT32 = 4
_HOPELESS = 3  # times a chip's memory: a program whose modelled temporaries are beyond this is better not compiled


@dataclasses.dataclass(frozen=True)
class Resident:
  """Bytes of one chip that are taken all through a run; `teacher` is all that is scored beside the student."""

  student: int
  optimizer: int
  teacher: int

  @property
  def total(self) -> int:
    return self.student + self.optimizer + self.teacher


@dataclasses.dataclass(frozen=True)
class Footprint:
  """Bytes of one chip by role at the moment when most is taken; they add up to that moment's total.

  The cache is free again when an update runs: where the update is the peak, its temporaries fill the cache's place
  first, and `temp` is what they need beyond it.
  """

  student: int
  optimizer: int
  teacher: int
  cache: int
  temp: int

  @property
  def total(self) -> int:
    return sum(dataclasses.astuple(self))


def resident(config: Config, models: Architectures, mesh: Mesh | AbstractMesh) -> Resident:
  """What the models and the optimizer take of each chip."""
  state, frozen = abstract_models(config, models, mesh)
  optimizer = state.opt_state, state.step
  scored = state.teacher, frozen.reference, [frozen.teacher] * len(config.teachers)
  return Resident(bytes_on_chip(state.student), bytes_on_chip(optimizer), bytes_on_chip(scored))


def cache_bytes(config: Config, models: Architectures, program: Program, mesh: Mesh | AbstractMesh) -> int:
  """Of one chip's keys and values in a program that generates; 0 in one that does not."""
  if not program.generates:
    return 0
  a: Architecture = getattr(models, program.model)
  shape = (a.layers, program.rows, config.rollout.max_prompt + program.bucket, a.kv_heads, a.head_dim)
  placed = sharding(mesh, ("layers", "batch", "length", "kv_heads", "head_dim"), shape)
  compactions = (config.rollout if program.name == "rollout" else config.eval).compactions
  halves = 2 - 0.5**compactions  # 1 + 1/2 + 1/4 ...: rows that move are copied out of a cache that stays
  return int(2 * halves * bytes_on_chip(jax.ShapeDtypeStruct(shape, jnp.dtype(config.student.dtype), sharding=placed)))


def queued_bytes(config: Config, models: Architectures, program: Program, mesh: Mesh | AbstractMesh) -> int:
  """Of one chip, held while a program runs and none of its own: the devices are given the next step's decode layout
  while an update runs (`training.pipeline`)."""
  if not program.trains:
    return 0
  layout = abstract_model(models.student, config.student.dtype, mesh, DECODING, int8=config.rollout.int8)
  return bytes_on_chip(layout)


def footprint(
  config: Config, models: Architectures, mesh: Mesh | AbstractMesh, compiled: list[CompiledProgram]
) -> Footprint:
  """The roles at the peak of a run whose programs were compiled."""
  lasting = resident(config, models, mesh)
  cache = max((cache_bytes(config, models, row.program, mesh) for row in compiled), default=0)
  passing = max(
    (row.batch_bytes + row.temp_bytes + queued_bytes(config, models, row.program, mesh) for row in compiled), default=0
  )
  return Footprint(lasting.student, lasting.optimizer, lasting.teacher, cache, max(0, passing - cache))


@dataclasses.dataclass(frozen=True)
class Temporaries:
  """A chip's temporaries in one program, modelled: bytes that its weights ask for, and bytes that its rows do."""

  fixed: int
  rows: int

  def scale(self, compiled: int) -> float:
    """What the rows' share must be multiplied by to give the compiler's number."""
    return max(0.05, (compiled - self.fixed) / max(1, self.rows))


def model_temporaries(
  config: Config, models: Architectures, program: Program, mesh: Mesh | AbstractMesh
) -> Temporaries:
  """The sums of the large arrays of one program."""
  if program.lays_out:
    int8 = config.rollout.int8 and program.name == "decode_layout"
    return _resharding(config, getattr(models, program.model), mesh, int8)
  if program.generates:
    return _generating(config, models, program, mesh)
  if program.name == "canary":
    return _reading(config, models, program, mesh)
  if program.name == "token_kl":
    return _scoring(config, models, program, mesh)
  return _updating(config, models, program, mesh)


def refused_by_model(
  table: ProgramTable, config: Config, models: Architectures, program: Program, mesh: Mesh, topology: Topology
) -> CompiledProgram | None:
  """The row of a program that no compiler need be asked about; None where one should."""
  modelled = model_temporaries(config, models, program, mesh)
  temporaries = modelled.fixed + modelled.rows
  if temporaries <= _HOPELESS * topology.hbm_bytes:
    return None
  return refused_program(table, program, topology.chips, temporaries)


def _resharding(config: Config, a: Architecture, mesh: Mesh | AbstractMesh, int8: bool) -> Temporaries:
  """The model in the computation's dtype, or its layers in `int8`, cut by `tensor` alone: as it is gathered, and laid
  out as the result."""
  tensor, _, width = _cut(mesh, config.student.dtype)
  layers = a.layers * _layer_parameters(a)
  model = width * (_parameters(a) - layers) + (1 if int8 else width) * layers
  return Temporaries(2 * model // tensor, 0)


def _generating(config: Config, models: Architectures, program: Program, mesh: Mesh | AbstractMesh) -> Temporaries:
  """Copies of a layer and of the head as the products want them laid out; cache, prefill, logits of one position."""
  a: Architecture = getattr(models, program.model)
  tensor, parts, width = _cut(mesh, config.student.dtype)
  rows, P = -(-program.rows // parts), config.rollout.max_prompt
  prompts = -(-program.arguments[1].shape[0] // parts)
  weights = 2 * width * _layer_parameters(a) // tensor
  head = width * a.vocab_size * a.hidden_size // tensor
  logits = 3 * _FLOAT32 * rows * a.vocab_size // tensor
  prefill = prompts * (2 * _FLOAT32 * a.heads // tensor * queries_at_once(P) * P + P * _activations(a, width, tensor))
  decode = 2 * _FLOAT32 * rows * a.heads // tensor * (P + program.bucket)
  return Temporaries(weights + head, cache_bytes(config, models, program, mesh) + max(prefill, decode + logits))


def _reading(config: Config, models: Architectures, program: Program, mesh: Mesh | AbstractMesh) -> Temporaries:
  """A layer or the head, gathered in turn; what a layer makes of the rows, and the logits of one position."""
  a: Architecture = getattr(models, program.model)
  tensor, parts, width = _cut(
    mesh, config.teacher.dtype if program.model == "teacher" else config.student.weights_dtype
  )
  rows = program.rows if program.rows % parts else program.rows // parts  # all on every chip where they do not divide
  T = program.arguments[1].shape[1] + program.bucket
  weights = width * max(_layer_parameters(a), a.vocab_size * a.hidden_size) // tensor
  scores = (_FLOAT32 + width) * a.heads // tensor * queries_at_once(T) * T
  logits = 3 * _FLOAT32 * a.vocab_size // tensor
  return Temporaries(weights, rows * (T * _activations(a, width, tensor) + scores + logits))


def _scoring(config: Config, models: Architectures, program: Program, mesh: Mesh | AbstractMesh) -> Temporaries:
  """A layer and the heads gathered; states of both models, one layer of any one."""
  tensor, parts, width = _cut(mesh, config.student.dtype)
  read = [(models.student, width), (models.teacher, _cut(mesh, config.teacher.dtype)[2])]
  rows, T = -(-program.rows // parts), config.rollout.max_prompt + program.bucket
  weights = max(2 * width * _layer_parameters(a) for a, width in read) // tensor
  heads = sum(width * a.vocab_size * a.hidden_size for a, width in read) // tensor
  states = 2 * rows * program.bucket * sum(width * a.hidden_size for a, width in read)
  passing = max(
    rows * T * _activations(a, width, tensor) + rows * (_FLOAT32 + width) * a.heads // tensor * queries_at_once(T) * T
    for a, width in read
  )
  return Temporaries(weights + heads, states + passing)


def _updating(config: Config, models: Architectures, program: Program, mesh: Mesh | AbstractMesh) -> Temporaries:
  """Weights, gradients and heads gathered; what the backward pass keeps and one layer of any one model."""
  student, teacher = models.student, models.teacher
  tensor, parts, width = _cut(mesh, config.student.dtype)
  _, _, teacher_width = _cut(mesh, config.teacher.dtype)
  _, _, reference_width = _cut(mesh, config.reference.dtype)
  rows = -(-program.rows // config.optimizer.micro_batches // parts)
  T = config.rollout.max_prompt + program.bucket
  teacher_T = (config.teacher_prompt or config.rollout.max_prompt) + program.bucket
  scored = [(teacher, teacher_width, teacher_T)]  # without gradient
  if models.reference:
    scored.append((models.reference, reference_width, T))

  def activations(a: Architecture, width: int, T: int) -> int:
    return rows * T * _activations(a, width, tensor)

  def scores(a: Architecture, width: int, T: int) -> int:
    """[rows, N, queries, T], once as float32 and once as weights."""
    return rows * (_FLOAT32 + width) * a.heads // tensor * queries_at_once(T) * T

  weights, heads = _training(config, student, mesh, gradients=2 if program.name == "probe" else 1)
  if config.teacher.int8:
    weights += teacher_width * _layer_parameters(teacher) // tensor  # of one layer at a time, multiplied out
  if config.teacher.ema:
    weights += teacher_width * _parameters(teacher) // mesh.size  # in the computation's dtype
  heads += sum(width * a.vocab_size * a.hidden_size for a, width, *_ in [(student, width), *scored])
  states = 2 * rows * program.bucket * sum(width * a.hidden_size for a, width, *_ in [(student, width), *scored])
  kept = student.layers * rows * T * width * student.hidden_size
  if not config.student.remat:
    dense = queries_at_once(T) == T  # blocks of scores are computed again in the backward pass
    kept += student.layers * (activations(student, width, T) + (scores(student, width, T) if dense else 0))
  passing = max(
    2 * (activations(student, width, T) + scores(student, width, T)),
    *(activations(*model) + scores(*model) for model in scored),
  )
  return Temporaries(weights + heads // tensor, states + kept + passing)


def _training(config: Config, a: Architecture, mesh: Mesh | AbstractMesh, gradients: int) -> tuple[int, int]:
  """Of the student's weights in an update: copies and gradients, a chip's share; and gradients of head and embedding,
  not yet cut."""
  tensor, _, width = _cut(mesh, config.student.dtype)
  layer = _layer_parameters(a)
  # A gradient in the computation's dtype, one in float32; accumulation carries a float32 sum in and out of its loop.
  per_parameter = gradients * (width + _FLOAT32 * (1 if config.optimizer.micro_batches == 1 else 3))
  lora = config.student.lora
  if not lora.rank:
    weights = (width + per_parameter) * _parameters(a) // mesh.size + width * layer // tensor
    return weights, gradients * 2 * _FLOAT32 * a.vocab_size * a.hidden_size
  factors = sum(math.prod(p.shape) for p in factor_table(a, lora).values())
  # Of one layer: the merged weights, and their gradient in either dtype. The backward pass makes them again under
  # remat, and keeps those of all layers without.
  weights = per_parameter * factors // mesh.size + (2 * width + _FLOAT32) * layer // tensor
  return weights + (0 if config.student.remat else width * a.layers * layer // mesh.size), 0


def _cut(mesh: Mesh | AbstractMesh, dtype: str) -> tuple[int, int, int]:
  """How many ways heads and vocabulary are split, how many ways rows are, and the bytes of a number."""
  return mesh.shape["tensor"], mesh.shape["data"] * mesh.shape["fsdp"], jnp.dtype(dtype).itemsize


def _layer_parameters(a: Architecture) -> int:
  attention = 2 * a.hidden_size * a.head_dim * (a.heads + a.kv_heads)
  return attention + 3 * a.hidden_size * a.mlp_size


def _parameters(a: Architecture) -> int:
  return a.layers * _layer_parameters(a) + (1 if a.tied_head else 2) * a.vocab_size * a.hidden_size


def _activations(a: Architecture, width: int, tensor: int) -> int:
  """Bytes that one position takes in one layer: residual stream and norms, attention, MLP."""
  split = (2 * a.heads + 2 * a.kv_heads) * a.head_dim + 3 * a.mlp_size
  return width * (4 * a.hidden_size + split // tensor)
