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

_ROUTED = 3  # tells a teacher's seed from a part's
_MOST_TURNS = 2**40  # of a teacher: no run has so many steps


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


class RoutedStream:
  """The same for prompts of several teachers: those of a step are all of one, and steps take turns as the shares of the
  data do.

      prompts   m c m m c m ...   of two teachers, twice as many m
      steps     m m m m | c c c c | m m m m | m m m m | c c c c | ...      four prompts a step
  """

  def __init__(self, routes: Sequence[str], counts: Sequence[int], weights: Sequence[float], seed: int, step: int):
    """
    Args:
      routes: of each prompt, those of a part one after the other.
      counts, weights, seed: as `PromptStream` takes them.
      step: prompts of a step.
    """
    import grain

    self._step, self._streams, turns, shares = step, [], [], []
    part_of = np.repeat(np.arange(len(counts)), counts)
    for number, route in enumerate(dict.fromkeys(routes)):
      own = np.flatnonzero(np.array(routes) == route)
      parts, own_counts = np.unique(part_of[own], return_counts=True)
      own_weights = [weights[part] * count / counts[part] for part, count in zip(parts, own_counts)]
      (own_seed,) = np.random.SeedSequence([seed, number, _ROUTED]).generate_state(1)
      self._streams.append((own, PromptStream(own_counts.tolist(), own_weights, int(own_seed))))
      turns.append(grain.MapDataset.range(_MOST_TURNS).map(lambda nth, number=number: (number, nth)))
      shares.append(sum(own_weights))
    self._turns = grain.MapDataset.mix(turns, shares) if len(turns) > 1 else turns[0]

  def take(self, position: int, count: int) -> np.ndarray:
    """The first `count` prompts of the step that begins at `position`, a multiple of its prompts: int64 [count]."""
    number, nth = self._turns[position // self._step]
    own, stream = self._streams[number]
    return own[stream.take(nth * self._step, count)]
