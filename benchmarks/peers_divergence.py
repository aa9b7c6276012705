"""Our divergence beside TRL's on the same arrays: values, entropies and both gradients, and float64 as the judge.

    pip install trl==1.16.0 torch==2.13.0        # an environment of its own, with requirements.txt
    JAX_PLATFORMS=cpu PYTHONPATH=. python benchmarks/peers_divergence.py --out benchmarks/results/peers_divergence.md

TRL's `ChunkedDivergenceFunction` is the loss of its DistillationTrainer: generalised JSD from hidden states and heads,
beta 0 forward KL, 1 reverse KL, its weighted sum taken here. Correctness only: both run on a CPU, in float32, and TRL's
chunks (4,096 x 32,768) are larger than what is compared, so nothing of this is a time.
"""

from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import torch
from absl import app, flags
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from opd_jax.divergence import testing

_TOKENS = flags.DEFINE_integer("tokens", 96, "tokens of the arrays")
_VOCAB = flags.DEFINE_integer("vocab", 40000, "entries of the vocabulary: two of TRL's blocks")
_OUT = flags.DEFINE_string("out", None, "file for the table")

_KINDS = {0.0: "forward_kl", 0.5: "jsd", 1.0: "reverse_kl"}
_NAMES = ("per token", "entropy", "d_hidden", "d_head")


def trl_answer(arrays: dict[str, np.ndarray], beta: float, temperature: float):
  """(divergence [T], entropy [T], d_hidden, d_head) of TRL."""
  tensors = {name: torch.tensor(array) for name, array in arrays.items()}
  student = [tensors[name].requires_grad_() for name in ("student_hidden", "student_head")]
  teacher = tensors["teacher_hidden"], tensors["teacher_head"]
  no_bias = None
  values, entropy = ChunkedDivergenceFunction.apply(*student, no_bias, *teacher, no_bias, beta, temperature)
  (values * tensors["weights"]).sum().backward()
  return [tensor.detach().numpy() for tensor in (values, entropy, *(array.grad for array in student))]


def our_answer(answer, arrays: dict[str, np.ndarray], beta: float, temperature: float):
  """The same of the op, by `testing.answer` or `testing.answer64`."""
  result, *gradients = answer(arrays, kind=_KINDS[beta], beta=0.5, temperature=temperature)
  return [result.per_token, result.student_entropy, *gradients]


def differences(left, right) -> str:
  """Cells: largest difference, over the largest entry of `right`."""
  return " | ".join(f"{np.abs(a - b).max() / np.abs(b).max():.1e}" for a, b in zip(left, right))


def main(_):
  arrays = testing.random_inputs(0, _TOKENS.value, _VOCAB.value, widths=(64, 96), padding=(0, 0))
  lines = [
    f"TRL {version('trl')} `ChunkedDivergenceFunction` (torch {torch.__version__}) and opd_jax's divergence "
    f"(token_chunk, jax {jax.__version__}), CPU, float32, T {_TOKENS.value}, V {_VOCAB.value}, D 64/96.",
    "Largest difference over the largest entry; float64 is the dense reference.",
    "",
    f"| beta | temperature | compared | {' | '.join(_NAMES)} |",
    "|---|---|---|" + "---|" * len(_NAMES),
  ]
  for beta, kind in _KINDS.items():
    for temperature in (1.0, 0.7):
      trl = trl_answer(arrays, beta, temperature)
      ours, exact = (our_answer(answer, arrays, beta, temperature) for answer in (testing.answer, testing.answer64))
      for name, cells in (
        ("opd_jax - TRL", differences(ours, trl)),
        ("opd_jax - float64", differences(ours, exact)),
        ("TRL - float64", differences(trl, exact)),
      ):
        lines.append(f"| {beta} ({kind}) | {temperature} | {name} | {cells} |")
  text = "\n".join(lines) + "\n"
  print(text)
  if _OUT.value:
    Path(_OUT.value).write_text(text)


if __name__ == "__main__":
  app.run(main)
