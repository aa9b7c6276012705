"""docs/reliability.md from what the harnesses left: what holds, which test holds it, and what was tried to break it.

    python -m benchmarks.reliability

Every number is read from benchmarks/results: {kills,kills_two,fuzz,soak,shapes,pip_audit}.json; what was not run says
so.
"""

import json
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

_RESULTS = flags.DEFINE_string("results", "benchmarks/results", "folder of the JSON files")
_PAGE = flags.DEFINE_string("page", "docs/reliability.md", "the page")

# What holds, and the tests that hold it: FILE::NAME below tests/ or opd_jax/.
INVARIANTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
  (
    "The loss",
    "Loss and gradient are those of the definition over whole distributions",
    ("tests/training/test_step.py::test_loss_and_gradient_are_those_of_the_definition",),
  ),
  (
    "The loss",
    "They do not change with the split into micro-batches",
    ("tests/training/test_step.py::test_micro_batches_change_nothing",),
  ),
  (
    "The loss",
    "nor with padding, its token ids, the bucket, or the order of rows",
    (
      "tests/training/test_step.py::test_padding_and_row_order_change_nothing",
      "tests/test_scoring.py::test_column_t_predicts_completion_token_t",
    ),
  ),
  (
    "The loss",
    "nor with the number of devices, the layout of the mesh, or the number of processes",
    (
      "tests/training/test_step.py::test_eight_devices_compute_the_step_of_one",
      "tests/training/test_layouts.py::test_a_layout_changes_no_token_no_loss_and_no_gradient",
      "tests/training/test_processes.py::test_two_processes_of_four_devices_are_one_of_eight",
    ),
  ),
  (
    "The loss",
    "nor with recomputing layers",
    ("tests/training/test_step.py::test_remat_changes_nothing",),
  ),
  (
    "The loss",
    "A token that ends a row is in the loss, also where padding has the same id",
    (
      "tests/rollout/test_sampler.py::test_a_row_ends_with_the_first_end_of_sequence_inclusive",
      "tests/training/test_step.py::test_padding_and_row_order_change_nothing",
    ),
  ),
  (
    "The loss",
    "Vocabularies padded to different sizes work, and padding takes no mass",
    (
      "tests/training/test_step.py::test_loss_and_gradient_are_those_of_the_definition",
      "tests/rollout/test_token_sampling.py::test_padded_ids_are_never_drawn_and_take_no_mass",
      "tests/training/test_layouts.py::test_a_vocabulary_that_tensor_does_not_divide_is_split_all_the_same",
    ),
  ),
  (
    "The loss",
    "A teacher equal to the student gives no loss and no gradient, at any temperature",
    (
      "tests/training/test_step.py::test_teacher_equal_to_student_gives_no_loss_and_no_gradient",
      "tests/objectives/test_objective.py::test_teacher_equal_to_student_gives_zero",
    ),
  ),
  (
    "The loss",
    "Temperatures of sampling, student and teacher are three, and agree where they should",
    (
      "tests/objectives/test_objective.py::test_three_temperatures_have_three_names",
      "tests/rollout/test_sampler.py::test_behaviour_logprob_is_that_of_a_full_forward",
    ),
  ),
  (
    "The loss",
    "The teacher has no gradient and no optimizer state",
    (
      "opd_jax/divergence/api_test.py::test_only_loss_has_a_gradient_and_only_for_the_student",
      "tests/test_invariants.py::test_what_training_keeps_is_the_students_alone",
    ),
  ),
  (
    "Rollouts",
    "A row's tokens depend on seed, step and row alone: not on its neighbours, the bucket, the horizon or the mesh",
    (
      "tests/rollout/test_sampler.py::test_order_bucket_and_padding_change_no_token",
      "tests/rollout/test_sampler.py::test_step_and_seed_change_the_samples_and_nothing_else_does",
      "tests/rollout/test_sampler.py::test_every_horizon_runs_in_one_program_and_is_a_prefix_of_the_longest",
      "tests/rollout/test_sampler.py::test_a_sharded_batch_looks_for_its_end_rarely_and_writes_the_same",
    ),
  ),
  (
    "Rollouts",
    "Greedy tokens and logits are those of transformers",
    (
      "tests/rollout/test_sampler.py::test_greedy_over_64_tokens_equals_transformers",
      "tests/models/test_transformers_parity.py::test_logits_and_greedy_tokens_are_those_of_transformers",
    ),
  ),
  (
    "Resuming",
    "A run that was stopped and one that was not are the same, bit for bit; no step is counted twice",
    (
      "tests/training/test_run.py::test_ten_steps_equal_five_and_resume_and_five_bit_for_bit",
      "tests/training/test_run.py::test_a_run_killed_after_its_checkpoint_writes_no_step_twice",
    ),
  ),
  (
    "Resuming",
    "Each file of a checkpoint missing, cut, or with a flipped bit: the newest sound one is used, the other named",
    (
      "tests/training/test_checkpoint.py::test_each_file_in_turn",
      "tests/training/test_run.py::test_a_run_goes_on_from_before_a_damaged_checkpoint_and_ends_the_same",
    ),
  ),
  (
    "Resuming",
    "Where none is sound, one line says so, and nothing is touched",
    ("tests/training/test_checkpoint.py::test_where_none_is_sound_nothing_is_touched",),
  ),
  (
    "Resuming",
    "A full disk and a folder that cannot be written are one line, and cost no older checkpoint",
    (
      "tests/training/test_checkpoint.py::test_a_full_disk_is_one_line_and_costs_no_older_checkpoint",
      "tests/training/test_checkpoint.py::test_a_folder_that_cannot_be_written_is_one_line",
      "tests/telemetry/test_workdir.py::test_a_full_disk_is_one_line_and_the_next_start_mends_the_file",
    ),
  ),
  (
    "Resuming",
    "SIGTERM saves the step, in every process; a lost process ends the others with a line that names it",
    (
      "tests/training/test_processes.py::test_sigterm_saves_the_step_and_the_same_command_goes_on",
      "tests/training/test_processes.py::test_a_lost_process_ends_the_other_within_a_minute",
    ),
  ),
  (
    "Resuming",
    "One run at a time writes to a workdir; marks are added beside it; rows without their checkpoints are not dropped",
    (
      "tests/training/test_run.py::test_a_second_run_is_kept_out_of_the_workdir",
      "tests/training/test_run.py::test_of_two_runs_that_were_opened_in_one_workdir_the_second_to_begin_is_refused",
      "tests/telemetry/test_workdir.py::test_marks_are_added_beside_a_run_that_goes_on_and_mend_what_a_dead_one_left",
      "tests/training/test_run.py::test_rows_whose_checkpoints_are_gone_are_not_dropped",
    ),
  ),
  (
    "Numbers",
    "NaN, infinities, spikes and empty batches: the update is skipped, bit for bit, and counted",
    (
      "tests/training/test_faults.py::test_an_update_that_meets_a_number_that_is_none_is_skipped",
      "tests/training/test_faults.py::test_a_gradient_that_is_too_large_is_skipped",
      "tests/training/test_faults.py::test_a_batch_without_a_token_is_skipped",
    ),
  ),
  (
    "Numbers",
    "Several in a row end the run with the last good state saved; the first operation that makes a NaN is named",
    (
      "tests/training/test_faults.py::test_a_run_of_skips_ends_with_one_line_and_keeps_what_is_good",
      "tests/training/test_faults.py::test_the_first_operation_that_makes_a_nan_is_named",
    ),
  ),
  (
    "Numbers",
    "A teacher that changes in memory is found by its canary, and no checkpoint is made of what it taught since",
    (
      "tests/training/test_canary.py::test_a_teacher_that_changes_in_memory_stops_the_run_and_no_checkpoint_is_made_of_it",
    ),
  ),
  (
    "Input",
    "Only safetensors are read, never pickles; no code of a checkpoint runs",
    (
      "tests/test_fuzz.py::test_a_pickle_is_never_read",
      "tests/models/test_loading.py::test_hub_id_is_fetched_at_its_revision_without_pickles",
      "tests/data/test_hf_tokenizer.py::test_code_of_a_checkpoint_is_never_run",
    ),
  ),
  (
    "Input",
    "Whatever stood in a file, the line that refuses it is one, bounded, and safe for a terminal",
    (
      "tests/test_fuzz.py::test_bad_input_is_refused_in_one_line_and_touches_nothing",
      "tests/test_fuzz.py::test_a_message_is_one_line_of_bounded_length_that_a_terminal_can_show",
    ),
  ),
  (
    "Input",
    "The report shows what a model or a data set wrote, and does not obey it",
    ("tests/telemetry/test_report.py::test_what_a_model_wrote_is_shown_and_not_obeyed",),
  ),
  (
    "Input",
    "Tokens of the hub and of Weights & Biases reach no file of a run, no log and no launch script",
    (
      "tests/test_commands.py::test_no_secret_of_the_environment_is_written_down",
      "tests/launch/test_manifests.py::test_no_token_is_written_down",
    ),
  ),
)

