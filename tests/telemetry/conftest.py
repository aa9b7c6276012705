"""A fabricated workdir: what a short run with every kind of row leaves behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from opd_jax.telemetry.workdir import RunLog, write_command, write_config

HOSTILE = "<script>alert(1)</script>\"'&<img src=http://evil.example/x onerror=alert(2)> {{ 7*7 }}"


@pytest.fixture
def hostile() -> str:
  """The text that a fabricated run's prompts, completions, answers, settings and set names hold."""
  return HOSTILE


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
  """make_run(name, steps=12, kind="progressive") -> the workdir of a run whose every text is hostile."""

  def make(name: str = "run", steps: int = 12, kind: str = "progressive") -> Path:
    workdir = tmp_path / name
    horizon = {"kind": kind, "max": 64, "rho": 0.25, "start": 16, "increment": 16, "every": 4, "buckets": [32, 64]}
    write_config(workdir, {"seed": 0, "steps": steps, "horizon": horizon, "student": {"path": HOSTILE}})
    write_command(workdir, "opd_jax.train", [f"--config.student.path={HOSTILE}"])
    with RunLog(workdir, tensorboard=False) as log:
      for step in (0, steps):
        log.evaluation(evaluation(step, "student", 0.25 + 0.5 * (step > 0)))
        log.samples(
          {
            "step": step,
            "set": HOSTILE,
            "model": "student",
            "prompt": [{"role": "user", "content": f"question {number} {HOSTILE}"}],
            "completion": f"answer {number} of step {step} {HOSTILE}",
            "answer": HOSTILE,
            "correct": step > 0 and number > 0,
          }
          for number in range(6)
        )
      log.evaluation(evaluation(0, "teacher", 0.85))
      for step in range(1, steps + 1):
        horizon = min(64, 16 + 16 * ((step - 1) // 4))
        log.step(
          {
            "step": step,
            "loss": float("nan") if step == 2 else 1.0 / step,
            "horizon": horizon,
            "bucket": 32 if horizon <= 32 else 64,
            "tokens": 100,
            "compiles": 2 if horizon <= 32 else 4,
            "unplanned_compiles": 0,
            "seconds_step": 1.0,
            "seconds_rollout": 0.5,
            "seconds_update": 0.25,
            "completion_length": 0.5 * horizon,
            "truncated": 0.5,
            "loss_by_position": [1.0 / step, 0.5 / step, float("nan"), 0.0],
          }
        )
    return workdir

  return make


def evaluation(step: int, model: str, accuracy: float) -> dict:
  return {
    "step": step,
    "set": HOSTILE,
    "model": model,
    "k": 1,
    "temperature": 0.0,
    "accuracy": accuracy,
    "stderr": 0.03,
    "seconds": 0.5,
  }
