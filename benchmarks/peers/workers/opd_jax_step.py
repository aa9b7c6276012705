"""A step of our trainer: the tokens and the loss of the first one, or its CPU-seconds and memory."""

import tempfile
from pathlib import Path

import jax
import numpy as np
from meter import answer, cpu_seconds, peak_bytes, read_job

from opd_jax import models
from opd_jax.config import Config, from_config_dict
from opd_jax.data import PromptSet, PromptStream, pad_left
from opd_jax.distributed import make_mesh, place_rows
from opd_jax.models import read_architecture
from opd_jax.pair import Pair
from opd_jax.programs import ProgramTable
from opd_jax.telemetry.metrics import to_floats
from opd_jax.training.batch import Batch
from opd_jax.training.checkpoint import Progress
from opd_jax.training.pipeline import Pipeline
from opd_jax.training.run import OpenRun
from opd_jax.training.state import Frozen, init_state, make_optimizer
from opd_jax.training.step import define_programs


def make_run(job: dict, steps: int) -> OpenRun:
  """A run without a tokenizer: prompts are ids, and nothing ends a completion."""
  config: Config = from_config_dict(
    {
      "steps": steps,
      "student": {"path": job["student"]},
      "teacher": {"path": job["teacher"]},
      "data": {"path": "prompts.json"},
      "rollout": {"prompts_per_step": job["rows"], "max_prompt": len(job["prompts"][0])},
      "horizon": {"kind": "full", "max": job["horizon"], "buckets": (job["horizon"],), "compile_ahead": False},
      "objective": {"kind": "reverse_kl"},
      "optimizer": {"learning_rate": job["learning_rate"]},
    }
  )
  student, teacher = read_architecture(job["student"]), read_architecture(job["teacher"])
  pair = Pair(None, (), (), student.vocab_size, student, teacher, findings=(), teacher_tokenizer=None)
  mesh = make_mesh((1, 1, 1), jax.devices())
  table = ProgramTable(mesh)
  define_programs(table, config, pair.eos_ids, pair.vocab_size)
  ids = tuple(map(tuple, job["prompts"]))
  prompts = PromptSet(ids, ("",) * len(ids), ("",) * len(ids), 0)
  return OpenRun(
    config=config,
    workdir=Path(tempfile.mkdtemp()),
    mesh=mesh,
    pair=pair,
    student_path=job["student"],
    teacher_path=job["teacher"],
    reference_path="",
    prompts=prompts,
    stream=PromptStream([len(ids)], [1.0], config.seed),
    evaluator=None,
    horizon=config.horizon.build(),
    table=table,
  )


def load(run: OpenRun):
  teacher = models.load(run.teacher_path, dtype="float32", mesh=run.mesh)
  student = models.load(run.student_path, dtype="float32", mesh=run.mesh)
  return init_state(student, make_optimizer(run.config)), Frozen(teacher)


def write(run: OpenRun, student, prompts: list[list[int]]):
  """A rollout of the first prompts, at the full horizon."""
  rows, H = run.config.rows, run.config.horizon.max
  batch = (*pad_left(prompts[:rows], run.config.rollout.max_prompt), np.arange(rows, dtype=np.uint32))
  prompts_bp, mask_bp, rows_r = place_rows(run.mesh, batch)
  decoding = run.table.run("decode_layout", 0, student)
  return run.table.run("rollout", H, decoding, prompts_bp, mask_bp, np.int32(H), np.uint32(0), np.uint32(0), rows_r)


def loss_of_first_step(job: dict) -> None:
  run = make_run(job, 1)
  state, frozen = load(run)
  rollout = write(run, state.student, job["prompts"])
  tokens = np.asarray(rollout.tokens_bs).tolist()
  _, metrics = run.table.run("update", run.config.horizon.max, state, frozen, Batch(rollout))
  numbers = to_floats(metrics)
  answer(["jax"], tokens=tokens, loss=numbers["loss"], grad_norm=numbers["grad_norm"])


def time_steps(job: dict) -> None:
  run = make_run(job, job["steps"] + 1)
  state, frozen = load(run)
  steps = Pipeline(run, frozen, state, Progress(0, 0, 0, None, ""))
  del state  # used up by the first step
  loaded = peak_bytes()
  started = cpu_seconds()
  steps.advance()
  steps.drain()
  first = cpu_seconds() - started
  started = cpu_seconds()
  for _ in range(job["steps"]):
    steps.advance()
  steps.drain()
  step = (cpu_seconds() - started) / job["steps"]
  peak = peak_bytes()
  started = cpu_seconds()
  for _ in range(job["steps"]):
    jax.block_until_ready(write(run, steps.state.student, job["prompts"]))
  generation = (cpu_seconds() - started) / job["steps"]
  answer(["jax"], first=first, step=step, generation=generation, peak_bytes=peak, loaded_bytes=loaded)


if __name__ == "__main__":
  given = read_job()
  if given["steps"]:
    time_steps(given)
  else:
    loss_of_first_step(given)