_HEAD = """\
# What a run can rely on

What holds, the test that holds it, and what was done to break it. The invariants are under test in every commit; the
harnesses behind the other sections take minutes to hours, and are run by hand:

```bash
python -m benchmarks.kills --out=benchmarks/results/kills                            # one process
python -m benchmarks.kills --out=benchmarks/results/kills_two --processes=2          # two, of four devices each
python -m benchmarks.fuzz --out=benchmarks/results/fuzz
python -m benchmarks.soak long --out=benchmarks/results/soak
python -m benchmarks.soak shapes --out=benchmarks/results/shapes
python -m benchmarks.reliability                                                     # this page, of their numbers
```

All of it was run on CPUs; nothing of it on TPUs or GPUs."""


def table(head: list[str], rows: list[list[object]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def invariants() -> str:
  parts = []
  for title in dict.fromkeys(title for title, _, _ in INVARIANTS):
    rows = [
      [what, "<br>".join(f"`{test.split('::')[1]}` in {test.split('::')[0]}" for test in tests)]
      for each, what, tests in INVARIANTS
      if each == title
    ]
    parts.append(f"### {title}\n\n{table(['what holds', 'held by'], rows)}")
  return "\n\n".join(parts)


def kills(found: dict) -> str:
  differing = [difference for difference in found["differences"] if difference]
  alone = [kill["survivors_seconds"] for kill in found["at"]]
  phases = ", ".join(f"{count} {WHEN[phase]}" for phase, count in found["phases"].items())
  runs = "one run" if found["runs"] == 1 else f"{found['runs']} runs"
  lines = [
    f"{found['kills']} times SIGKILL over {runs} of {found['steps']} steps with a checkpoint every "
    f"{found['checkpoint_every']}, seed {found['seed']}: {phases}. {found['half_written']} of them left a checkpoint "
    "half-written."
  ]
  if found["processes"] > 1:
    lines.append(
      f"One of {found['processes']} processes was killed each time; the others ended by themselves within "
      f"{max(alone):.0f} seconds, but for {found['survivors_killed']} that waited for one that had not joined yet."
    )
  same = "every one is the untouched run: each row but for clocks, each array of the last checkpoint bit for bit"
  lines.append(f"Of the finished runs {same if not differing else f'{len(differing)} differ: {differing}'}.")
  return " ".join(lines)


WHEN = {
  "start": "between start and first step",
  "step": "after a new row",
  "save": "while a checkpoint was being written",
}


def fuzz(found: dict) -> str:
  here, apart = found["in_process"], found["processes"]
  limits = f"{found['limits']['seconds']:.0f} seconds and {found['limits']['memory'] >> 30} GiB"
  faults = len(here["faults"]) + len(apart["faults"])
  outcome = "without a fault" if not faults else f"**with {faults} faults**"
  rows = [
    [kind, sum(count.values()), count.get("refused", 0), count.get("accepted", 0), count.get("fault", 0)]
    for kind, count in here["kinds"].items()
  ]
  return "\n\n".join(
    [
      f"{here['inputs']} different inputs in one process, seed {found['seed']}, Python {found['python']}: "
      f"{here['refused']} were refused with one line and status 2, {here['accepted']} were whole after all, {outcome}. "
      f"The longest took {here['longest_seconds']:.1f} seconds. {apart['inputs']} of them as real processes: "
      f"{apart['refused']} refused, the longest in {apart['longest_seconds']:.0f} seconds, with at most "
      f"{apart['largest_memory'] >> 20} MiB. A fault would have been a traceback, another status, a second line, a "
      f"file touched, or more than {limits}.",
      table(["input", "different", "refused", "whole", "faults"], rows),
    ]
  )


def soak(found: dict) -> str:
  median, most = found["median_by_quarter"], found["most_by_quarter"]
  resident = ["resident memory, median, MiB", *(f"{value / 2**20:.0f}" for value in median["resident"])]
  rows = [resident, *([f"{name} open, most", *most[name]] for name in ("files",)), ["threads, most", *most["threads"]]]
  flat = [name for name, holds in found["flat"].items() if not holds]
  verdict = "All of it is flat." if not flat else f"**Not flat: {', '.join(flat)}.**"
  return "\n\n".join(
    [
      f"{found['steps']:,} steps of the embedded task in {found['seconds']:,} seconds, looked at {found['looks']:,} "
      f"times. {found['compiles']} programs compiled, none after the first quarter; checkpoints "
      f"{', '.join(map(str, found['checkpoints_left']))} left. {verdict}",
      table(["quarter of the run", *"1234"], rows),
    ]
  )


def shapes(found: dict) -> str:
  rows = [
    [name, " + ".join(f"{n:,}" for n in each["tokens"]), f"{each['resident'] >> 20:,}"] for name, each in found.items()
  ]
  return "Two steps each, from start to report, of models that are tiny otherwise.\n\n" + table(
    ["shape", "tokens", "resident memory, MiB"], rows
  )


def supply(results: Path) -> str:
  """What is pinned, read from the locks; and what is known of it, where it was asked."""
  locks = sorted((results.parents[1] / "requirements").glob("*.txt"))
  rows = [
    [f"`requirements/{lock.name}`", lock.read_text().count("=="), lock.read_text().count("--hash")] for lock in locks
  ]
  return "\n\n".join(
    [
      "`requirements/` pins every package, those of packages too, with the hashes of its files: "
      "`pip install --require-hashes -r requirements/py311.txt`, or `-dev` with what the tests need. Lower bounds "
      "alone are in `pyproject.toml` and `requirements.txt`. The wheel (`pip wheel .`) runs without the source tree "
      "and has the configs in it.",
      table(["lock", "packages", "hashes"], rows),
      _audited(results / "pip_audit.json"),
    ]
  )


def _audited(file: Path) -> str:
  if not file.exists():
    return "No list of known vulnerabilities was asked about them yet."
  found = json.loads(file.read_text())
  vulnerable = ", ".join(found["vulnerable"]) or "none"
  return f"Known to be vulnerable, by pip-audit {found['pip_audit']} on {found['date']}: {vulnerable}."


SECTIONS: tuple[tuple[str, str, Callable[[dict], str]], ...] = (
  ("Killed anywhere, one process", "kills", kills),
  ("Killed anywhere, two processes of four devices", "kills_two", kills),
  ("Bad input", "fuzz", fuzz),
  ("A long run", "soak", soak),
  ("Wide and narrow shapes", "shapes", shapes),
)


def page(results: Path) -> str:
  parts = [_HEAD, f"## Invariants\n\n{invariants()}"]
  for title, name, show in SECTIONS:
    file = results / f"{name}.json"
    text = show(json.loads(file.read_text())) if file.exists() else "Not run to its end yet."
    parts.append(f"## {title}\n\n{text}")
  parts.append(f"## What it stands on\n\n{supply(results)}")
  return "\n\n".join(parts) + "\n"


def main(_) -> None:
  Path(_PAGE.value).write_text(page(Path(_RESULTS.value).absolute()))
  print(f"written to {_PAGE.value}")


if __name__ == "__main__":
  app.run(main)
