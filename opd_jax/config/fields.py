"""Every field of a run, declared once, with its default and its meaning.

Lengths are in tokens, `every` in optimizer steps.
"""

import dataclasses
import re

from opd_jax import horizon as horizons
from opd_jax.errors import InputError

STUDENT = "student"  # as teacher.path: a copy of the student
_NAME = re.compile("[A-Za-z0-9_-]{1,40}")


@dataclasses.dataclass(frozen=True)
class Lora:
  # 0: off. Else the student's own weights are frozen, in student.dtype, and two factors of this rank beside each target
  # are trained, in float32. Checkpoints hold the factors alone; `export` merges them.
  rank: int = 0
  alpha: float = 32.0  # what is added to a weight is the factors' product times alpha / rank
  targets: tuple[str, ...] = ()  # of query_nhd key_khd value_khd output_dnh gate_fd up_fd down_df; (): all of them

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Student:
  path: str = ""  # Hugging Face folder, hub id `org/name@revision`, or `arithmetic:...` (made on first use)
  dtype: str = "float32"  # of the computation; what is trained is float32 always
  remat: bool = False  # recompute each layer in the backward pass: less memory, a third more arithmetic
  lora: Lora = Lora()

  @property
  def weights_dtype(self) -> str:
    """In which its weights are held: the master weights' own, or, where they are frozen, that of the computation."""
    return self.dtype if self.lora.rank else "float32"


@dataclasses.dataclass(frozen=True)
class Teacher:
  path: str = ""  # as the student's, or "student": a copy of the student as it came (self-distillation)
  dtype: str = "float32"  # of its weights and its computation
  int8: bool = False  # its layers' weights as int8, one scale per output channel; the KL it costs is printed at start
  # With path "student": after each update the copy moves this share of the way to the student (SDPO: 0.05); 0: frozen.
  # It is part of the checkpoint, and its weights are float32 whatever the dtype of its computation.
  ema: float = 0.0
  # Steps between two looks at its canary, log-probs of its own greedy answers (`training.canary`); also before every
  # evaluation and checkpoint. 0: only at load. Under ema there is none.
  canary_every: int = 50
  # In the place of path several, as "NAME = PATH", of one architecture and all in memory: each row of the data is
  # scored by the one that its data.teacher_field names. A step's rows have one teacher, and steps take turns.
  routes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reference:
  path: str = ""  # a third model that objective.kind=extrapolated compares with, path as the student's; "": none
  dtype: str = "float32"  # of its weights and its computation


@dataclasses.dataclass(frozen=True)
class Data:
  path: str = ""  # JSONL, parquet or a prepared TFDS folder, FOLDER or FOLDER:split (`python -m opd_jax.prepare`)
  # In its place several, each with a weight: "0.7 * PATH", or "0.7 * PATH; prompt_field=question; suffix=...". Options
  # are prompt_field, answer_field, teacher_prompt_field, teacher_field, system, suffix and limit; what is not said is
  # as below.
  mixture: tuple[str, ...] = ()
  prompt_field: str = "prompt"  # dotted path to a string or a list of chat messages
  answer_field: str = ""  # dotted path to the reference answer; "" for none (needed by objective.dataset_share alone)
  teacher_prompt_field: str = ""  # dotted path to a prompt that the teacher sees instead; "": the student's
  teacher_field: str = ""  # dotted path to the name of a row's teacher, one of teacher.routes
  teacher_template: str = ""  # what renders the teacher's prompts: own (its chat template), or "": the student's
  chat: bool = True  # a plain-string prompt becomes a user message where the tokenizer has a chat template
  system: str = ""  # a system message before each prompt that does not begin with one
  suffix: str = ""  # an instruction added to each prompt as it stands: begin it with the space or line break it needs
  thinking: str = ""  # on or off: `enable_thinking` of the chat template; "": as the template has it
  limit: int = 0  # read at most this many prompts of a file; 0 for all


@dataclasses.dataclass(frozen=True)
class Rollout:
  prompts_per_step: int = 32
  samples_per_prompt: int = 1  # completions of each prompt; they share one prefill
  max_prompt: int = 256  # tokens; longer prompts are dropped and counted
  max_teacher_prompt: int = 0  # likewise of what the teacher sees instead; 0: as max_prompt
  temperature: float = 1.0  # of sampling
  top_p: float = 1.0
  top_k: int = 0  # 0: off
  compactions: int = 0  # times that the batch may halve as rows finish; each is one more decode loop to compile
  # Written with the layers' weights as int8, made anew from the master weights every step; `decode_gap` and `decode_kl`
  # of each step say what it costs. Scoring, the update and evaluations are in full precision as before.
  int8: bool = False


