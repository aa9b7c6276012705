"""`arithmetic:uniform/teacher` and its like: files in a cache folder, made on first use and kept.

    $OPD_JAX_CACHE or ~/.cache/opd_jax
      arithmetic-<hash of the recipe>/
        train.jsonl  eval.jsonl                     prompts and right chains, the same for both variants
        teacher/                                    Hugging Face folders; both variants have one teacher
        uniform-student/  late-student/

`arithmetic:uniform@3/teacher` is the same with 3 as the recipe's seed: another initialisation, other problems.

In two parts, because bad input must end a run before anything is trained: `outline` writes all that costs no
training, `make` the weights. Each part appears by one rename, under a lock: a kill leaves nothing half made, and of
two processes the second waits for the first.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from opd_jax.arithmetic import pretraining, task
from opd_jax.arithmetic.recipe import DEFAULT, Recipe
from opd_jax.arithmetic.tokenizer import END_ID, save_tokenizer
from opd_jax.errors import InputError, nearest
from opd_jax.models import load, save

_PREFIX = "arithmetic:"
_PROMPTS = {"train.jsonl": 10, "eval.jsonl": 11}  # and the stream of problems that each is drawn from
_ITEMS = ("student", "teacher", *_PROMPTS)
_WEIGHTS = "model.safetensors"


def is_embedded(path: str) -> bool:
  """Whether `path` names a part of the embedded task."""
  return path.startswith(_PREFIX)


def outline(path: str, recipe: Recipe = DEFAULT) -> str:
  """The real path of an embedded one, with all files there but weights; any other path as it is.

  Args:
    path: `arithmetic:VARIANT/ITEM` or `arithmetic:VARIANT@SEED/ITEM`, variant `uniform` or `late`, item `student`,
      `teacher`, `train.jsonl` or `eval.jsonl`; or anything else.
    recipe: what to make.

  Raises InputError for an unknown variant or item, and for a cache folder that cannot be written.
  """
  if not is_embedded(path):
    return path
  name, recipe = _file_name(path), _seeded(path, recipe)
  root = _root(recipe)
  if not root.exists():
    with _making(root) as workplace:
      if not root.exists():
        _write_outline(workplace, recipe)
        workplace.rename(root)
  return str(root / name)


def make(path: str, recipe: Recipe = DEFAULT) -> str:
  """The same path as `outline`, with the weights there too; trains them where they are not, and prints how it goes."""
  real = outline(path, recipe)
  if not is_embedded(path) or real.endswith(".jsonl") or (Path(real) / _WEIGHTS).exists():
    return real
  recipe = _seeded(path, recipe)
  folder, root = Path(real), _root(recipe)
  with _making(root) as workplace:
    teacher = root / "teacher"
    if not (teacher / _WEIGHTS).exists():
      _say(f"making the default task's teacher in {root}, once: about a minute")
      _write_weights(pretraining.make_teacher(recipe, _say), teacher, workplace)
    if not (folder / _WEIGHTS).exists():
      model = load(teacher, dtype="float32")
      _write_weights(pretraining.make_student(recipe, model, _variant(path), _say), folder, workplace)
  return real


def _variant(path: str) -> str:
  return path.removeprefix(_PREFIX).partition("/")[0].partition("@")[0]


def _seeded(path: str, recipe: Recipe) -> Recipe:
  """The recipe with the seed after the variant's `@`, if there is one."""
  _, at, seed = path.partition("/")[0].partition("@")
  if at and not (seed.isascii() and seed.isdigit() and len(seed) <= 9):
    raise InputError(f"{path}: `{seed}` is no seed: write a whole number after the @")
  return dataclasses.replace(recipe, seed=int(seed)) if at else recipe


def _file_name(path: str) -> str:
  """The name below the cache folder; refuses what the task does not have."""
  variant, item = _variant(path), path.partition("/")[2]
  for name, known, what in ((variant, task.VARIANTS, "variant"), (item, _ITEMS, "part")):
    if name not in known:
      raise InputError(
        f"{path}: the arithmetic task has no {what} `{name}`{nearest(name, known)}; there are {', '.join(known)}: "
        "write arithmetic:VARIANT/PART, or arithmetic:VARIANT@SEED/PART"
      )
  return f"{variant}-student" if item == "student" else item


def _root(recipe: Recipe) -> Path:
  cache = os.environ.get("OPD_JAX_CACHE") or "~/.cache/opd_jax"
  return Path(cache).expanduser().absolute() / f"arithmetic-{recipe.hash}"


@contextlib.contextmanager
def _making(root: Path) -> Iterator[Path]:
  """An empty folder beside `root` to work in, for one process at a time; the lock ends with its process."""
  workplace = root.with_name(f".{root.name}.making")
  try:
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root.with_name(f".{root.name}.lock"))
    try:
      lock.acquire(timeout=0.5)
    except Timeout:
      _say(f"waiting for another process that is making {root}")
      lock.acquire()
  except OSError as error:
    raise InputError(f"cannot write the cache folder {root.parent} ({error}): set OPD_JAX_CACHE to another") from error
  try:
    shutil.rmtree(workplace, ignore_errors=True)  # of a process that was killed
    workplace.mkdir()
    yield workplace
  finally:
    shutil.rmtree(workplace, ignore_errors=True)
    lock.release()


def _write_outline(folder: Path, recipe: Recipe) -> None:
  for name, stream in _PROMPTS.items():
    count = recipe.train_prompts if name == "train.jsonl" else recipe.eval_prompts
    rows = task.problems(count, (recipe.seed, stream))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  for name in ("teacher", *(f"{variant}-student" for variant in task.VARIANTS)):
    (folder / name).mkdir()
    save_tokenizer(folder / name)
    for file, content in (
      ("config.json", {**recipe.architecture.to_config(), "dtype": "float32"}),
      ("generation_config.json", {"eos_token_id": END_ID}),
    ):
      (folder / name / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_weights(model, folder: Path, workplace: Path) -> None:
  save(model, workplace / folder.name, source=folder)
  (workplace / folder.name / _WEIGHTS).replace(folder / _WEIGHTS)


def _say(line: str) -> None:
  print(f"arithmetic: {line}", flush=True)
