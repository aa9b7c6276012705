"""What training changes: the student's float32 master weights (or its LoRA's factors), the optimizer's state, the count
of finished steps, and a teacher that follows the student; and what it only reads, the frozen models."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from opd_jax.config import Config
from opd_jax.config import Optimizer as OptimizerConfig
from opd_jax.config import Student as StudentConfig
from opd_jax.distributed import mesh_of
from opd_jax.models import Architecture, Model, adapt, factor_table, parameter_specs, parameter_table
from opd_jax.models.parameters import nested

_PLAIN = StudentConfig()  # all of its weights are trained


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Attributes:
  student: float32 Model; under `student.lora` frozen weights in the dtype of the computation, with float32 factors.
  opt_state: optax state over what is `trained` of it.
  step: int32 scalar, finished updates.
  teacher: a float32 copy of the student that follows it (`teacher.ema`); None where the teacher is frozen.
  """

  student: Model
  opt_state: Any
  step: jax.Array
  teacher: Model | None = None


class Frozen(NamedTuple):
  """Models that are scored and never change.

  Attributes:
    teacher: None where it is part of the state; of several, the first, or in an update the one of its rows.
    reference: of an objective that needs one.
    routes: name -> teacher of the rows that name it; None where there is one for all, and in an update.
  """

  teacher: Model | None
  reference: Model | None = None
  routes: dict[str, Model] | None = None

  @property
  def teachers(self) -> dict[str, Model]:
    """name -> teacher; the only one is called "", and there is none where it is part of the state."""
    return self.routes or ({"": self.teacher} if self.teacher else {})

  def of_rows(self, route: str) -> "Frozen":
    """What scores rows that name this teacher; "" where there is one for all."""
    return Frozen(self.teachers[route], self.reference) if self.routes else self


def init_state(student: Model, optimizer: optax.GradientTransformation, follows: bool = False) -> TrainState:
  """Step 0, on the student's mesh; the moments of a parameter live where it lives. Uses up `student`.

  `follows`: the teacher is a copy of the student that follows it.
  """
  mesh = mesh_of(student)
  placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(student, optimizer, mesh, follows))

  def init(student: Model) -> TrainState:
    teacher = jax.tree.map(jnp.copy, student) if follows else None
    return TrainState(student, optimizer.init(student.trained), jnp.int32(0), teacher)

  return jax.jit(init, out_shardings=placed, donate_argnums=0)(student)


def abstract_state(
  config: Architecture,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  follows: bool = False,
  student: StudentConfig = _PLAIN,
) -> TrainState:
  """Shapes, dtypes and shardings of the state, without an array."""
  model = _abstract_student(config, student)
  shapes = TrainState(
    model,
    jax.eval_shape(optimizer.init, model.trained),
    jax.ShapeDtypeStruct((), jnp.int32),
    model if follows else None,
  )
  return jax.tree.map(
    lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
    shapes,
    state_specs(model, optimizer, mesh, follows),
  )


def state_specs(student: Model, optimizer: optax.GradientTransformation, mesh, follows: bool = False) -> TrainState:
  """A PartitionSpec for every array of the state: the parameters' own, the same for their moments, () for the rest.

  `student`: arrays or anything with their shapes.
  """
  model = Model(parameter_specs(student, mesh), student.config)
  opt_state = optax.tree_utils.tree_map_params(
    optimizer,
    lambda _, spec: spec,
    jax.eval_shape(optimizer.init, student.trained),
    model.trained,
    transform_non_params=lambda _: PartitionSpec(),
  )
  return TrainState(model, opt_state, PartitionSpec(), model if follows else None)


def _abstract_student(config: Architecture, student: StudentConfig) -> Model:
  """Shapes and dtypes."""

  def shapes(table: dict, dtype: str) -> dict:
    return nested({path: jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype)) for path, p in table.items()})

  params = shapes(parameter_table(config), student.weights_dtype)
  if student.lora.rank:
    params = adapt(params, shapes(factor_table(config, student.lora), "float32"), student.lora.scale)
  return Model(params, config)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Warm-up from 0, then constant, or down to 0 at `steps` along a cosine or a line."""
  rate, warmup = config.learning_rate, config.warmup_steps
  rest = max(1, steps - warmup)
  after = {
    "constant": optax.constant_schedule(rate),
    "cosine": optax.cosine_decay_schedule(rate, rest),
    "linear": optax.linear_schedule(rate, 0.0, rest),
  }[config.schedule]
  # optax counts from 0: the first update of a warm-up of n steps gets 1/n of the rate, not 0.
  return optax.join_schedules([lambda count: rate * (count + 1) / max(1, warmup), after], [warmup])


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """AdamW after clipping by the global norm; weight decay spares vectors (norms, biases)."""
  c = config.optimizer
  adamw = optax.adamw(
    learning_rate(c, config.steps),
    b1=c.b1,
    b2=c.b2,
    eps=c.eps,
    weight_decay=c.weight_decay,
    mask=lambda params: jax.tree.map_with_path(lambda path, _: _is_matrix(path), params),
  )
  return optax.chain(optax.clip_by_global_norm(c.clip), adamw) if c.clip else adamw


def _is_matrix(path) -> bool:
  """Whether a parameter is decayed: its own name, not its number of axes, since layers are stacked."""
  names = [str(entry.key) for entry in path]
  return not any("norm" in name or "bias" in name for name in names)
