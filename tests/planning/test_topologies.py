"""Names of machines, and machines that are not here."""

import pytest

from opd_jax.distributed import topologies
from opd_jax.distributed.topologies import find_topology
from opd_jax.errors import InputError


def test_names():
  assert find_topology("v5e:4x4").chips == 16
  assert find_topology("v5p:4x4x8").chips == 128
  assert find_topology("v6e:8x8", slices=4).chips == 256
  assert find_topology("cpu:8").chips == 8


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:4x4", "cpu:2"])
def test_larger_ones_ascend_and_end(name):
  chips = [find_topology(name).chips, *(other.chips for other in find_topology(name).larger())]
  assert chips == sorted(set(chips)) and len(chips) > 2
  assert all(other.name.split(":")[0] == name.split(":")[0] for other in find_topology(name).larger())


@pytest.mark.parametrize(
  "name, words",
  [
    ("v5:4x4", "did you mean `v5.:4x4`"),
    ("v5e-16", "v5e:"),
    ("v5p:4x4", "did you mean `v5p:"),
    ("v5e:4x4x4", "did you mean `v5.:4x4"),
    ("v5e:0x4", "unknown"),
    ("cpu", "cpu:"),
    ("", "unknown"),
  ],
)
def test_an_unknown_topology_is_one_line_with_the_nearest(name, words):
  with pytest.raises(InputError, match=words) as caught:
    find_topology(name)
  assert "\n" not in str(caught.value)


def test_slices():
  with pytest.raises(InputError, match="at least 1"):
    find_topology("v5e:4x4", slices=0)
  with pytest.raises(InputError, match="cpu:16"):
    find_topology("cpu:8", slices=2)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install -r requirements-tpu\.txt"):
    find_topology("v5e:2x2").devices()
