"""Which values of the fields go together."""

from opd_jax.config.fields import STUDENT, Config, Lora
from opd_jax.config.values import shown
from opd_jax.divergence import REPAIRS, SUPPORTS
from opd_jax.errors import InputError, nearest

DTYPES = ("float32", "bfloat16")
SELECTIONS = ("", "entropy", "divergence")
SCHEDULES = ("constant", "cosine", "linear")
HORIZONS = ("full", "truncated", "progressive", "reliability", "probe", "change_point", "random")
_ON_RUNGS = ("reliability", "probe", "change_point", "random")  # horizons that take their lengths from the ladder
_MOST_STEPS, _LONGEST = 1_000_000, 2**20  # schedules and ladders are written out
_MOST_ROWS = 2**20  # of a step, and of a batch of an evaluation
_MOST_COMPACTIONS = 4  # to a sixteenth of the rows: beyond it a step costs its weights alone


def check_together(config: Config) -> None:
  """What types cannot say, one rule a line: (holds, field, what it must be). Raises InputError for the first that does
  not hold."""
  c = config
  for name, value, choices in (
    ("student.dtype", c.student.dtype, DTYPES),
    ("teacher.dtype", c.teacher.dtype, DTYPES),
    ("reference.dtype", c.reference.dtype, DTYPES),
    ("data.thinking", c.data.thinking, ("", "on", "off")),
    ("data.teacher_template", c.data.teacher_template, ("", "own")),
    ("horizon.kind", c.horizon.kind, HORIZONS),
    ("objective.support", c.objective.support, ("", *SUPPORTS)),
    ("objective.repair", c.objective.repair, REPAIRS),
    ("objective.select_by", c.objective.select_by, SELECTIONS),
    ("optimizer.schedule", c.optimizer.schedule, SCHEDULES),
    ("log.wandb_mode", c.log.wandb_mode, ("", "online", "offline")),
  ):
    if value not in choices:
      known = ", ".join(choice or "''" for choice in choices)
      raise InputError(f"config.{name} is {value!r}{nearest(value, choices)}; known: {known}")
  positive = "at least 1"
  rules = (
    (c.steps >= 1, "steps", positive),
    (c.steps <= _MOST_STEPS, "steps", f"at most {_MOST_STEPS:,}"),
    (0 <= c.seed < 2**31, "seed", "from 0 to 2^31 - 1"),
    (bool(c.student.path), "student.path", "a Hugging Face folder or hub id"),
    (c.student.lora.rank >= 0, "student.lora.rank", "0 (off) or more"),
    (
      c.student.lora.rank > 0 or c.student.lora == Lora(),
      "student.lora.rank",
      "at least 1 where its neighbours are set",
    ),
    (c.student.lora.alpha > 0, "student.lora.alpha", "above 0"),
    (c.student.lora.rank == 0 or c.teacher.ema == 0, "teacher.ema", "0 under student.lora: it follows whole weights"),
    (bool(c.teacher.path or c.teacher.routes), "teacher.path", "a Hugging Face folder or hub id"),
    (not (c.teacher.path and c.teacher.routes), "teacher.routes", "empty where teacher.path is given"),
    (len(c.teachers) >= len(c.teacher.routes), "teacher.routes", "of names that differ"),
    (
      bool(c.data.teacher_field) == bool(c.teacher.routes),
      "data.teacher_field",
      "the field that names a row's teacher with teacher.routes, and empty without",
    ),
    (
      not (c.teacher.routes and c.data.teacher_template),
      "data.teacher_template",
      "empty with teacher.routes: their templates may differ",
    ),
    (0 <= c.teacher.ema <= 1, "teacher.ema", "from 0 (frozen) to 1"),
    (c.teacher.ema == 0 or c.teacher.path == STUDENT, "teacher.ema", f"0 unless teacher.path is {STUDENT!r}"),
    (c.teacher.ema == 0 or not c.teacher.int8, "teacher.int8", "false under teacher.ema: what moves is not in int8"),
    (c.teacher.canary_every >= 0, "teacher.canary_every", "0 (only at load) or more"),
    (bool(c.data.path or c.data.mixture), "data.path", "a JSONL or parquet file of prompts, or data.mixture several"),
    (not (c.data.path and c.data.mixture), "data.mixture", "empty where data.path is given"),
    (c.data.chat or not c.data.teacher_template, "data.teacher_template", "empty where data.chat is off"),
    (c.data.limit >= 0, "data.limit", "0 (all) or more"),
    (c.rollout.prompts_per_step >= 1, "rollout.prompts_per_step", positive),
    (c.rollout.samples_per_prompt >= 1, "rollout.samples_per_prompt", positive),
    (c.rollout.max_prompt >= 1, "rollout.max_prompt", positive),
    (c.rollout.max_prompt <= _LONGEST, "rollout.max_prompt", f"at most {_LONGEST:,}"),
    (c.rollout.max_teacher_prompt <= _LONGEST, "rollout.max_teacher_prompt", f"at most {_LONGEST:,}"),
    (c.rows <= _MOST_ROWS, "rollout.prompts_per_step", f"at most {_MOST_ROWS:,} with its samples_per_prompt"),
    (c.rollout.max_teacher_prompt >= 0, "rollout.max_teacher_prompt", "0 (as max_prompt) or more"),
    (
      c.rollout.max_teacher_prompt == 0 or bool(c.teacher_prompt),
      "rollout.max_teacher_prompt",
      "0 where data.teacher_prompt_field is empty and so is data.teacher_template",
    ),
    (c.rollout.temperature >= 0, "rollout.temperature", "0 (greedy) or more"),
    (0 < c.rollout.top_p <= 1, "rollout.top_p", "above 0 and at most 1"),
    (c.rollout.top_k >= 0, "rollout.top_k", "0 (off) or more"),
    (0 <= c.rollout.compactions <= _MOST_COMPACTIONS, "rollout.compactions", f"from 0 (off) to {_MOST_COMPACTIONS}"),
    (c.horizon.max >= 1, "horizon.max", positive),
    (c.horizon.max <= _LONGEST, "horizon.max", f"at most {_LONGEST:,}"),
    (0 < c.horizon.rho <= 1, "horizon.rho", "above 0 and at most 1"),
    (1 <= c.horizon.start, "horizon.start", positive),
    (
      c.horizon.kind not in ("progressive", *_ON_RUNGS) or c.horizon.start <= c.horizon.max,
      "horizon.start",
      "at most horizon.max",
    ),
    (c.horizon.ratio > 0, "horizon.ratio", "above 0"),
    (0 < c.horizon.agreement <= 1, "horizon.agreement", "above 0 and at most 1"),
    (c.horizon.window >= 2, "horizon.window", "at least 2"),
    (
      c.horizon.kind != "change_point" or c.horizon.window <= c.horizon.max,
      "horizon.window",
      "at most horizon.max, or there is no look",
    ),
    (c.horizon.threshold > 0, "horizon.threshold", "above 0"),
    (0 < c.horizon.holds <= 1, "horizon.holds", "above 0 and at most 1"),
    (
      c.horizon.kind not in _ON_RUNGS or c.horizon.buckets != "auto",
      "horizon.buckets",
      f"a rule or rungs where horizon.kind is {c.horizon.kind}: it moves among them",
    ),
    (c.horizon.increment >= 1, "horizon.increment", positive),
    (c.horizon.every >= 1, "horizon.every", positive),
    ("jsd" not in c.objective.kind or 0 < c.objective.beta < 1, "objective.beta", "above 0 and below 1"),
    (c.objective.temperature > 0, "objective.temperature", "above 0"),
    (c.objective.teacher_temperature >= 0, "objective.teacher_temperature", "above 0, or 0 (as objective.temperature)"),
    (c.objective.top_k >= 1, "objective.top_k", positive),
    (0 <= c.objective.dataset_share <= 1, "objective.dataset_share", "from 0 to 1"),
    (
      c.objective.dataset_share == 0 or bool(c.data.answer_field),
      "data.answer_field",
      "the field of the answers that objective.dataset_share mixes in",
    ),
    (c.objective.extrapolation >= 0, "objective.extrapolation", "0 or more"),
    (0 <= c.objective.gamma <= 1, "objective.gamma", "from 0 to 1"),
    (0 <= c.objective.clip < 1, "objective.clip", "0 (off) or more, and below 1"),
    (c.objective.dual_clip == 0 or c.objective.dual_clip > 1, "objective.dual_clip", "0 (off) or above 1"),
    (c.objective.dual_clip == 0 or c.objective.clip > 0, "objective.dual_clip", "0 (off) where objective.clip is 0"),
    (c.objective.largest_advantage >= 0, "objective.largest_advantage", "0 (off) or more"),
    (c.objective.entropy_above >= 0, "objective.entropy_above", "0 or more"),
    (-2 < c.objective.position_slope < 2, "objective.position_slope", "above -2 and below 2"),
    (0 < c.objective.select_share <= 1, "objective.select_share", "above 0 and at most 1"),
    (c.optimizer.learning_rate >= 0, "optimizer.learning_rate", "0 or more"),
    (0 <= c.optimizer.warmup_steps <= _MOST_STEPS, "optimizer.warmup_steps", f"from 0 to {_MOST_STEPS:,}"),
    (c.optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more"),
    (0 <= c.optimizer.b1 < 1, "optimizer.b1", "at least 0 and below 1"),
    (0 <= c.optimizer.b2 < 1, "optimizer.b2", "at least 0 and below 1"),
    (c.optimizer.eps > 0, "optimizer.eps", "above 0"),
    (c.optimizer.clip >= 0, "optimizer.clip", "0 (off) or more"),
    (c.optimizer.skip_above >= 0, "optimizer.skip_above", "0 (off) or more"),
    (c.optimizer.skips >= 1, "optimizer.skips", positive),
    (c.optimizer.micro_batches >= 1, "optimizer.micro_batches", positive),
    (
      c.rows % max(1, c.optimizer.micro_batches) == 0,
      "optimizer.micro_batches",
      f"a divisor of {shown(c.rows)} rows a step",
    ),
    (c.checkpoint.every >= 1, "checkpoint.every", positive),
    (c.checkpoint.keep >= 1, "checkpoint.keep", positive),
    (c.eval.every >= 0, "eval.every", "0 (only at the end) or more"),
    (c.eval.first >= 0, "eval.first", "0 or more"),
    (c.eval.prompts >= 0, "eval.prompts", "0 (all) or more"),
    (c.eval.batch >= 1, "eval.batch", positive),
    (c.eval.samples >= 0, "eval.samples", "0 (greedy alone) or more"),
    (
      c.eval.batch * max(1, c.eval.samples) <= _MOST_ROWS,
      "eval.batch",
      f"such that batch times samples is at most {_MOST_ROWS:,}",
    ),
    (
      c.eval.greedy or c.eval.samples >= 1 or not c.eval.has_sets,
      "eval.samples",
      "at least 1 where eval.greedy is off",
    ),
    (c.eval.temperature > 0, "eval.temperature", "above 0 (greedy is eval.greedy)"),
    (0 < c.eval.top_p <= 1, "eval.top_p", "above 0 and at most 1"),
    (c.eval.top_k >= 0, "eval.top_k", "0 (off) or more"),
    (0 <= c.eval.compactions <= _MOST_COMPACTIONS, "eval.compactions", f"from 0 (off) to {_MOST_COMPACTIONS}"),
    (c.log.every >= 1, "log.every", positive),
    (c.log.samples >= 0, "log.samples", "0 or more"),
    (bool(c.log.wandb_project), "log.wandb_project", "the name of a project"),
  )
  for holds, name, wanted in rules:
    if not holds:
      value = c
      for part in name.split("."):
        value = getattr(value, part)
      raise InputError(f"config.{name} is {shown(value)}: it must be {wanted}")
  try:
    longest = max(c.horizon.build().distinct(c.steps))
  except ValueError as error:
    raise InputError(f"config.horizon: {error}") from error
  ladder = c.ladder()
  if longest > ladder[-1]:
    raise InputError(
      f"the horizon reaches {longest} tokens, above the last bucket {ladder[-1]}: raise config.horizon.buckets "
      f"{ladder} or lower config.horizon.max"
    )
