"""What a checkpoint's config.json says, as one frozen, hashable object: the static half of a model.

Three families share the decoder. What a config.json asks for and the decoder cannot do is refused here by name,
before any weight is read: a feature that is ignored in silence gives a model that is wrong and looks right.
"""

import dataclasses
import logging
from dataclasses import dataclass

from opd_jax.errors import InputError, nearest
from opd_jax.models.rope import INFINITE, Rope

_log = logging.getLogger(__name__)

_LARGEST, _MOST_LAYERS = 2**24, 2**12  # far above any decoder: whatever is larger would be laid out before it fails


@dataclass(frozen=True)
class _Family:
  """What a `model_type` implies without saying it in config.json."""

  architecture: str  # the class transformers loads it with
  qk_norm: bool
  qkv_bias: bool | None  # None: the `attention_bias` field decides
  output_bias: bool | None
  max_position: int
  kv_heads: int | None  # None: as many as heads
  head_dim: int | None  # None: hidden_size / heads


_FAMILIES = {
  "llama": _Family("LlamaForCausalLM", False, None, None, max_position=2048, kv_heads=None, head_dim=None),
  "qwen2": _Family("Qwen2ForCausalLM", False, True, False, max_position=32768, kv_heads=32, head_dim=None),
  "qwen3": _Family("Qwen3ForCausalLM", True, None, None, max_position=32768, kv_heads=32, head_dim=128),
}

# Fields of neighbouring architectures that change what a model computes -> the values, beside null, false, 0 and
# empty, under which they change nothing.
_REFUSED = {
  "mlp_bias": (),
  "quantization_config": (),
  "partial_rotary_factor": (1,),
  "attention_dropout": (),
  "dual_chunk_attention_config": (),
  "num_experts": (),
  "num_local_experts": (),
  "n_routed_experts": (),
  "attn_logit_softcapping": (),
  "final_logit_softcapping": (),
  "logit_scale": (1,),
  "logits_scaling": (1,),
  "embedding_multiplier": (1,),
  "residual_multiplier": (1,),
  "attention_multiplier": (),
  "query_pre_attn_scalar": (),
  "use_mrope": (),
  "alibi": (),
  "no_rope_layers": (),
  "pruned_heads": (),
  "is_encoder_decoder": (),
  "add_cross_attention": (),
  "vision_config": (),
}

# Fields that do not change the logits of a forward pass.
_WITHOUT_EFFECT = frozenset(
  "architectures _name_or_path name_or_path dtype torch_dtype transformers_version use_cache pad_token_id "
  "pretraining_tp return_dict output_hidden_states output_attentions chunk_size_feed_forward problem_type id2label "
  "label2id task_specific_params is_decoder cross_attention_hidden_size sep_token_id decoder_start_token_id "
  "torchscript use_bfloat16 tie_encoder_decoder".split()
)


