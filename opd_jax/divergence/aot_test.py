"""The kernels compile for TPUs and an H200 that are not there. `make test-aot` installs the compilers."""

import functools
import json
import subprocess
import sys

import pytest

TOKENS, VOCAB, STUDENT_WIDTH, TEACHER_WIDTH = 8192, 151936, 2048, 4096
D_HEAD_BYTES = 4 * VOCAB * STUDENT_WIDTH  # every form needs the float32 sum of the head's gradient


@functools.cache
def compiled(target: str, implementation: str, tokens: int) -> dict:
  sizes = map(str, (tokens, VOCAB, STUDENT_WIDTH, TEACHER_WIDTH))
  command = [sys.executable, "-m", "opd_jax.divergence.aot", target, implementation, *sizes]
  result = subprocess.run(command, capture_output=True, text=True, timeout=900)
  if result.returncode == 3:
    pytest.skip(f"{result.stderr.strip().splitlines()[-1]} (`make test-aot` installs it)")
  assert result.returncode == 0, result.stderr[-2000:]
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
  ("target", "implementation", "custom_calls"),
  [
    ("v5e:2x2", "auto", 2),
    ("v5p:2x2x1", "pallas_tpu", 2),
    ("v6e:2x2", "pallas_tpu", 2),
    ("v5e:2x2", "token_chunk", 0),
    ("h200", "pallas_gpu", 1),
    ("h200", "auto", 0),
  ],
)
def test_compiles_with_temporaries_under_a_gibibyte(target, implementation, custom_calls):
  report = compiled(target, implementation, TOKENS)
  assert report["custom_calls"] == custom_calls
  assert report["temporary_bytes"] - D_HEAD_BYTES < 1 << 30


@pytest.mark.parametrize(("target", "implementation"), [("v6e:2x2", "pallas_tpu"), ("h200", "pallas_gpu")])
def test_temporaries_do_not_depend_on_tokens(target, implementation):
  few, many = (compiled(target, implementation, tokens)["temporary_bytes"] for tokens in (TOKENS // 2, TOKENS))
  # What is left on a GPU is the gradient of the hidden states itself, in float32 and rounded to bf16.
  d_hidden_bytes = (4 + 2) * TOKENS // 2 * STUDENT_WIDTH if target == "h200" else 0
  assert abs(many - few) <= d_hidden_bytes + (1 << 20)
