"""config.json -> Architecture: what is read, and what is refused by name."""

import pytest

from opd_jax.errors import InputError
from opd_jax.models import Architecture

BASE = dict(
  vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)


def read(model_type="qwen3", **fields) -> Architecture:
  return Architecture.from_config({"model_type": model_type, **BASE, **fields}, "config.json")


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    (dict(model_type="qwen4"), "did you mean `qwen"),
    (dict(model_type="gemma3_text"), "llama, qwen2, qwen3"),
    (dict(use_sliding_window=True, sliding_window=64, max_window_layers=1), "use_sliding_window"),
    (dict(layer_types=["full_attention", "sliding_attention"]), "sliding_attention"),
    (dict(model_type="llama", sliding_window=64), "sliding"),
    (dict(hidden_act="gelu"), "gelu"),
    (dict(mlp_bias=True), "mlp_bias"),
    (dict(attention_dropout=0.1), "attention_dropout"),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
    (dict(num_experts=8), "num_experts"),
    (dict(dual_chunk_attention_config={"chunk_size": 8}), "dual_chunk_attention_config"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
    (dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)), "partial_rotary_factor"),
    (dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)), "`dynamic`"),
    (dict(rope_scaling=dict(rope_type="longrope", short_factor=[1.0], long_factor=[1.0])), "`longrope`"),
    (dict(rope_scaling=dict(rope_type="mrope", mrope_section=[1])), "`mrope`"),
    (dict(rope_scaling=dict(rope_type="linear", type="yarn", factor=2.0)), "rope type"),
    (dict(rope_scaling=dict(YARN, attn_factor=0.8)), "did you mean `attention_factor`"),
    (dict(rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0)), "high_freq_factor"),
    (dict(rope_scaling=dict(rope_type="linear", factor="2")), "factor"),
    (dict(rope_scaling="linear"), "rope_scaling"),
    (dict(rope_theta=1e4, rope_parameters=dict(rope_theta=1e6)), "rope_theta"),
    (dict(rope_scaling=dict(YARN), rope_parameters=dict(YARN, factor=2.0)), "disagree"),
    (dict(hidden_size="32"), "hidden_size"),
    (dict(num_hidden_layers=0), "num_hidden_layers"),
    (dict(num_key_value_heads=3), "num_key_value_heads"),
    (dict(head_dim=7), "head_dim"),
    (dict(rms_norm_eps="small"), "rms_norm_eps"),
    (dict(tie_word_embeddings="yes"), "tie_word_embeddings"),
    (dict(eos_token_id="</s>"), "eos_token_id"),
  ],
)
def test_what_the_decoder_cannot_do_is_refused_by_name(fields, named):
  with pytest.raises(InputError) as refusal:
    read(**fields)
  assert named in str(refusal.value) and "config.json" in str(refusal.value)


def test_a_missing_size_is_named_with_the_nearest_field():
  config = {"model_type": "llama", **BASE, "hidden_dim": 32}
  del config["hidden_size"]
  with pytest.raises(InputError, match=r"`hidden_size` is missing.*`hidden_dim`"):
    Architecture.from_config(config, "config.json")


def test_switches_that_are_off_are_accepted():
  off = dict(use_sliding_window=False, sliding_window=4096, max_window_layers=1, mlp_bias=False, attention_dropout=0.0)
  off |= dict(
    layer_types=["full_attention"] * 2, quantization_config=None, partial_rotary_factor=1.0, rope_scaling=None
  )
  assert read(**off) == read()
  assert read(use_sliding_window=True, sliding_window=64, max_window_layers=2) == read()


def test_fields_that_nobody_knows_are_named_in_the_log(caplog):
  read(frobnicate=3)
  assert "frobnicate" in caplog.text


@pytest.mark.parametrize(("family", "qkv", "output", "norm"), [
  ("llama", False, False, False), ("qwen2", True, False, False), ("qwen3", False, False, True),
])  # fmt: skip
def test_biases_and_norms_of_each_family(family, qkv, output, norm):
  plain = read(family)
  assert (plain.qkv_bias, plain.output_bias, plain.qk_norm) == (qkv, output, norm)
  biased = read(family, attention_bias=True)
  assert (biased.qkv_bias, biased.output_bias) == ((True, True) if family != "qwen2" else (True, False))


def test_defaults_are_those_of_transformers():
  from transformers import AutoConfig

  for family in ("llama", "qwen2", "qwen3"):
    theirs = AutoConfig.for_model(family)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ours = Architecture.from_config({"model_type": family, **{name: getattr(theirs, name) for name in sizes}}, "x")
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.max_position == theirs.max_position_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rms_epsilon == theirs.rms_norm_eps
    assert ours.tied_head == theirs.tie_word_embeddings


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_written_config_reads_back_the_same_here_and_in_transformers(family):
  from transformers import AutoConfig

  architecture = read(family, eos_token_id=[3, 4], bos_token_id=1, head_dim=12, rope_scaling=YARN, rope_theta=2e4)
  written = architecture.to_config()
  assert Architecture.from_config(written, "x") == architecture and hash(architecture)
  theirs = AutoConfig.for_model(**written).to_dict()
  assert Architecture.from_config(theirs, "x") == architecture
  for ids in (0, None):  # an id of 0 is an id
    assert read(family, eos_token_id=ids).to_config()["eos_token_id"] == ids
