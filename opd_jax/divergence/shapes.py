"""Realistic sizes of a call, for the benchmarks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  """Tokens T, vocabulary V and the widths of student and teacher."""

  tokens: int
  vocab: int
  student_width: int
  teacher_width: int

  @property
  def least_flops(self) -> int:
    """Value and both gradients without recomputation: logits of both, dH, dW (kernel.md, section 6: 4 units)."""
    return 2 * self.tokens * self.vocab * (3 * self.student_width + self.teacher_width)


SHAPES = {
  "laptop": Shape(512, 32768, 256, 256),
  "laptop_qwen_vocabulary": Shape(1024, 151936, 512, 512),
  "qwen3_0.6b_from_4b": Shape(8192, 151936, 1024, 2560),
  "qwen3_1.7b_from_8b": Shape(8192, 151936, 2048, 4096),
  "qwen3_8b_from_14b": Shape(8192, 151936, 4096, 5120),
  "llama3.2_1b_from_8b": Shape(8192, 128256, 2048, 4096),
}
