"""One decoder for Llama 3.x, Qwen2/2.5 and Qwen3: student and teacher, prefill, decode and scoring.

    architecture, rope            what config.json says
    layers, parameters            the blocks; every parameter declared once, and the table of them
    lora                          the factors of layers' weights that are trained in their place
    cache, decoder                keys and values; `forward`, the one model function
    quantized                     layers' weights in int8
    tensors, huggingface, saving  checkpoints in and out

`load` reads a checkpoint, `forward` runs it, `save` writes one that transformers loads.
"""

from opd_jax.models.architecture import Architecture
from opd_jax.models.cache import Cache
from opd_jax.models.decoder import Model, add_factors, forward, initialize, logits
from opd_jax.models.huggingface import check, load, read_architecture
from opd_jax.models.lora import adapt, factor_table
from opd_jax.models.parameters import Parameter, parameter_table, specs
from opd_jax.models.quantized import parameter_specs, quantize, quantize_and_free
from opd_jax.models.rope import Rope
from opd_jax.models.saving import save

__all__ = [
  "Architecture",
  "Cache",
  "Model",
  "Parameter",
  "Rope",
  "adapt",
  "add_factors",
  "check",
  "factor_table",
  "forward",
  "initialize",
  "load",
  "logits",
  "parameter_specs",
  "parameter_table",
  "quantize",
  "quantize_and_free",
  "read_architecture",
  "save",
  "specs",
]
