"""Grades every reference answer of the data sets in every form, and everything that must not count.

    python -m benchmarks.grading --data=FOLDER --out=benchmarks/results/grading

FOLDER holds math500, aime24, aime25 and amc23 as test.parquet of verl's rows, and gsm8k/test.jsonl.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
from absl import app, flags

from benchmarks.grading.forms import GSM8K, MATH, Form
from benchmarks.grading.hostile import HOSTILE
from opd_jax.evaluation import grade

_DATA = flags.DEFINE_string("data", None, "folder of the data sets", required=True)
_OUT = flags.DEFINE_string("out", None, "where to write OUT.md and OUT.json")

CONTESTS = ("math500", "aime24", "aime25", "amc23")


def read_answers(folder: Path) -> Iterator[tuple[str, str, str, str]]:
  """(set, kind of grader, reference as the set has it, the answer in it) of every row."""
  for name in CONTESTS:
    for row in pq.read_table(folder / name / "test.parquet", columns=["reward_model"]).to_pylist():
      answer = row["reward_model"]["ground_truth"]
      yield name, "math", answer, answer
  for line in (folder / "gsm8k/test.jsonl").open(encoding="utf-8"):
    reference = json.loads(line)["answer"]
    yield "gsm8k", "gsm8k", reference, reference.rpartition("####")[2].strip().replace(",", "")


def grade_forms(answers: Iterable[tuple[str, str, str, str]], forms: Mapping[str, Mapping[str, Form]]) -> dict:
  """{set: {form: [right, all, references graded wrong]}}."""
  found: dict[str, dict[str, list]] = {}
  for name, kind, reference, answer in answers:
    for form, write in forms[kind].items():
      if (response := write(answer)) is not None:
        counts = found.setdefault(name, {}).setdefault(form, [0, 0, []])
        right = grade(kind, response, reference)
        counts[0], counts[1] = counts[0] + right, counts[1] + 1
        if not right:
          counts[2].append(reference if kind == "math" else answer)
  return found


def grade_hostile() -> tuple[int, float]:
  """How many of them count as right, and the longest that one took in seconds."""
  grade("math", "\\boxed{x}", "y")  # starting the worker is not part of an answer's time
  right, longest = 0, 0.0
  for kind, response, answer in HOSTILE:
    started = time.monotonic()
    right += grade(kind, response, answer)
    longest = max(longest, time.monotonic() - started)
  return right, longest


def main(_) -> None:
  found = grade_forms(read_answers(Path(_DATA.value)), {"math": MATH, "gsm8k": GSM8K})
  right, longest = grade_hostile()
  lines = ["| set | answers | responses | right | the form with the least |", "|---|---|---|---|---|"]
  for name, by_form in found.items():
    good, responses = (sum(counts[at] for counts in by_form.values()) for at in (0, 1))
    share, form = min((counts[0] / counts[1], form) for form, counts in by_form.items())
    answers, least = max(counts[1] for counts in by_form.values()), "–" if share == 1 else f"{form}: {share:.2%}"
    lines.append(f"| {name} | {answers:,} | {responses:,} | {good / responses:.2%} | {least} |")
  lines += ["", f"Wrong or hostile: {right} of {len(HOSTILE)} count as right; the longest took {longest:.1f} s.", ""]
  print(text := "\n".join(lines))
  for name, by_form in found.items():
    for form, (_, _, wrong) in by_form.items():
      if wrong:
        print(f"{name}, {form}: {wrong}")
  if _OUT.value:
    Path(f"{_OUT.value}.md").write_text(text)
    shares = {name: {form: counts[:2] for form, counts in forms.items()} for name, forms in found.items()}
    result = {"forms": shares, "hostile": {"all": len(HOSTILE), "right": right, "longest_seconds": longest}}
    Path(f"{_OUT.value}.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  app.run(main)
