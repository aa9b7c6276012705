"""The same judge for all: KL(student || teacher) in nats a token, on what each student writes to held-out prompts.

Completions are sampled at temperature 1 at the full horizon, with the same random keys for every student.
"""

import jax
from meter import answer, read_job

from opd_jax import models
from opd_jax.data import load_tokenizer, stop_ids
from opd_jax.objectives import Call, Reading, TokenWeights, diverge
from opd_jax.rollout import generate
from opd_jax.scoring import score


def main() -> None:
  job = read_job()
  tokenizer = load_tokenizer(job["teacher"])
  prompts = [tokenizer.encode_prompt(text) for text in job["prompts"]]
  eos_ids = stop_ids(job["teacher"], tokenizer)
  teacher = models.load(job["teacher"], dtype="float32")

  @jax.jit
  def divergence(student, rollout):
    context = (rollout.prompts_bp, rollout.prompt_mask_bp, rollout.completions_bs, rollout.completion_mask_bs)
    call = Call(TokenWeights()(rollout.completions_bs, rollout.completion_mask_bs), "reverse_kl")
    readings = (Reading(score(model, *context), model.head_vd) for model in (student, teacher))
    return diverge(call, *readings, rollout.completions_bs, tokenizer.size).loss

  H, values = job["horizon"], []
  for path in job["students"]:
    student = models.load(path, dtype="float32")
    rollout = generate(student, prompts, horizon=H, bucket=H, temperature=1.0, seed=1, eos_ids=eos_ids)
    values.append(float(divergence(student, rollout)))
  answer(["jax"], kl=values)


if __name__ == "__main__":
  main()
