"""The divergence of two language-model heads from hidden states, without the [tokens, vocab] arrays.

api            the operation: arguments and their checks
problem        what is asked (static and arrays) and what is answered
reference      the specification, dense
formulas       the mathematics of one block of vocabulary; support: of the K best entries alone
blocks         how the vocabulary is cut; passes: the sweeps over it
token_chunk    XLA, gradients in the forward pass: the default
vocab_chunk    XLA, gradients by recomputation: the least memory
pallas_tpu     kernels for TPUs; pallas_gpu for GPUs
sharded        the same on a mesh
gradient_rule  which of them runs, and its custom_vjp
aot            compiles the op for accelerators that are not there
shapes         realistic sizes, for benchmarks; testing: random problems and the float64 answer, for tests
"""

from opd_jax.divergence.api import divergence, scores
from opd_jax.divergence.problem import REPAIRS, SUPPORTS, Divergence, Scores

__all__ = ["REPAIRS", "SUPPORTS", "Divergence", "Scores", "divergence", "scores"]