@dataclass(frozen=True)
class Architecture:
  """Sizes and switches of one decoder. Hashable: jitted functions take it as a static part of a `Model`."""

  model_type: str
  vocab_size: int
  hidden_size: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_size: int
  rms_epsilon: float
  rope: Rope
  qk_norm: bool
  qkv_bias: bool
  output_bias: bool
  tied_head: bool
  max_position: int
  initializer_range: float
  bos_id: int | None
  eos_ids: tuple[int, ...]

  @classmethod
  def from_config(cls, config: dict, where: str) -> "Architecture":
    """Reads a config.json; `where` names it in errors. Raises InputError for what the decoder cannot do."""
    model_type = str(config.get("model_type"))
    if model_type not in _FAMILIES:
      hint = nearest(model_type, _FAMILIES)
      raise InputError(f"{where}: model_type `{model_type}` is not supported, only {', '.join(_FAMILIES)}{hint}")
    family = _FAMILIES[model_type]
    read = _Reader(config, where)
    hidden_size, layers = read.size("hidden_size"), read.size("num_hidden_layers")
    heads = read.size("num_attention_heads")
    kv_heads = read.size("num_key_value_heads", family.kv_heads, null=heads)
    head_dim = read.size("head_dim", family.head_dim, null=hidden_size // heads)
    if heads % kv_heads:
      raise InputError(f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2 or ("head_dim" not in config and family.head_dim is None and hidden_size % heads):
      raise InputError(f"{where}: hidden_size {hidden_size} and {heads} heads do not give an even head_dim")
    max_position = read.size("max_position_embeddings", family.max_position)
    attention_bias = read.flag("attention_bias")
    architecture = cls(
      model_type=model_type,
      vocab_size=read.size("vocab_size"),
      hidden_size=hidden_size,
      layers=layers,
      heads=heads,
      kv_heads=kv_heads,
      head_dim=head_dim,
      mlp_size=read.size("intermediate_size"),
      rms_epsilon=read.number("rms_norm_eps", 1e-6),
      rope=Rope.from_config(config, max_position, where),
      qk_norm=family.qk_norm,
      qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
      output_bias=attention_bias if family.output_bias is None else family.output_bias,
      tied_head=read.flag("tie_word_embeddings"),
      max_position=max_position,
      initializer_range=read.number("initializer_range", 0.02),
      bos_id=next(iter(read.ids("bos_token_id")), None),
      eos_ids=read.ids("eos_token_id"),
    )
    _refuse_features(config, layers, where)
    return architecture

  @property
  def computation(self) -> "Architecture":
    """What a forward pass depends on: two models that differ in nothing else are run by one program."""
    return dataclasses.replace(self, bos_id=None, eos_ids=(), initializer_range=0.0, max_position=0)

  def to_config(self) -> dict:
    """A config.json that transformers loads with the same meaning."""
    eos = self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids)
    return {
      "architectures": [_FAMILIES[self.model_type].architecture],
      "model_type": self.model_type,
      "vocab_size": self.vocab_size,
      "hidden_size": self.hidden_size,
      "intermediate_size": self.mlp_size,
      "num_hidden_layers": self.layers,
      "num_attention_heads": self.heads,
      "num_key_value_heads": self.kv_heads,
      "head_dim": self.head_dim,
      "hidden_act": "silu",
      "rms_norm_eps": self.rms_epsilon,
      "max_position_embeddings": self.max_position,
      "initializer_range": self.initializer_range,
      "tie_word_embeddings": self.tied_head,
      # qwen2 has its biases without a field for them, and a field it does not know would only be noise
      **({} if _FAMILIES[self.model_type].qkv_bias else {"attention_bias": self.qkv_bias}),
      **self.rope.to_config(),
      "bos_token_id": self.bos_id,
      "eos_token_id": None if eos == [] else eos,
    }


@dataclass(frozen=True)
class _Reader:
  """Typed access to a config.json, with errors that name the field."""

  config: dict
  where: str

  def size(self, name: str, default: int | None = None, null: int | None = None) -> int:
    """A positive integer; `default` where the field is absent, `null` where it (or its default) is null."""
    value = self.config.get(name, default)
    value = null if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      found = "missing" if value is None else f"{value!r}"
      raise InputError(f"{self.where}: `{name}` is {found}, not a positive integer{self._hint(name)}")
    most = _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST
    if value > most:
      raise InputError(f"{self.where}: `{name}` is {value}: more than {most:,} is no decoder")
    return value

  def number(self, name: str, default: float) -> float:
    value = self.config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < INFINITE:
      raise InputError(f"{self.where}: `{name}` is {value!r}, not a number")
    return float(value)

  def flag(self, name: str) -> bool:
    value = self.config.get(name, False)
    if not isinstance(value, bool):
      raise InputError(f"{self.where}: `{name}` is {value!r}, not true or false")
    return value

  def ids(self, name: str) -> tuple[int, ...]:
    value = self.config.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
      raise InputError(f"{self.where}: `{name}` is {value!r}, not a token id or a list of them")
    return tuple(ids)

  def _hint(self, name: str) -> str:
    return "" if name in self.config else nearest(name, self.config)


def _refuse_features(config: dict, layers: int, where: str) -> None:
  """Refuses, by name, fields that ask for what the decoder does not do; logs those it knows nothing about."""
  if config.get("hidden_act", "silu") not in ("silu", "swish"):
    raise InputError(f"{where}: hidden_act `{config['hidden_act']}` is not supported, only silu")
  for name, harmless in _REFUSED.items():
    if config.get(name) and config[name] not in harmless:
      raise InputError(f"{where}: `{name}` = {config[name]!r} is not supported")
  sliding = config.get("sliding_window") and config.get("use_sliding_window", config["model_type"] == "llama")
  full = config.get("max_window_layers", 0)  # of the first layers
  if sliding and (type(full) is not int or full < layers):
    raise InputError(f"{where}: sliding-window attention (`use_sliding_window`) is not supported")
  kinds = config.get("layer_types") or []
  for kind in kinds if isinstance(kinds, list) else [kinds]:
    if kind != "full_attention":
      raise InputError(f"{where}: layer type `{kind}` in `layer_types` is not supported, only full_attention")
  known = _READ | _WITHOUT_EFFECT | _REFUSED.keys()
  unknown = sorted(name for name, value in config.items() if name not in known and value)
  if unknown:
    _log.warning("%s: fields that this decoder does not know, and ignores: %s", where, ", ".join(unknown))


_READ = frozenset(
  "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
  "head_dim hidden_act rms_norm_eps max_position_embeddings initializer_range tie_word_embeddings attention_bias "
  "rope_theta rope_scaling rope_parameters original_max_position_embeddings bos_token_id eos_token_id "
  "sliding_window use_sliding_window max_window_layers layer_types".split()
)
