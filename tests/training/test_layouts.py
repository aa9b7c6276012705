"""One step in six layouts: the mesh decides where numbers live, never what they are.

The programs are the run's own, on parameters and rows placed as a run places them; one device is the reference.
"""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

from opd_jax import models
from opd_jax.config import from_config_dict
from opd_jax.distributed import fetch, make_mesh, place_rows
from opd_jax.models.parameters import nested, shardings
from opd_jax.programs import ProgramTable
from opd_jax.training.batch import Batch
from opd_jax.training.state import Frozen, init_state, make_optimizer
from opd_jax.training.step import define_programs

LAYOUTS = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4))  # data, fsdp, tensor
PROMPTS, SAMPLES, P, BUCKET, HORIZON = 8, 2, 5, 8, 7
EOS = (0, 1, 2)
# Without clipping and with b1 = 0, Adam's first moment after one step is the gradient.
CONFIG = from_config_dict({"rollout": {"top_p": 0.9}, "optimizer": {"b1": 0.0, "clip": 0.0}}, check=False)


def host_model(family, vocab, width, seed, *, tied):
  """A model of numpy arrays, norms and biases drawn too. 2 key-value heads: `tensor` of 4 and 8 replicates them."""
  architecture = models.Architecture.from_config(
    {
      "model_type": family,
      "vocab_size": vocab,
      "hidden_size": width,
      "intermediate_size": 2 * width,
      "num_hidden_layers": 2,
      "num_attention_heads": 8,
      "num_key_value_heads": 2,
      "head_dim": 8,
      "max_position_embeddings": 64,
      "rms_norm_eps": 1e-6,
      "tie_word_embeddings": tied,
    },
    "test",
  )
  rng = np.random.default_rng(seed)
  params = {
    path: rng.normal("norm" in "".join(path), 0.2, p.shape).astype(np.float32)
    for path, p in sorted(models.parameter_table(architecture).items())
  }
  return models.Model(nested(params), architecture)


class Step:
  """One step of a tiny run on one mesh; `text` holds its programs as compiled."""

  def __init__(self, sizes, pair, vocab_size):
    self.mesh = make_mesh(sizes, jax.devices()[: np.prod(sizes)])
    self.table = ProgramTable(self.mesh)
    define_programs(self.table, CONFIG, EOS, vocab_size)
    self.student, self.teacher = map(self.placed, pair)
    self.text = {}

  def placed(self, model):
    return dataclasses.replace(model, params=jax.device_put(model.params, nested(shardings(model.config, self.mesh))))

  def run(self, program, bucket, *arguments):
    executable = self.table.compile(program, bucket, *arguments)
    self.text[program] = executable.as_text()
    return executable(*arguments)

  def rollout(self):
    """Completions of prompts of all lengths, on the host."""
    rng = np.random.default_rng(0)
    prompts_bp = rng.integers(3, 39, (PROMPTS, P)).astype(np.int32)
    prompt_mask_bp = np.arange(P) >= P - rng.integers(1, P + 1, PROMPTS)[:, None]
    rows_r = np.arange(PROMPTS * SAMPLES, dtype=np.uint32)
    prompts_bp, prompt_mask_bp, rows_r = place_rows(self.mesh, (prompts_bp, prompt_mask_bp, rows_r))
    student = self.run("decode_layout", 0, self.student)
    numbers = np.int32(HORIZON), np.uint32(5), np.uint32(0)
    return fetch(self.run("rollout", BUCKET, student, prompts_bp, prompt_mask_bp, *numbers, rows_r))

  def update(self, rollout):
    """Metrics, and the gradient by name of parameter. Uses up the student."""
    state = init_state(self.student, make_optimizer(CONFIG))
    batch = Batch(place_rows(self.mesh, rollout))
    state, metrics = self.run("update", BUCKET, state, Frozen(self.teacher), batch)
    gradient = jax.tree_util.tree_leaves_with_path(fetch(optax.tree_utils.tree_get(state.opt_state, "mu")))
    named = {jax.tree_util.keystr(path): leaf for path, leaf in gradient}
    return {name: metric.to_float() for name, metric in metrics.items()}, named


def check_agreement(step, reference):
  """The same tokens, and from the same tokens the same loss and gradient."""
  expected, (metrics, gradient) = reference
  got = step.rollout()
  np.testing.assert_array_equal(got.tokens_bs, expected.tokens_bs)
  np.testing.assert_array_equal(got.completion_mask_bs, expected.completion_mask_bs)
  np.testing.assert_array_equal(got.truncated_b, expected.truncated_b)
  np.testing.assert_allclose(got.behaviour_logprob_bs, expected.behaviour_logprob_bs, atol=1e-5)
  same, near = step.update(expected)
  for name, value in metrics.items():
    # Where float32 wrote, a gap is nothing but the rounding of log-probs.
    atol = 1e-5 if name.startswith("decode_") else 0
    np.testing.assert_allclose(same[name], value, rtol=1e-5, atol=atol, err_msg=name)
  # Of each parameter's own largest entry, which is stricter than of the whole tree's; entry by entry it cannot be:
  # sums in another order leave an entry that cancels with an error of its terms' size.
  for name, value in gradient.items():
    np.testing.assert_allclose(near[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def family(request):
  """(student and wider teacher, what one device makes of them)."""
  pair = (
    host_model(request.param, 48, 32, 0, tied=request.param != "llama"),
    host_model(request.param, 56, 48, 1, tied=False),
  )
  step = Step((1, 1, 1), pair, 45)
  rollout = step.rollout()
  lengths = rollout.completion_mask_bs.sum(1)
  assert lengths.min() < HORIZON and lengths.max() == HORIZON  # some rows end by themselves, some are cut
  return pair, (rollout, step.update(rollout))


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
def test_a_layout_changes_no_token_no_loss_and_no_gradient(family, sizes):
  pair, reference = family
  check_agreement(Step(sizes, pair, 45), reference)


def test_a_vocabulary_that_tensor_does_not_divide_is_split_all_the_same():
  """41 ids over 4 devices: 11 columns of logits on each, in the rollout and in the update."""
  pair = host_model("qwen3", 41, 32, 0, tied=True), host_model("qwen3", 43, 48, 1, tied=False)
  one, step = Step((1, 1, 1), pair, 39), Step((1, 2, 4), pair, 39)
  rollout = one.rollout()
  check_agreement(step, (rollout, one.update(rollout)))
  rows = PROMPTS * SAMPLES // 2  # of a device
  for program, positions in (("rollout", rows), ("update", rows * BUCKET)):
    columns = {int(n) for n in re.findall(rf"f32\[{positions},(\d+)\]", step.text[program])}
    assert 11 in columns and not columns & {39, 41, 43}, f"{program} holds logits of {columns} columns"


def test_the_split_head_is_padded_only_where_it_must_be():
  odd, even = (host_model("llama", vocab, 32, 0, tied=False) for vocab in (41, 48))
  assert odd.split_head() is odd.head_vd
  with jax.set_mesh(make_mesh((2, 1, 4))):
    assert even.split_head() is even.head_vd
    head_wd = jax.jit(models.Model.split_head)(odd)
  assert head_wd.sharding.shard_shape(head_wd.shape) == (11, 32)
  np.testing.assert_array_equal(head_wd, np.pad(odd.head_vd, ((0, 3), (0, 0))))
