"""What a compiled program does, read from its text: loops and how often they turn, collectives, cycles.

A computation runs as often as whoever calls it; a loop's body as often as the loop turns. XLA's own cost analysis
counts a body once, which for a scan over layers or a decode loop is wrong by the number of layers or tokens.

    ENTRY main          x 1
      while (decode)    x bucket    compare(t, horizon) and compare(rows, 0): its limit is traced
        while (layers)  x 28        compare(i, constant(28))
          all-gather    x 28 bucket
          conditional   x 28 bucket as the branch of most cycles
"""

import dataclasses
import math
import re
from collections import Counter

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation)=")
_NAMES = re.compile(r"%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL_BYTES = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_INTEGER = re.compile(r"^[su]\d+\[\]")
_GAVE_UP = 2**63 - 1  # cycles of a fusion that the compiler has no estimate for, such as one that waits for a transfer
_CYCLE, _KERNEL = "cycle", "kernel"


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does in one call of a program.

  Attributes:
    collectives: kind -> how many the program's text holds.
    collective_bytes: kind -> bytes of their results, each as often as it runs.
    cycles: estimated by the TPU compiler for its fusions, each as often as it runs; None where it gives none.
    kernel_bytes: moved by what the compiler has no cycles for, each as often as it runs: by Pallas kernels, as they
      estimate themselves, and the results of fusions that it gave up on.
  """

  collectives: dict[str, int]
  collective_bytes: dict[str, int]
  cycles: int | None
  kernel_bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  rest: str  # operands and attributes

  def called(self, attribute: str) -> list[str]:
    """Names of the computations under `attribute`."""
    match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
    return _NAMES.findall(match[1]) if match else []


def read_work(text: str, open_trips: int) -> Work:
  """The Work of a compiled module's text. `open_trips`: turns of a loop whose limit is not a constant."""
  computations, entry = _parse(text)
  count = Counter()

  def visit(name: str, fused: bool) -> Counter:
    """Bytes by kind of collective, and cycles, of one run of a computation."""
    total = Counter()
    for instruction in computations.get(name, ()):
      kind = instruction.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        total[kind] += _bytes(instruction)
      found = _CYCLES.search(instruction.rest)
      if found and not fused:
        cycles = int(found[1])
        total[_CYCLE] += cycles if cycles < _GAVE_UP else 0
        total[_KERNEL] += _bytes(instruction) if cycles >= _GAVE_UP else 0
      if moved := _KERNEL_BYTES.search(instruction.rest):
        total[_KERNEL] += int(moved[1])
      turns = _turns(instruction, computations, open_trips) if instruction.opcode == "while" else 1
      inside = fused or instruction.opcode == "fusion"  # what is inside a fusion is in the fusion's own cycles
      attributes = set(_CALLED.findall(instruction.rest))
      called = [visit(name, inside) for attribute in attributes for name in instruction.called(attribute)]
      if instruction.opcode == "conditional":
        called = [max(called, key=lambda branch: (branch[_CYCLE], sum(branch.values())))]
      for part in called:
        for key, amount in part.items():
          total[key] += turns * amount
    return total

  for instructions in computations.values():
    for instruction in instructions:
      count[instruction.opcode.removesuffix("-start")] += 1
  total = visit(entry, False)
  return Work(
    collectives={kind: count[kind] for kind in COLLECTIVES if count[kind]},
    collective_bytes={kind: total[kind] for kind in COLLECTIVES if total[kind]},
    cycles=total[_CYCLE] or None,
    kernel_bytes=total[_KERNEL],
  )


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """The instructions of every computation, and the entry's name."""
  computations, entry, current = {}, "", []
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
      continue
    match = _INSTRUCTION.match(line)
    if match:
      current.append(_Instruction(*match.groups()))
  return computations, entry


def _turns(loop: _Instruction, computations: dict[str, list[_Instruction]], open_trips: int) -> int:
  """How often a loop's body runs: told by the compiler, or the constant that its condition compares with."""
  told = _TRIPS.search(loop.rest)
  if told:
    return int(told[1])
  condition = [instruction for name in loop.called("condition") for instruction in computations.get(name, ())]
  limits = [i for i in condition if i.opcode == "constant" and _INTEGER.match(i.type)]
  one_test = sum(i.opcode == "compare" for i in condition) <= 1  # of several, a traced one may end it: `and`
  return int(limits[0].rest.split(")")[0]) if one_test and len(limits) == 1 else open_trips


def _bytes(instruction: _Instruction) -> int:
  """Bytes of an instruction's result. That of a collective's `-start` is a tuple of operand, result and bookkeeping."""
  sizes = [
    math.prod(int(n) for n in shape.split(",") if n) * max(1, int(re.search(r"\d+", kind)[0]) // 8)
    if kind != "pred"
    else math.prod(int(n) for n in shape.split(",") if n)
    for kind, shape in _ARRAY.findall(instruction.type)
  ]
  return max(sizes, default=0) if instruction.opcode.endswith("-start") else sum(sizes)
