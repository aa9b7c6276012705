"""What the word `runlocal` makes of a config: the same path, method and objective on the embedded task, in a minute."""

RUNLOCAL = {
  "runlocal": {
    "steps": 4,
    "student.path": "arithmetic:uniform/student",
    "teacher.path": "arithmetic:uniform/teacher",
    "data.path": "arithmetic:uniform/train.jsonl",
    "data.mixture": (),
    "data.system": "",
    "data.suffix": "",
    "data.thinking": "",
    "data.teacher_template": "",
    "data.prompt_field": "prompt",
    "rollout.prompts_per_step": 8,
    "rollout.samples_per_prompt": 1,
    "rollout.max_prompt": 64,
    "horizon.max": 128,
    "horizon.start": 32,
    "horizon.increment": 32,
    "horizon.every": 1,
    "horizon.buckets": (32, 128),
    "objective.mask_first": (),  # its tokenizer has other ones
    "optimizer.micro_batches": 1,
    "mesh.tensor": 1,
    "eval.path": "",
    "eval.sets": (),
    "checkpoint.every": 4,
  }
}
