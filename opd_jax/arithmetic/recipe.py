"""Every number that decides what the embedded models become. The models are cached under a hash of it."""

import dataclasses
import hashlib
import json

from opd_jax.arithmetic.tokenizer import END_ID, VOCABULARY
from opd_jax.models import Architecture


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the teacher learns the task, and how a student unlearns it.

  The teacher begins with short problems: windows of the letters, whose completion stands at a random distance from the
  prompt (rotary positions moved apart). What it can learn there is to look digits up by their letter, at any distance,
  and that carries over to whole problems: without the distances five initialisations of five learned the short ones
  and none was near the whole ones 250 steps later. Both stages end when the model can do them, not after a number of
  steps; fourteen initialisations of fourteen got there, after 225 to 525 and 75 to 175 steps.

  Attributes:
    version: raised where the code behind a recipe changes what it makes.
    seed: of initialisation and problems.
    layers, width, heads, mlp: of the decoder, a Qwen3.
    learning_rate, warmup_steps, b2, clip: Adam, of the teacher's first two stages.
    window: letters of a short problem; window_rows a batch; enough once window_exact of them are right throughout.
    rows: whole problems a batch; enough once `exact` of them are right throughout.
    check_every: steps between two looks at that (and the progress lines); max_steps of each stage.
    decay_steps: at last, with the learning rate going down to zero.
    student_steps, student_learning_rate: the fine-tuning on the wrong rule, with a fresh Adam.
    mistake: probability of the wrong rule in `uniform`. A rule learned with certainty everywhere saturates the reverse
      KL, and full OPD stalls.
    train_prompts, eval_prompts: rows of the prompt files.
  """

  version: int = 2
  seed: int = 0
  layers: int = 2
  width: int = 96
  heads: int = 4
  mlp: int = 256
  learning_rate: float = 3e-3
  warmup_steps: int = 20
  b2: float = 0.98
  clip: float = 1.0
  window: int = 6
  window_rows: int = 64
  window_exact: float = 0.5
  rows: int = 32
  exact: float = 0.95
  check_every: int = 25
  max_steps: int = 1000
  decay_steps: int = 75
  student_steps: int = 60
  student_learning_rate: float = 1e-3
  mistake: float = 0.6
  train_prompts: int = 4096
  eval_prompts: int = 256

  @property
  def hash(self) -> str:
    """12 hexadecimal digits that change with every field."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:12]

  @property
  def architecture(self) -> Architecture:
    """Of teacher and students alike."""
    config = {
      "model_type": "qwen3",
      "vocab_size": len(VOCABULARY),
      "hidden_size": self.width,
      "intermediate_size": self.mlp,
      "num_hidden_layers": self.layers,
      "num_attention_heads": self.heads,
      "num_key_value_heads": self.heads,
      "head_dim": self.width // self.heads,
      "max_position_embeddings": 512,
      "rope_theta": 10_000.0,
      "tie_word_embeddings": True,
      "eos_token_id": END_ID,
    }
    return Architecture.from_config(config, "the arithmetic recipe")


DEFAULT = Recipe()
