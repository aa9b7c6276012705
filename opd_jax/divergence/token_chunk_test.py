"""token_chunk and vocab_chunk against float64 dense autodiff."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from opd_jax.divergence import divergence, testing, token_chunk, vocab_chunk

KINDS = ("reverse_kl", "forward_kl", "jsd", "sampled")


@pytest.fixture(autouse=True)
def small_cuts(monkeypatch):
  """Several chunks and several blocks, ragged, at sizes that are quick to test."""
  monkeypatch.setattr(token_chunk, "CPU", token_chunk.Sizes(chunk_bytes=1, tokens=6, block=128))
  monkeypatch.setattr(vocab_chunk, "BLOCK", 128)


@pytest.mark.parametrize("implementation", ["token_chunk", "vocab_chunk"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_ragged_padded_chunks(kind, implementation):
  arrays = testing.random_inputs(1, tokens=13, vocab=300, padding=(2, 5))
  arguments = {"kind": kind, "beta": 0.2, "temperature": 0.7, "vocab_size": 300}
  arguments |= {"teacher_temperature": 1.3, "student_softcap": 6.0, "teacher_softcap": 7.0}
  expected = testing.answer64(arrays, **arguments)
  got = testing.answer(arrays, implementation=implementation, **arguments)
  testing.assert_agree(got, expected, testing.largest_logit(arrays, 300) / 0.7)
  np.testing.assert_allclose(got[0].loss, expected[0].loss, rtol=1e-5, atol=1e-4)
  assert (got[2][300:] == 0).all()  # padded rows of the head get no gradient


@settings(max_examples=8, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(
  st.tuples(st.integers(1, 20), st.integers(2, 400), st.integers(1, 12), st.integers(1, 12)),
  st.sampled_from(KINDS),
  st.sampled_from([0.3, 1.0, 2.5]),
  st.sampled_from([0.1, 3.0, 100.0]),
  st.integers(0, 3),
  st.integers(0, 2**31),
)
def test_random_shapes_and_extreme_logits(shape, kind, temperature, scale, padding, seed):
  tokens, vocab, *widths = shape
  arrays = testing.random_inputs(seed, tokens, vocab, widths, (padding, 3 - padding), scale)
  arguments = {"kind": kind, "beta": 0.7, "temperature": temperature, "vocab_size": vocab}
  got = testing.answer(arrays, **arguments)
  testing.assert_agree(got, testing.answer64(arrays, **arguments), testing.largest_logit(arrays, vocab) / temperature)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_equal_models_give_zero_and_zero_gradient(kind, temperature):
  arrays = testing.random_inputs(2, tokens=9, vocab=200)
  arrays |= {"teacher_hidden": arrays["student_hidden"], "teacher_head": arrays["student_head"]}
  got, d_hidden, d_head = testing.answer(arrays, kind=kind, temperature=temperature)
  for value in (got.loss, got.per_token, d_hidden, d_head):
    np.testing.assert_allclose(value, 0, atol=1e-6)


def test_close_models_in_bf16_keep_their_gradient():
  """At a true KL of 1e-3 rounded logits would bias the KL by 83 % and destroy the gradient (kernel.md, section 5)."""
  arrays = testing.random_inputs(3, tokens=64, vocab=2000, widths=(128, 128), padding=(0, 0), kl=1e-3)
  arrays["weights"] = np.full(64, 1 / 64, np.float32)
  short = {name: np.asarray(a, jnp.bfloat16) if a.ndim == 2 else a for name, a in arrays.items()}
  widened = {name: np.asarray(a, np.float32) if a.ndim == 2 else a for name, a in short.items()}
  for kind in ("reverse_kl", "forward_kl", "jsd"):
    expected = testing.answer64(widened, kind=kind)
    got = testing.answer(short, kind=kind, implementation="token_chunk")
    assert got[1].dtype == got[2].dtype == jnp.bfloat16
    assert abs(got[0].loss / expected[0].loss - 1) < 1e-2, kind
    for value, wanted in zip(got[1:], expected[1:]):
      error = np.linalg.norm(value.astype(np.float64) - wanted) / np.linalg.norm(wanted)
      assert error < 1e-2, (kind, error)


def test_gradient_products_are_only_computed_where_asked_for():
  arrays = testing.random_inputs(4, tokens=6, vocab=128, widths=(32, 32), padding=(0, 0))
  student = arrays.pop("student_hidden"), arrays.pop("student_head")

  def loss(hidden, head):
    return divergence(hidden, head, **arrays, kind="reverse_kl").loss

  def products(function):
    return jax.jit(function).lower(*student).as_text().count("dot_general")

  assert products(loss) == 2
  assert products(jax.grad(loss, 0)) == products(jax.grad(loss, 1)) == 3
  assert products(jax.grad(loss, (0, 1))) == 4


@pytest.mark.parametrize("implementation", ["token_chunk", "vocab_chunk"])
def test_tied_head_under_accumulation_equals_one_batch(implementation):
  arrays = testing.random_inputs(5, tokens=24, vocab=150, widths=(16, 16), padding=(0, 0))
  head = jnp.asarray(arrays.pop("student_head"))
  ids = arrays.pop("sampled_ids")
  arrays.pop("student_hidden")
  teacher_head = arrays.pop("teacher_head")

  def loss(head, ids, teacher_hidden, weights):
    hidden = jnp.tanh(head[ids])  # the head is the embedding, too
    call = divergence(
      hidden, head, teacher_hidden, teacher_head, weights, kind="reverse_kl", implementation=implementation
    )
    return call.loss

  rows = (ids, arrays["teacher_hidden"], arrays["weights"])
  whole = jax.value_and_grad(loss)(head, *rows)
  parts = jax.tree.map(lambda a: a.reshape(4, 6, *a.shape[1:]), rows)

  @jax.jit
  def accumulated(head):
    def step(sums, part):
      return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(head, *part)), None

    return jax.lax.scan(step, (jnp.zeros(()), jnp.zeros_like(head)), parts)[0]

  for got, wanted in zip(accumulated(head), whole):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_temporaries_do_not_grow_with_tokens(monkeypatch):
  """The bound is far under one [T, V] array, and the same for four times the tokens."""
  monkeypatch.setattr(token_chunk, "CPU", dataclasses.replace(token_chunk.CPU, tokens=16))
  vocab = 4096

  def temporaries(tokens, implementation):
    shapes = ((tokens, 32), (vocab, 32), (tokens, 32), (vocab, 32), (tokens,))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(*arrays):
      return divergence(*arrays, kind="reverse_kl", implementation=implementation).loss

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  few, many, dense = temporaries(256, "token_chunk"), temporaries(1024, "token_chunk"), temporaries(1024, "reference")
  assert many < few + 2 * 1024 * 32 * 4 * 4  # hidden states and rows, chunked
  assert many < dense / 4
