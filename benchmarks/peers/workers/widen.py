"""A trained model of the embedded task made larger without changing what it computes.

The task's models are so small that a step costs little beside what surrounds it. Here they are set into larger ones:

    residual   [ 96 dimensions | zeros ]                          norms rescaled: they divide by the width
    heads      [ 4 trained | more, whose output weights are zero ]                and so the MLP's units
    layers     [ 2 trained | more, whose outputs are zero ]

Everything that is new is trained from then on like the rest. Before the larger model is used, its log-probabilities
are compared with the small one's.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from meter import answer, read_job
from safetensors.numpy import load_file, save_file

from opd_jax import models
from opd_jax.data import load_tokenizer

_STD = 0.02
_TOLERANCE = 1e-3  # nats, of any log-probability


def widen(old: dict[str, np.ndarray], config: dict, new: dict) -> dict[str, np.ndarray]:
  """The checkpoint of the larger model. `config` and `new` are the two config.json."""
  generator = np.random.default_rng(0)
  D, W = config["hidden_size"], new["hidden_size"]
  units = {"gate_proj": new["intermediate_size"], "up_proj": new["intermediate_size"]}
  heads = new["num_attention_heads"] * new["head_dim"]
  units |= dict.fromkeys(("q_proj", "k_proj", "v_proj"), heads)

  def norm(weight: np.ndarray | None) -> np.ndarray:
    wide = np.ones(W, np.float32)
    wide[:D] = np.sqrt(D / W) * (1.0 if weight is None else weight)
    return wide

  def block(weight: np.ndarray | None, shape: tuple[int, int], reads: bool) -> np.ndarray:
    """What reads the residual is random where it is new, what writes to it is zero there."""
    wide = (_STD * generator.standard_normal(shape) if reads else np.zeros(shape)).astype(np.float32)
    if weight is not None:
      if reads:
        wide[: weight.shape[0]] = 0.0
      wide[: weight.shape[0], : weight.shape[1]] = weight
    return wide

  embed = old["model.embed_tokens.weight"]
  tensors = {
    "model.embed_tokens.weight": np.pad(embed, ((0, 0), (0, W - D))),
    "model.norm.weight": norm(old["model.norm.weight"]),
  }
  for layer in range(new["num_hidden_layers"]):
    at = f"model.layers.{layer}."
    for name in ("input_layernorm", "post_attention_layernorm"):
      tensors[f"{at}{name}.weight"] = norm(old.get(f"{at}{name}.weight"))
    for name in ("q_norm", "k_norm"):
      ones = np.ones(new["head_dim"], np.float32)
      tensors[f"{at}self_attn.{name}.weight"] = old.get(f"{at}self_attn.{name}.weight", ones)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
      shape = (units[name.partition(".")[2]], W)
      tensors[f"{at}{name}.weight"] = block(old.get(f"{at}{name}.weight"), shape, reads=True)
    for name, size in (("self_attn.o_proj", heads), ("mlp.down_proj", new["intermediate_size"])):
      tensors[f"{at}{name}.weight"] = block(old.get(f"{at}{name}.weight"), (W, size), reads=False)
  return tensors


def write(source: Path, target: Path, sizes: dict[str, int]) -> int:
  """Writes the larger checkpoint. Returns its number of parameters."""
  target.mkdir(parents=True)
  for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
    shutil.copyfile(source / file, target / file)
  config = json.loads((source / "config.json").read_text())
  new = {**config, **sizes}
  new["rms_norm_eps"] = config["rms_norm_eps"] * config["hidden_size"] / new["hidden_size"]  # as the mean square
  (target / "config.json").write_text(json.dumps(new))
  tensors = widen(load_file(source / "model.safetensors"), config, new)
  save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
  return sum(tensor.size for tensor in tensors.values())


def difference(small: Path, large: Path, texts: list[str]) -> float:
  """Largest difference of a log-probability between the two."""
  tokenizer = load_tokenizer(small)
  tokens_bt = [tokenizer.encode_prompt(text) for text in texts]
  pair = [jax.nn.log_softmax(models.logits(models.load(path, dtype="float32"), tokens_bt)) for path in (small, large)]
  return float(abs(pair[0] - pair[1]).max())


def main() -> None:
  job = read_job()
  folder = Path(job["folder"])
  shutil.rmtree(folder, ignore_errors=True)
  parameters, differences = {}, {}
  for role in ("student", "teacher"):
    small, large = Path(job[role]), folder / role
    parameters[role] = write(small, large, job["sizes"][role])
    differences[role] = difference(small, large, job["texts"])
    if differences[role] > _TOLERANCE:
      shutil.rmtree(folder)
      raise RuntimeError(f"the larger {role} computes something else: log-probabilities differ by {differences[role]}")
  answer(["jax"], parameters=parameters, differences=differences)


if __name__ == "__main__":
  main()
