"""Our sampler. Either a bucket for each horizon, or one bucket, that of the longest, for all."""

import numpy as np
from meter import answer, read_job, time_generation

from opd_jax import models
from opd_jax.rollout import generate as generate_completions


def main() -> None:
  job = read_job()
  model = models.load(job["model"], dtype="float32")
  longest = max(job["horizons"])

  def generate(horizon: int, greedy: bool):
    rollout = generate_completions(
      model,
      job["prompts"],
      horizon=horizon,
      bucket=longest if job["one_bucket"] else horizon,
      temperature=0.0 if greedy else 1.0,
      seed=0,
      eos_ids=(),
    )
    return np.asarray(rollout.completions_bs)[:, :horizon]

  answer(["jax"], modes=time_generation(generate, job))


if __name__ == "__main__":
  main()
