"""Where every array of a run lives, and how its programs communicate, against text files in golden/.

A change of these is a change of what a run costs, so it has to be seen. After a change that is meant,

    OPD_UPDATE_GOLDEN=1 python -m pytest tests/planning/test_golden.py

writes the files again, and their diff belongs to the change. Shardings are ours and must always match. Collectives are
XLA's choice: they are compared under the version of jax that their file was written with, named in its first line.
"""

import difflib
import os
from pathlib import Path

import jax
import pytest

from opd_jax.config import from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.models import Architecture
from opd_jax.planning.hlo import read_work
from opd_jax.planning.subject import make_table
from opd_jax.training.programs import Architectures, list_programs

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("OPD_UPDATE_GOLDEN") == "1"
COMMAND = "OPD_UPDATE_GOLDEN=1 python -m pytest tests/planning/test_golden.py"
MESHES = ((1, 8, 1), (2, 2, 2))  # data, fsdp, tensor


def architecture(family, vocab, width, *, tied):
  fields = {
    "model_type": family,
    "vocab_size": vocab,
    "hidden_size": width,
    "intermediate_size": 2 * width,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": tied,
  }
  return Architecture.from_config(fields, "test")


# Between the two: tied and not, norms of queries and keys, biases, a vocabulary that does not divide.
PAIR = Architectures(architecture("qwen3", 384, 32, tied=True), architecture("qwen2", 393, 64, tied=False))
CONFIG = from_config_dict(
  {
    "rollout": {"prompts_per_step": 8, "samples_per_prompt": 2, "max_prompt": 6},
    "horizon": {"max": 8, "buckets": (8,)},
    "eval": {"path": "questions", "batch": 8},
  },
  check=False,
)
# Names of the arguments of a program; these programs take every array of a run, in training or in decoding.
TRAINING = {"update": ("state", "", "")}  # the names of a batch's and of the frozen models' parts are their own
DECODING = {
  "rollout": ("state/student", "prompts_bp", "prompt_mask_bp", "horizon", "seed", "step", "rows_r"),
  "evaluate_greedy (teacher)": ("teacher",),
}


def compare(file, found):
  """Fails with a diff where the lines `found` are not those of `file`; writes them there where that is wanted."""
  path = GOLDEN / file
  if UPDATE:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(found) + "\n")
  expected = path.read_text().splitlines()
  if found != expected:
    diff = "\n".join(difflib.unified_diff(expected, found, f"golden/{file}", "this tree", lineterm="", n=0))
    pytest.fail(f"{diff}\n\nIs this meant? {COMMAND}", pytrace=False)


def placements(programs, names):
  """{name: (shape, sharding)} of the named arguments of the programs."""
  named = {}
  for label, arguments in names.items():
    for name, argument in zip(arguments, programs[label].arguments):  # of a teacher's evaluation, the model alone
      for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
        inner = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = () if leaf.sharding is None else leaf.sharding.spec
        axes = ["+".join(entry) if isinstance(entry, tuple) else entry or "-" for entry in spec]
        axes += ["-"] * (leaf.ndim - len(axes))
        named["/".join(filter(None, (name, inner)))] = (list(leaf.shape), f"({', '.join(axes)})")
  return named


@pytest.fixture(scope="module", params=MESHES, ids=str)
def mesh(request):
  return make_mesh(request.param, jax.devices()[:8])


@pytest.fixture(scope="module")
def programs(mesh):
  """Every program of the run by its label, with abstract arguments."""
  return {program.label: program for program in list_programs(CONFIG, PAIR, mesh)}


@pytest.fixture(scope="module")
def compiled(mesh, programs):
  """Executables by label, without LLVM's optimizations, which come after what is looked at here and take long."""
  jax.config.update("jax_disable_most_optimizations", True)
  table = make_table(CONFIG, PAIR, mesh)
  yield {label: table.compile(p.name, p.bucket, *p.arguments) for label, p in programs.items()}
  jax.config.update("jax_disable_most_optimizations", False)


def file_of(mesh, what):
  return f"{'_'.join(f'{axis}{size}' for axis, size in mesh.shape.items())}_{what}.txt"


def test_shardings(mesh, programs):
  training, decoding = placements(programs, TRAINING), placements(programs, DECODING)
  rows = [("array", "shape", "training", "decoding")]
  for name in sorted({**training, **decoding}):
    shape, _ = training.get(name) or decoding[name]
    rows.append((name, str(shape), *(table[name][1] if name in table else "." for table in (training, decoding))))
  lines = [f"{name:58} {shape:16} {trained:25} {decoded}" for name, shape, trained, decoded in rows]
  compare(file_of(mesh, "shardings"), lines)


def test_collectives(mesh, programs, compiled):
  file, version = file_of(mesh, "collectives"), f"jax {jax.__version__}, CPU"
  lines = [version]
  for label, executable in compiled.items():
    counts = read_work(executable.as_text(), open_trips=1).collectives
    lines += [f"{label}: {kind} {count}" for kind, count in sorted(counts.items())] or [f"{label}: none"]
  if not UPDATE and (written := (GOLDEN / file).read_text().splitlines()[0]) != version:
    pytest.skip(f"golden/{file} holds what XLA chose under {written}; this is {version}")
  compare(file, lines)


def test_every_program_leaves_its_results_where_the_next_one_takes_them(programs, compiled):
  handed_on = (
    (compiled["decode_layout"].output_shardings, programs["rollout"].arguments[0]),
    (compiled["decode_layout (teacher)"].output_shardings, programs["evaluate_greedy (teacher)"].arguments[0]),
    (compiled["rollout"].output_shardings, programs["update"].arguments[2].rollout),
    (compiled["update"].output_shardings[0], programs["update"].arguments[0]),
  )
  for results, arguments in handed_on:
    for (path, argument), result in zip(
      jax.tree_util.tree_leaves_with_path(arguments), jax.tree.leaves(results), strict=True
    ):
      assert result.is_equivalent_to(argument.sharding, argument.ndim), jax.tree_util.keystr(path)
