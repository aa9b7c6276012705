"""What a run says of its pair at its start, and what it refuses: from the tokenizers to what each model makes of the
other's answers.

    tokenizers, heads, temperatures, masks     from files and the config
    teacher ─► greedy answers ─► log-probs of both models      its canary: kept, and looked at again while it runs
    student ─► greedy answers ─► log-probs of both models      where the signal will begin
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np

from opd_jax.config import STUDENT
from opd_jax.data import Finding, audit_answers
from opd_jax.distributed import any_process
from opd_jax.errors import InputError
from opd_jax.models import Model, factor_table
from opd_jax.pair import Pair
from opd_jax.training.canary import ROWS, Canary, Reader, columns, cut, file_name
from opd_jax.training.run import OpenRun

PairRow = tuple[str, str, str, str]  # aspect, student, teacher, what to do


@dataclasses.dataclass(frozen=True)
class TeacherWatch:
  """The teacher in memory beside its canary.

  Attributes:
    reader: of the teacher.
    canary: with this process's log-probs.
  """

  reader: Reader
  canary: Canary

  def fault(self) -> str:
    """What is wrong with the teacher's weights by now; "" where nothing is, the same on all processes."""
    return _moved(self.canary, self.reader.read(self.canary.answers)[0])


def audit_pair(
  run: OpenRun, teacher: Model | None, student: Model, *, resumed: bool, route: str = ""
) -> tuple[TeacherWatch | None, list[PairRow]]:
  """Looks at student and teacher before a step is made. Every process must call it.

  Args:
    run: its workdir gets canary.json, unless `resumed` finds it there.
    teacher: None where it is part of the training state (`teacher.ema`): what moves has no canary, and its answers are
      the student's.
    student: float32, in the training layout.
    resumed: the run goes on from a checkpoint, so that the teacher must still give the canary's log-probs.
    route: name of the teacher, where there are several.

  Returns:
    The teacher's watch, and the rows of the table that a run begins with.

  Raises InputError for a teacher that is not the one of the canary, and for log-probs that are no numbers.
  """
  rows = _rows_without_models(run, route)
  if teacher is None:
    return None, rows
  c, pair = run.config, run.teachers[route].pair
  watch = _open_watch(run, teacher, resumed, route)
  prompts = _first(run, run.prompts.token_ids, route)
  reader = Reader(run.table, run.mesh, student, prompts, c.rollout.max_prompt, columns(c))
  logprob_bs, _ = reader.read(watch.canary.answers)
  if not resumed:
    _refuse_if_not_finite(logprob_bs, "student", run.student_path)
  findings = audit_answers(pair.tokenizer, "teacher", watch.canary.answers, logprob_bs, watch.canary.logprobs)
  answers_bs, logprob_bs = reader.write()
  answers = cut(answers_bs, _ends(pair))
  findings += audit_answers(pair.tokenizer, "student", answers, logprob_bs, watch.reader.read(answers)[0])
  return watch, rows + _named(findings, route)


def _named(findings: Sequence[Finding], route: str) -> list[PairRow]:
  """As rows, each with the teacher that it is about, where there are several."""
  of = f" ({route})" if route else ""
  return [dataclasses.astuple(dataclasses.replace(each, aspect=each.aspect + of)) for each in findings]


def _rows_without_models(run: OpenRun, route: str) -> list[PairRow]:
  c, pair = run.config, run.teachers[route].pair
  rows = _named(pair.findings, route)
  heads = (f"{pair.vocab_size:,} of {model.vocab_size:,}" for model in (pair.student, pair.teacher))
  rows.append(("ids with a text", *heads, ""))
  if c.teacher.path == STUDENT and not (c.teacher_prompt or c.reference.path):
    note = "the teacher is the student and sees what it sees, so that there is nothing to learn: "
    rows.append(("context", "its prompts", "the same", note + "give data.teacher_prompt_field"))
  if c.student.lora.rank:
    numbers = sum(math.prod(p.shape) for p in factor_table(pair.student, c.student.lora).values())
    rows.append(("trained", f"factors of rank {c.student.lora.rank}, {numbers:,} numbers", "", ""))
  scored = c.objective.teacher_temperature or c.objective.temperature
  written = f"{c.rollout.temperature:g} writing, {c.objective.temperature:g} scored"
  rows.append(("temperature", written, f"{scored:g} scored", ""))
  masked = [f"the first {text!r}" for text in c.objective.mask_first] + [repr(text) for text in c.objective.mask_all]
  if masked:
    rows.append(("left out of the loss", ", ".join(masked), "", ""))
  return rows


def _open_watch(run: OpenRun, teacher: Model, resumed: bool, route: str) -> TeacherWatch:
  """The teacher with the canary of the workdir, or with a new one where the run begins."""
  c, writes = run.config, jax.process_index() == 0
  file, taught = file_name(route), run.teachers[route]
  known = any_process(resumed and writes and (run.workdir / file).exists())
  kept = Canary.load(run.workdir, route) if known else None
  prompts = kept.prompts if kept else _first(run, run.prompts.teacher_ids or run.prompts.token_ids, route)
  reader = Reader(run.table, run.mesh, teacher, prompts, c.teacher_prompt or c.rollout.max_prompt, columns(c))
  if kept:
    logprob_bs, _ = reader.read(kept.answers)
    if fault := _moved(kept, logprob_bs):
      raise InputError(
        f"{taught.path} is not the teacher that {run.workdir} was begun with, or was read wrongly: {fault}, "
        f"which stand in {file}; mend it, or choose another --workdir"
      )
    return TeacherWatch(reader, kept.in_memory(logprob_bs))
  answers_bs, logprob_bs = reader.write()
  _refuse_if_not_finite(logprob_bs, "teacher", taught.path)
  new = Canary.of(prompts, cut(answers_bs, _ends(taught.pair)), logprob_bs, c.teacher.dtype)
  if writes:
    new.save(run.workdir, route)
  return TeacherWatch(reader, new.in_memory(logprob_bs))


def _first(run: OpenRun, token_ids: tuple[tuple[int, ...], ...], route: str) -> tuple[tuple[int, ...], ...]:
  """The prompts that the first step begins with; of one teacher of several, the first in the data that name it."""
  if not route:
    return tuple(token_ids[i] for i in run.stream.take(0, ROWS))
  own = [ids for ids, name in zip(token_ids, run.prompts.routes, strict=True) if name == route]
  return tuple(itertools.islice(itertools.cycle(own), ROWS))


def _ends(pair: Pair) -> tuple[int, ...]:
  return (*pair.eos_ids, *pair.teacher_eos_ids)


def _moved(canary: Canary, logprob_bs: np.ndarray) -> str:
  """By how much a teacher is off its canary where that is too much, on any process."""
  difference = canary.difference(logprob_bs)
  if not any_process(difference > canary.tolerance):
    return ""
  return (
    f"the teacher's log-probs of its own greedy answers differ by up to {difference:.3g} nats from those at the start "
    f"(at most {canary.tolerance:g} may)"
  )


def _refuse_if_not_finite(logprob_bs: np.ndarray, role: str, path: str) -> None:
  if any_process(not np.isfinite(logprob_bs).all()):
    raise InputError(
      f"{path}: the {role} gives log-probs that are no numbers: its weights are damaged, or {role}.dtype cannot hold "
      "what it computes"
    )