@dataclasses.dataclass(frozen=True)
class HorizonConfig:
  # full (OPD), truncated (TOPD), progressive (POPD), reliability (grows as the signal allows), probe (as short as the
  # gradient allows, audited at the full horizon now and then, after ADWIN), change_point (a response trains up to where
  # the teacher's margin drops, and the horizon holds most of those points, after Prefix Teach, Suffix Fade), random (a
  # rung drawn at each step, tokens weighted so that the expected gradient is the full horizon's, NAT)
  kind: str = "full"
  max: int = 128  # T: new tokens of a full rollout and of every evaluation
  rho: float = 0.25  # truncated: the share of T
  start: int = 16  # progressive: H = min(T, start + increment * floor(step / every)); those on rungs: the least
  increment: int = 16
  every: int = 10  # reliability, change_point: steps between two decisions; probe: between two probes
  ratio: float = 1.5  # reliability: up a rung where the last eighth's divergence is at most so many times the rest's
  agreement: float = 0.9  # probe: the least cosine of a prefix's gradient with that of the full horizon
  window: int = 64  # change_point: tokens of one look at the margin; a response is cut between two looks
  threshold: float = 4.0  # change_point: standard errors that the margin must fall by, added up over looks
  holds: float = 0.9  # change_point: the share of responses whose cut or end the horizon must hold
  # The widths that programs are compiled for: powers_of_two, linear(512), geometric(1.5), the rungs themselves (64,
  # 128), or auto: the least total time for the schedule by a model of costs (`plan --compare-buckets` has real ones).
  buckets: str | tuple[int, ...] = "powers_of_two"
  compile_ahead: bool = True  # the programs of the next buckets are compiled in the background

  def build(self) -> horizons.Horizon:
    if self.kind == "truncated":
      return horizons.truncated(self.max, self.rho)
    if self.kind == "progressive":
      return horizons.progressive(self.max, self.start, self.increment, self.every)
    if self.kind == "reliability":
      return horizons.reliability(self.rungs(), self.max, self.start, self.every, self.ratio)
    if self.kind == "probe":
      return horizons.probe(self.rungs(), self.max, self.start, self.every, self.agreement)
    if self.kind == "change_point":
      return horizons.change_point(self.rungs(), self.max, self.start, self.every, self.holds)
    if self.kind == "random":
      return horizons.random_prefix(self.rungs(), self.max, self.start)
    return horizons.full(self.max)

  def rungs(self) -> tuple[int, ...]:
    """The ladder of a policy other than `auto`."""
    return horizons.ladder_rule(self.buckets)(self.max) if isinstance(self.buckets, str) else self.buckets


@dataclasses.dataclass(frozen=True)
class Objective:
  # A term or a sum of terms such as "sampled + 0.1 * forward_kl". Each field below says which terms read it.
  # KL(student||teacher) is reverse_kl; also forward_kl, jsd, sampled (the papers' OPD baseline), extrapolated (G-OPD),
  # lsm, lsm_student, lsm_teacher, head_tail_student, head_tail_teacher, entropy_aware, and what was registered
  # (`objectives.register`).
  kind: str = "reverse_kl"
  temperature: float = 1.0  # divides the student's logits in the loss
  teacher_temperature: float = 0.0  # divides the teacher's; 0: the same
  beta: float = 0.5  # jsd: beta KL(teacher||M) + (1 - beta) KL(student||M)
  support: str = ""  # reverse_kl, forward_kl: on what the teacher, the student or either (union) ranks highest; "": all
  top_k: int = 32  # entries of a support: those two, lsm..., head_tail..., entropy_aware
  repair: str = "renormalize"  # what makes the truncated sum sound: also tail, generalized, score_tail, ...
  # Each row of a step is with this probability the data set's answer instead of what the student wrote, which is thrown
  # away: GKD's 1 - lambda. Needs data.answer_field, and terms that do not ask for the student's own tokens.
  dataset_share: float = 0.0
  # The next four: sampled, extrapolated, entropy_aware.
  gamma: float = 0.0  # of the return-to-go; 0 is token-level, 1 sequence-level
  clip: float = 0.0  # of PPO's ratio to the log-prob when written; 0: off, as all is on policy
  dual_clip: float = 0.0  # with clip: the most by which a negative advantage may count; 0: off
  largest_advantage: float = 0.0  # advantages are cut there; 0: off
  extrapolation: float = 1.25  # extrapolated: lambda of lambda log(teacher/reference) - log(student/reference)
  entropy_above: float = 0.8  # entropy_aware: nats of the teacher's entropy from which its top-K is taught as well
  # Tokens that do not train, as texts of single tokens: the first of each in a response, or all of them.
  mask_first: tuple[str, ...] = ()
  mask_all: tuple[str, ...] = ()
  position_slope: float = 0.0  # -2..2: tokens weigh 1 - slope/2 at the first position, 1 + slope/2 at the last
  select_by: str = ""  # train on the tokens of each response with the largest entropy or divergence alone
  select_share: float = 0.2  # of the response's tokens


@dataclasses.dataclass(frozen=True)
class Optimizer:
  learning_rate: float = 1e-5
  schedule: str = "constant"  # after the warm-up: constant, cosine or linear down to zero at the last step
  warmup_steps: int = 0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip: float = 1.0  # global norm of the gradient; 0: off
  # An update is skipped, and nothing but the count of steps moves, where loss, gradient or update is not finite, no
  # token trains, or the gradient's global norm before clipping is above this (0: any).
  skip_above: float = 0.0
  skips: int = 5  # so many skipped in a row end the run
  micro_batches: int = 1  # gradient accumulation: the rows of a step are scored in this many parts


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int = 1
  fsdp: int = -1  # -1: the rest of the devices
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  every: int = 100  # steps; the last step is always saved
  keep: int = 2


