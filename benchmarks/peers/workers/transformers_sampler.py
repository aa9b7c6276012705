"""transformers' `generate` in eager PyTorch, as TRL calls it."""

import torch
from meter import answer, read_job, time_generation
from transformers import AutoModelForCausalLM


def main() -> None:
  job = read_job()
  torch.set_num_threads(1)
  model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
  prompts = torch.tensor(job["prompts"])
  arguments = {"attention_mask": torch.ones_like(prompts), "pad_token_id": 0, "eos_token_id": None}

  def generate(horizon: int, greedy: bool):
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with torch.no_grad():
      tokens = model.generate(prompts, max_new_tokens=horizon, **how, **arguments)
    return tokens[:, prompts.shape[1] :]

  answer(["transformers", "torch"], modes=time_generation(generate, job))


if __name__ == "__main__":
  main()
