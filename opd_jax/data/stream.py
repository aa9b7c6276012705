"""The order in which a run takes its prompts: endless, shuffled, mixed by weights, and a pure function of a position.

                       epoch 0     epoch 1
    part of 3 prompts  | 2 0 1 | 1 0 2 | ...      twice the weight ─┐
    part of 2 prompts  | 4 3 | 3 4 | ...                            ├─► 2 0 4 1 1 3 0 2 3 ...
                                                                                ^ position = 5, count = 2  ->  3 0

Grain's datasets do the work. Their iterators keep no state but the position, so that a checkpoint needs only this
integer, and a run goes on in the middle of an epoch with the prompt that would have come next.
"""

from collections.abc import Sequence

import numpy as np


class PromptStream:
  """Indices of prompts, those of several parts standing one part after the other.

  Every part is shuffled anew for each of its epochs. Parts alternate as evenly as their weights allow, which count to
  1 %.

  Attributes:
    dataset: a `grain.MapDataset` of ints, whose entry at a position is the prompt taken there. Its iterators' state is
      `{"next_index": position}`.
  """

  def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int):
    """
    Args:
      counts: prompts of each part, at least 1.
      weights: of each part, above 0; only their ratios matter.
      seed: the run's seed, not negative.
    """
    import grain

    parts, first = [], 0
    for number, count in enumerate(counts):
      # Grain adds the epoch to a seed: seeds next to one another would give next runs the same epochs.
      (part_seed,) = np.random.SeedSequence([seed, number]).generate_state(1)
      part = grain.MapDataset.range(first, first + count)
      # Grain walks through 2^16 codes an epoch, of however few prompts: not for one alone.
      parts.append((part.shuffle(seed=int(part_seed)) if count > 1 else part).repeat())
      first += count
    self.dataset = grain.MapDataset.mix(parts, weights) if len(parts) > 1 else parts[0]

  def take(self, position: int, count: int) -> np.ndarray:
    """The prompts at `position` .. `position + count`: int64 [count]."""
    return np.array([self.dataset[i] for i in range(position, position + count)], np.int64)
