import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.grading.forms import GSM8K, MATH
from benchmarks.grading.hostile import HOSTILE
from opd_jax.errors import InputError
from opd_jax.evaluation import grade, graders, register

CALL_SECONDS = 5.0


@pytest.fixture(scope="module")
def shared():
  folder = Path(os.environ.get("OPD_SHARED", Path(__file__).parents[2] / "../shared")) / "data"
  if not folder.is_dir():
    pytest.skip("no shared data: set OPD_SHARED")
  return folder


@pytest.fixture(scope="module")
def contest(shared):
  """(prompt, reference answer) of MATH-500, AIME24, AIME25 and AMC23."""
  return [
    (row["prompt"][0]["content"], row["reward_model"]["ground_truth"])
    for name in ("math500", "aime24", "aime25", "amc23")
    for row in pq.read_table(shared / name / "test.parquet").to_pylist()
  ]


@pytest.fixture
def short_limit(monkeypatch):
  monkeypatch.setattr(graders, "SECONDS", 0.8)


def drawn(write, answers, count=30):
  """(answer, response) of so many answers that a form fits, the same ones every time."""
  fitting = [(answer, response) for answer in answers if (response := write(answer)) is not None]
  return random.Random(0).sample(fitting, min(count, len(fitting)))


def test_reference_answers_are_right_in_every_form(contest):
  """A sample; `python -m benchmarks.grading` grades them all."""
  answers = [answer for _, answer in contest]
  samples = {form: drawn(write, answers) for form, write in MATH.items()}
  assert all(len(sample) >= 5 for sample in samples.values())
  graded = [
    (form, answer, grade("math", response, answer)) for form, sample in samples.items() for answer, response in sample
  ]
  wrong = [(form, answer) for form, answer, right in graded if not right]
  assert len(graded) >= 500 and len(wrong) <= 0.01 * len(graded), wrong


def test_one_reference_answer_is_not_another(contest):
  pairs = [(one, other) for (_, one), (_, other) in itertools.pairwise(contest) if one.strip(".0") != other.strip(".0")]
  pairs.remove(("5", "x=5"))
  assert [pair for pair in pairs[::8] if grade("math", f"\\boxed{{{pair[0]}}}", pair[1])] == []


def test_repeated_prompts_are_wrong(contest):
  assert [answer for prompt, answer in contest[::6] if grade("math", prompt, answer)] == []


def test_gsm8k_references_are_right(shared):
  rows = [json.loads(line) for line in (shared / "gsm8k/test.jsonl").open(encoding="utf-8")]
  assert len(rows) == 1319
  references = {row["answer"].rpartition("####")[2].strip().replace(",", ""): row["answer"] for row in rows}
  assert all(grade("gsm8k", row["answer"], row["answer"]) for row in rows)
  for form, write in GSM8K.items():
    for value, response in drawn(write, references, 100):
      assert grade("gsm8k", response, references[value]), (form, response)
      assert not grade("gsm8k", write(str(int(value) + 1)), references[value]), (form, response)
  assert not any(grade("gsm8k", row["question"], row["answer"]) for row in rows if row["question"].endswith("?"))