@dataclasses.dataclass(frozen=True)
class Eval:
  path: str = ""  # prompts with answers
  # More sets, as "NAME = PATH" or "NAME = PATH; grader=gsm8k; prompt_field=question; answer_field=answer"; what is not
  # said is as below. With neither path nor sets there is no evaluation.
  sets: tuple[str, ...] = ()
  prompt_field: str = "prompt"
  answer_field: str = "answer"
  grader: str = "exact"  # exact, gsm8k, math, choice
  prompts: int = 0  # evaluate at most this many of each set; 0 for all
  batch: int = 64  # prompts a batch
  every: int = 0  # steps; 0: only at the end
  first: int = 0  # also after each of this many steps at the start, where most may happen
  baseline: bool = True  # also before the first step: the student as it came, and the teacher as the ceiling
  greedy: bool = True
  samples: int = 0  # avg@k, pass@k, maj@k: this many sampled completions a prompt; 0: greedy alone
  temperature: float = 1.0  # of those samples
  top_p: float = 1.0
  top_k: int = 0
  compactions: int = 0  # as the rollout's: 1 pays where a few long answers hold up many short ones
  # A mark as tables call it ("aime25 greedy", "test T=0.7 avg@16"), or "accuracy" for the first: a student that is the
  # best so far by it is saved, and stays beside the newest `checkpoint.keep`; `export --step=best` takes it.
  keep_best: str = ""

  @property
  def has_sets(self) -> bool:
    return bool(self.path or self.sets)


@dataclasses.dataclass(frozen=True)
class Log:
  every: int = 10  # steps between two lines of a log; on a terminal a bar follows every step
  samples: int = 4  # completions an evaluation writes to samples.jsonl
  tensorboard: bool = True
  # Also to Weights & Biases: `pip install "opd_jax[wandb]"`, and `wandb login` or WANDB_API_KEY before the run.
  wandb: bool = False
  wandb_project: str = "opd_jax"
  wandb_name: str = ""  # of the run there; "": the workdir's name
  wandb_mode: str = ""  # online, offline (`wandb sync` sends it later), or "": what WANDB_MODE says, else online
  fail_on_unplanned_compile: bool = False  # an XLA compile outside the table after the first step is an error
  profile: bool = False  # trace the third to fifth step of this process into WORKDIR/profile


@dataclasses.dataclass(frozen=True)
class Debug:
  nans: bool = False  # an update that meets a NaN is repeated one operation at a time: the first to make one is named


@dataclasses.dataclass(frozen=True)
class Config:
  seed: int = 0
  steps: int = 100
  student: Student = Student()
  teacher: Teacher = Teacher()
  reference: Reference = Reference()
  data: Data = Data()
  rollout: Rollout = Rollout()
  horizon: HorizonConfig = HorizonConfig()
  objective: Objective = Objective()
  optimizer: Optimizer = Optimizer()
  mesh: MeshConfig = MeshConfig()
  checkpoint: Checkpoint = Checkpoint()
  eval: Eval = Eval()
  log: Log = Log()
  debug: Debug = Debug()

  @property
  def rows(self) -> int:
    """Completions of one step."""
    return self.rollout.prompts_per_step * self.rollout.samples_per_prompt

  @property
  def teachers(self) -> dict[str, str]:
    """name -> where its weights are (the student's own where it is a copy of it): of `teacher.routes`, or of the only
    teacher, whose name is ""."""
    routes = dict(map(_route, self.teacher.routes)) or {"": self.teacher.path}
    return {name: self.student.path if path == STUDENT else path for name, path in routes.items()}

  @property
  def teacher_path(self) -> str:
    """Where the weights of the only teacher are, or of the first."""
    return next(iter(self.teachers.values()))

  @property
  def teacher_prompt(self) -> int:
    """Columns of the teacher's prompts; 0 where it sees the student's."""
    longest = self.rollout.max_teacher_prompt or self.rollout.max_prompt
    return longest if self.data.teacher_prompt_field or self.data.teacher_template else 0

  def ladder(self) -> tuple[int, ...]:
    """The buckets that a horizon of this run may compile to, ascending."""
    if self.horizon.buckets == "auto":
      horizon = self.horizon.build()
      return horizons.auto_ladder(horizon, self.steps, self.rollout.max_prompt, self.horizon.compile_ahead)
    return self.horizon.rungs()

  def bucket(self, H: int) -> int:
    return horizons.bucket_for(H, self.ladder())


def _route(text: str) -> tuple[str, str]:
  """`NAME = PATH` as name and path."""
  name, path = (side.strip() for side in text.partition("=")[::2])
  if not (_NAME.fullmatch(name) and path):
    raise InputError(
      f"config.teacher.routes has {text!r}: write NAME = PATH, such as 'math = Qwen/Qwen3-8B', the name of letters, "
      "digits, _ and -"
    )
  return name, path
