"""Bytes by role against arrays that are really there, and the search that uses the model of the rest."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from opd_jax import config as configs
from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.config import from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.distributed.topologies import find_topology
from opd_jax.errors import InputError
from opd_jax.models import Cache
from opd_jax.planning import make_plan
from opd_jax.planning.compiled import _needed, bytes_on_chip
from opd_jax.planning.footprint import cache_bytes, model_temporaries, queued_bytes, resident
from opd_jax.planning.search import Search
from opd_jax.planning.subject import abstract_mesh, check_mesh, read_architectures
from opd_jax.rollout import decode_layout
from opd_jax.training.programs import list_programs
from opd_jax.training.state import init_state, make_optimizer

ROOT = Path(__file__).resolve().parents[2]


def on_first_device(tree) -> int:
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def config(tiny_config):
  flags = ["horizon.kind=full", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]
  return load_config(tiny_config, [f"--config.{flag}" for flag in flags])


def test_roles_are_the_bytes_of_the_arrays_of_a_run(config, tiny_pair):
  mesh = make_mesh((2, 2, 2), jax.devices()[:8])
  state = init_state(models.load(tiny_pair / "student", dtype=jnp.float32, mesh=mesh), make_optimizer(config))
  teacher = models.load(tiny_pair / "teacher", dtype=jnp.float32, mesh=mesh)
  architectures = read_architectures(config)
  for planned in (mesh, abstract_mesh(config, 8)):
    roles = resident(config, architectures, planned)
    assert roles.student == on_first_device(state.student)
    assert roles.optimizer == on_first_device((state.opt_state, state.step))
    assert roles.teacher == on_first_device(teacher)

  rollout = next(p for p in list_programs(config, architectures, mesh) if p.name == "rollout")
  with jax.set_mesh(mesh):
    cache = jax.jit(lambda: Cache.empty(architectures.student, 8, 32 + 16, jnp.float32))()
  assert cache_bytes(config, architectures, rollout, mesh) == on_first_device(cache)


def test_a_teacher_in_int8_takes_the_bytes_of_its_arrays(config, tiny_pair):
  config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, int8=True))
  mesh, architectures = make_mesh((2, 2, 2), jax.devices()[:8]), read_architectures(config)
  teacher = models.quantize_and_free(models.load(tiny_pair / "teacher", dtype=jnp.float32, mesh=mesh))
  for planned in (mesh, abstract_mesh(config, 8)):
    assert resident(config, architectures, planned).teacher == on_first_device(teacher)


def test_what_is_scored_beside_the_student_is_counted(config, tiny_pair):
  """A frozen teacher and a reference; or a teacher that follows the student, in float32 whatever its computation."""
  mesh = make_mesh((2, 2, 2), jax.devices()[:8])

  def bytes_of(name, dtype):
    return on_first_device(models.load(tiny_pair / name, dtype=dtype, mesh=mesh))

  reference = configs.Reference(str(tiny_pair / "student"), "bfloat16")
  extrapolated = dataclasses.replace(config.objective, kind="extrapolated")
  three = dataclasses.replace(config, reference=reference, objective=extrapolated)
  follows = dataclasses.replace(config, teacher=configs.Teacher("student", "bfloat16", ema=0.1))
  for changed, scored in (
    (three, bytes_of("teacher", "float32") + bytes_of("student", "bfloat16")),
    (follows, bytes_of("student", "float32")),
  ):
    architectures = read_architectures(changed)
    assert resident(changed, architectures, mesh).teacher == scored
    programs = {program.name: program for program in list_programs(changed, architectures, mesh)}
    kept = bytes_on_chip(programs["update"].arguments) - bytes_on_chip(programs["update"].batch)
    assert kept == resident(changed, architectures, mesh).total
  update = next(p for p in list_programs(three, read_architectures(three), mesh) if p.name == "update")
  more, less = (model_temporaries(c, read_architectures(c), update, mesh) for c in (three, config))
  assert more.fixed > less.fixed and more.rows > less.rows


def test_the_layers_of_a_teacher_in_int8_take_half():
  """Qwen3-8B: 36 layers of 192.9 million weights, of which a chip of 16 holds a sixteenth. Most scales run along axes
  that fsdp does not split, so each chip has them all: one in a hundred of its bytes."""
  config = qwen()
  halved = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, int8=True))
  architectures, mesh = read_architectures(config), abstract_mesh(config, 16)
  full, int8 = (resident(c, architectures, mesh) for c in (config, halved))
  weights = 36 * (4096 * 128 * (32 + 8) * 2 + 3 * 4096 * 12288) // 16
  assert full.teacher - int8.teacher == pytest.approx(weights, rel=0.015) and int8.teacher < 0.6 * full.teacher
  assert (full.student, full.optimizer) == (int8.student, int8.optimizer)


def test_a_student_that_writes_in_int8_takes_the_bytes_of_its_arrays(config, tiny_pair):
  config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, int8=True))
  mesh, architectures = make_mesh((2, 2, 2), jax.devices()[:8]), read_architectures(config)
  student = models.load(tiny_pair / "student", dtype=jnp.float32, mesh=mesh)
  with jax.set_mesh(mesh):
    layout = jax.jit(functools.partial(decode_layout, bucket=0, dtype=jnp.float32, int8=True))(student)
  for planned in (mesh, abstract_mesh(config, 8)):
    programs = {program.name: program for program in list_programs(config, architectures, planned)}
    assert bytes_on_chip(programs["rollout"].arguments[0]) == on_first_device(layout)
    assert queued_bytes(config, architectures, programs["update"], planned) == on_first_device(layout)


def test_a_plan_lists_what_a_run_compiles(tiny_config, tiny_pair):
  flags = [f"--config.eval.path={tiny_pair}/prompts.jsonl", "--config.eval.samples=2", "--config.eval.batch=8"]
  config = load_config(tiny_config, flags)
  programs = list_programs(config, read_architectures(config), abstract_mesh(config, 8))
  # as tests/training/test_run.py counts them in a run
  assert sorted((p.name, p.bucket) for p in programs) == sorted(
    [("rollout", 8), ("rollout", 16), ("update", 8), ("update", 16)]
    + [("evaluate_greedy", 16), ("evaluate_sampled", 16), ("decode_layout", 0), ("canary", 16)] * 2
    + [("token_kl", 16)]
  )


def named(student, teacher, **sections):
  """A config of two shipped architectures in bf16, with remat."""
  models = {
    "student": {"path": f"x/{student}", "dtype": "bfloat16", "remat": True},
    "teacher": {"path": f"x/{teacher}", "dtype": "bfloat16"},
  }
  return from_config_dict({"data": {"path": "x"}, **models, **sections})


def qwen(prompts=64, bucket=512, **optimizer):
  return named(
    "Qwen3-1.7B",
    "Qwen3-8B",
    rollout={"prompts_per_step": prompts, "max_prompt": 256},
    horizon={"max": bucket, "buckets": (bucket,)},
    optimizer=optimizer,
  )


def test_the_model_of_temporaries_is_near_what_libtpu_says():
  """Numbers of jax 0.10.2 with libtpu 0.0.42.1 for v5e:4x4: temporaries and code."""
  shipped = load_config(str(ROOT / "configs" / "qwen3_1p7b_topd.py"), [])
  int8 = dataclasses.replace(shipped, rollout=dataclasses.replace(shipped.rollout, int8=True))
  measured = [
    (qwen(micro_batches=1), "update", 6.446e9),
    (qwen(micro_batches=4), "update", 6.057e9),
    (shipped, "update", 5.621e9),
    (shipped, "rollout", 1.247e9),
    (shipped, "canary (teacher)", 3.193e8),
    (shipped, "canary", 4.662e8),
    (shipped, "decode_layout (teacher)", 8.192e9),
    (int8, "decode_layout", 1.024e9),
    (int8, "rollout", 1.218e9),
    (shipped, "evaluate_greedy (teacher)", 3.635e9),
    (shipped, "token_kl", 0.660e9),
  ]
  for config, name, compiled in measured:
    architectures, mesh = read_architectures(config), abstract_mesh(config, 16)
    program = next(p for p in list_programs(config, architectures, mesh) if p.label == name)
    modelled = model_temporaries(config, architectures, program, mesh)
    assert 0.7 < (modelled.fixed + modelled.rows) / compiled < 1.4
    scaled = modelled.fixed + modelled.scale(int(compiled)) * modelled.rows
    assert scaled == pytest.approx(compiled, rel=0.05)


def test_what_the_compiler_says_of_a_program_that_is_too_large():
  """Messages of libtpu 0.0.42.1, cut to what matters."""
  total = "total memory required for HLO temporaries (400.00G) exceeds available HBM (15.75G)."
  assert _needed(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, the {total}") == 400 * 2**30
  assert _needed("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 39.5G of 15.75G hbm.") == 39.5 * 2**30
  assert _needed("RESOURCE_EXHAUSTED: something else") == 0


def test_the_search_prefers_what_changes_no_number():
  topology, config = find_topology("v5e:4x4"), qwen(prompts=256, bucket=1536)
  search = Search(read_architectures(config), {})
  assert search.peak(config, topology) > topology.hbm_bytes
  found = search.mend(config, topology)
  assert found.topology == topology and found.config.optimizer.micro_batches > 1
  assert found.config.rollout == config.rollout
  assert search.peak(found.config, topology) <= topology.hbm_bytes
  assert found.changes(config, topology) == [f"--config.optimizer.micro_batches={found.config.optimizer.micro_batches}"]


def test_the_search_takes_a_larger_machine_when_nothing_else_helps():
  """The teacher alone takes 61 GiB in bf16: no setting helps four chips of 15.75."""
  config = named(
    "Qwen3-8B-Base",
    "Qwen3-32B",
    rollout={"prompts_per_step": 64, "max_prompt": 256},
    horizon={"max": 256, "buckets": (256,)},
  )
  topology = find_topology("v5e:2x2")
  search = Search(read_architectures(config), {})
  found = search.mend(config, topology)
  assert found.topology.chips > 4 and found.topology.name.startswith("v5e:")
  assert search.peak(found.config, found.topology) <= found.topology.hbm_bytes
  smaller = [other for other in (topology, *topology.larger()) if other.chips < found.topology.chips]
  assert all(search.peak(config, other) > other.hbm_bytes for other in smaller)
  assert f"--topology={found.topology.name}" in found.changes(config, topology)


def test_the_largest_batch_fits_and_a_larger_one_does_not():
  topology, config = find_topology("v5e:4x4"), qwen()
  search = Search(read_architectures(config), {})
  found = search.largest_batch(config, topology)
  most = found.config.rollout.prompts_per_step
  assert most >= 64 and most % 16 == 0 and search.peak(found.config, topology) <= topology.hbm_bytes
  larger = qwen(prompts=most + 16, micro_batches=(most + 16) // 16)  # one row a chip and micro-batch: no way to less
  assert search.peak(larger, topology) > 0.97 * topology.hbm_bytes


def test_a_run_that_does_not_fit_is_mended_by_the_advice(tiny_config):
  """Eight devices with so little memory that only smaller micro-batches fit; the advice is then taken."""
  flags = [
    "--config.horizon.kind=full",
    "--config.horizon.max=256",
    "--config.horizon.buckets=256",
    "--config.rollout.prompts_per_step=64",
  ]
  config = load_config(tiny_config, flags)
  wide = find_topology("cpu:8")
  whole = make_plan(config, wide, say=lambda line: None)
  assert whole.fits
  narrow = dataclasses.replace(wide, hbm_bytes=whole.memory.total * 2 // 3)
  refused = make_plan(config, narrow, say=lambda line: None)
  assert not refused.fits and refused.memory == whole.memory
  taken = [word.rstrip(".,") for word in refused.advice.split() if word.startswith("--config.")]
  assert taken and not any("prompts_per_step" in flag for flag in taken)
  mended = make_plan(load_config(tiny_config, flags + taken), narrow, say=lambda line: None)
  assert mended.fits and mended.memory.total <= narrow.hbm_bytes


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config.mesh.data=3"], "does not multiply to the 8"),
    (["--config.rollout.prompts_per_step=12"], "prompts_per_step is 12, which does not divide"),
    (["--config.mesh.tensor=8"], "4 query heads.*mesh.tensor=8"),
    (["--config.student.path=nobody/nothing"], "nobody/nothing.*Qwen3-1.7B"),
  ],
)
def test_what_train_would_refuse_is_refused(tiny_config, flags, words):
  config = load_config(tiny_config, flags)
  with pytest.raises(InputError, match=words):
    check_mesh(config, read_architectures(config), abstract_mesh(config, 8))