@pytest.mark.parametrize(
  ("response", "answer"),
  [
    ("\\boxed{1+\\sqrt{19}, 1-\\sqrt{19}}", "1 \\pm \\sqrt{19}"),
    ("\\boxed{-2, 1}", "1,-2"),
    ("\\boxed{x=1 \\text{ or } x=-2}", "1,-2"),
    ("\\boxed{[-2,7]}", "x \\in [-2,7]"),
    ("\\boxed{(x-1)(x+1)}", "x^2-1"),
    ("\\boxed{864\\text{ in}^2}", "864 \\mbox{ inches}^2"),
    ("\\boxed{\\frac{270}{7}^\\circ}", "\\frac{270}7\\text{ degrees}"),
    ("\\boxed{1.8}", "1\\frac{4}{5}"),
    ("\\boxed{36 \\text{ dollars}}", "\\$36"),
    ("\\boxed{3.0}", "3"),
    ("The answer is Evelyn.", "\\text{Evelyn}"),
    ("\\boxed{C}", "\\text{(C)}"),
    ("\\boxed{204}", "204_5"),
    ("\\boxed{2516_{8}}", "2516_8"),
    ("\\boxed{204_{10}}", "204"),
    ("\\boxed{x \\neq 3}", "x \\ne 3"),
    ("\\boxed{\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("The minimum is \\(\\frac{3}{4}\\).", "\\frac34"),
    ("So\n\\[\nx = 5\n\\]", "5"),
    ("So the graph is an **Ellipse**.", "\\text{ellipse}"),
    ("\\boxed{√(x+1) + 2√3}", "\\sqrt{x+1} + 2\\sqrt{3}"),
    ("The answer is 12π cm².", "12\\pi"),
    ("\\boxed{x ≠ 3}", "x \\ne 3"),
  ],
)
def test_other_ways_to_write_the_same_are_right(response, answer):
  assert grade("math", response, answer)


@pytest.mark.parametrize(
  ("response", "answer", "right"),
  [
    ("B", "B", True),
    ("(B)", "B", True),
    ("**B**", "(B)", True),
    ("B) Paris", "B", True),
    ("Answer: B. Paris", "B", True),
    ("The answer is (B).", "B", True),
    ("\\boxed{\\text{B}}", "B", True),
    ("\\textbf{(B)} 12", "B", True),
    ("Paris.\n\nFinal answer: option B", "B", True),
    ("C and A", "AC", True),
    ("\\boxed{A, C}", "A, C", True),
    ("The answer is (B) or (C)", "B", False),
    ("Banana", "B", False),
    ("A", "B", False),
    ("ABCD", "B", False),
    ("BB", "B", False),
  ],
)
def test_choices(response, answer, right):
  assert grade("choice", response, answer) is right


def test_exact_forgives_white_space_only():
  assert grade("exact", " 1=1;\n2=3;  ", "1=1; 2=3;")
  assert grade("exact", "<think>no</think>yes", "yes")
  for response in ("1=1;2=3;", "1=1; 2=3; 3", "", "X"):
    assert not grade("exact", response, "1=1; 2=3;")


@pytest.mark.parametrize(
  ("response", "answer"),
  [
    ("\\boxed{204_6}", "204_5"),
    ("\\boxed{52_{10}}", "52_8"),
    ("\\boxed{(3,4)}", "(3,4]"),
    ("\\boxed{(-1,2)}", "(2,-1)"),
    ("\\boxed{1,2}", "1,-2"),
    ("\\boxed{x = 3}", "x \\ne 3"),
    ("\\boxed{2x+3}", "y = 2x - 3"),
    ("\\boxed{\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("\\boxed{1 \\frac{4}{5}}", "\\frac{4}{5}"),
    ("The answer is Edward.", "\\text{Evelyn}"),
    ("\\boxed{B}", "\\text{(C)}"),
    ("So it must be Edward.", "\\text{Evelyn}"),
    ("So it is not east.", "\\text{east}"),
    ("It is either odd or even.", "\\text{even}"),
    ("So it must be (c).", "\\text{(C)}"),
    ("\\boxed{x ≤ 3}", "x \\ge 3"),
    ("\\boxed{x ≠ 3}", "x = 3"),
    ("\\boxed{2π}", "2"),
  ],
)
def test_near_misses_are_wrong(response, answer):
  assert not grade("math", response, answer)


def test_wrong_and_hostile_answers_are_wrong_and_take_seconds_at_most(short_limit):
  assert len(HOSTILE) >= 60
  grade("math", "\\boxed{x}", "y")  # starting the worker is not part of an answer's time
  for kind, response, answer in HOSTILE:
    start = time.monotonic()
    assert not grade(kind, response, answer), (kind, response[:80])
    assert time.monotonic() - start < CALL_SECONDS, (kind, response[:80])
  assert grade("math", "\\boxed{6/8}", "\\frac{3}{4}")


def test_the_limit_itself_leaves_a_call_below_five_seconds():
  start = time.monotonic()
  assert not grade("math", "\\boxed{9^{9^{9^{9}}}}", "\\frac{3}{4}")
  assert graders.SECONDS <= time.monotonic() - start < CALL_SECONDS


def test_an_empty_reference_is_never_reached():
  for kind in ("math", "gsm8k", "exact", "choice"):
    assert not grade(kind, "", "")
    assert not grade(kind, "\\boxed{}", " ")


def test_an_unknown_kind_names_the_nearest():
  with pytest.raises(InputError, match=r"unknown grader `maths` \(did you mean `math`\?\); known: math, gsm8k"):
    grade("maths", "1", "1")


def elsewhere(response, answer):
  print("graders may print")
  return response != str(os.getpid())


def endless(response, answer):
  while True:
    pass


def greedy(response, answer):
  return len(bytes(8 << 30)) > 0


def leaving(response, answer):
  os._exit(0)


def raising(response, answer):
  raise KeyError(response)


@pytest.fixture
def own(monkeypatch):
  """`register`, undone after the test."""
  monkeypatch.setattr(graders, "_graders", dict(graders._graders))
  return register


def test_an_own_grader_runs_in_another_process_and_cannot_end_this_one(own, short_limit, caplog):
  for function in (elsewhere, endless, greedy, leaving, raising):
    own(function.__name__, function)
  assert grade("elsewhere", str(os.getpid()), "x")
  for name in ("endless", "greedy", "leaving", "raising"):
    assert not grade(name, "what it got", "x")
    assert grade("elsewhere", str(os.getpid()), "x")
  assert "KeyError: 'what it got'" in caplog.text
  assert "MemoryError" in caplog.text


def test_an_own_grader_that_no_process_can_import_runs_here(own):
  seen = []
  own("here", lambda response, answer: seen.append(response) or response == answer)
  assert grade("here", "a", "a")
  assert not grade("here", "b", "a")
  assert seen == ["a", "b"]


def test_built_in_names_are_taken(own):
  with pytest.raises(InputError, match="`math` is a built-in grader"):
    own("math", elsewhere)


def test_a_killed_worker_is_replaced():
  assert grade("math", "\\boxed{6/8}", "\\frac{3}{4}")
  os.killpg(graders._worker._process.pid, signal.SIGKILL)
  assert grade("math", "\\boxed{6/8}", "\\frac{3}{4}")


def test_an_interrupted_call_leaves_no_reply_to_the_next(monkeypatch):
  assert grade("math", "\\boxed{6/8}", "\\frac{3}{4}")

  def interrupted(*arguments):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(graders.select, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
      grade("math", "\\boxed{6/8}", "\\frac{3}{4}")
  assert not grade("math", "\\boxed{6/9}", "\\frac{3}{4}")
  assert grade("math", "\\boxed{6/8}", "\\frac{3}{4}")


def test_threads_get_their_own_answers():
  results = {}

  def work(k):
    results[k] = [grade("math", f"\\boxed{{{n}/{2 * n}+x}}", "\\frac{1}{2}+x" if n % 2 else "x") for n in range(1, 9)]

  threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == {k: [True, False] * 4 for k in range(4)}


UNGUARDED = """
import os
from opd_jax.evaluation import grade
print("once", flush=True)
print(grade("math", "\\\\boxed{6/8}", "\\\\frac{3}{4}"), flush=True)
if os.fork() == 0:  # as a data loader's process would
  print(grade("math", "\\\\boxed{6/9}", "\\\\frac{3}{4}"), flush=True)
  os._exit(0)
os.wait()
print(grade("math", "\\\\boxed{6/8}", "\\\\frac{3}{4}"))
"""


@pytest.mark.parametrize("from_stdin", [True, False])
def test_a_script_without_a_main_guard_and_one_without_a_file_can_grade(tmp_path, from_stdin):
  (tmp_path / "script.py").write_text(UNGUARDED, encoding="utf-8")
  arguments = {"input": UNGUARDED} if from_stdin else {}
  done = subprocess.run(
    [sys.executable, "-" if from_stdin else str(tmp_path / "script.py")],
    capture_output=True,
    text=True,
    timeout=120,
    env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    **arguments,
  )
  assert done.stdout.split() == ["once", "True", "False", "True"], done.stderr


def running(group):
  """Ids of the processes of a group, those left out that only wait for their parent to notice that they ended."""
  stats = [
    (file.parent.name, file.read_text().rpartition(")")[2].split()) for file in Path("/proc").glob("[0-9]*/stat")
  ]
  return [pid for pid, (state, _, its_group, *_) in stats if int(its_group) == group and state != "Z"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_nothing_is_left_running_when_the_caller_is_killed(tmp_path):
  script = """
from opd_jax.evaluation import grade, graders
grade("math", "\\\\boxed{6/8}", "\\\\frac{3}{4}")
print(graders._worker._process.pid, flush=True)
grade("math", "\\\\boxed{9^{9^{9^{9}}}}", "\\\\frac{3}{4}")
"""
  environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
  caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
  group = int(caller.stdout.readline())
  assert len(running(group)) >= 1
  time.sleep(0.3)
  caller.kill()
  caller.wait()
  caller.stdout.close()
  deadline = time.monotonic() + 30
  while running(group) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert running(group) == []
