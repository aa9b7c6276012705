"""The studies behind docs/results.md: the toy's gradients against quadrature in float64, the raw truncated sum against
autodiff of its definition, a study that is stopped and goes on, its page, and a name that is none."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.evidence import control_toy as toy
from benchmarks.evidence import report, study, topk, toy_training, variance
from benchmarks.evidence.estimates import difference, estimate
from benchmarks.evidence.ledger import Ledger
from opd_jax.errors import InputError
from opd_jax.objectives import Objective, Reading, Signals

TINY = {"teacher": 4, "student": 4, "every": 2, "walks": 8, "gammas": variance.GAMMAS, "lengths": (4, 8)}


def policy(seed):
  """A policy whose last layer is not small, so that it moves about."""
  *first, last = toy.init_policy(jax.random.key(seed))
  return [*first, {"weights": 8 * last["weights"], "bias": last["bias"] + 0.3}]


def kl(student, teacher, position, time):
  """float64: KL between the next moves of two policies at a place, task 0."""

  def moments(layers):
    x = np.array([1.0, position, time])
    for layer in layers[:-1]:
      x = np.tanh(x @ layer["weights"] + layer["bias"])
    mean, spread = x @ layers[-1]["weights"] + layers[-1]["bias"]
    return np.tanh(mean), 0.2 * 5 ** (1 / (1 + np.exp(-spread)))  # a std from 0.2 to 1

  (m, s), (n, r) = moments(student), moments(teacher)
  return np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5, m, s


def exact_gradients(student, teacher, step=1e-5):
  """d KL of walks of two moves / d output layer: with the first move's effect on the second, and without it."""
  student, teacher = jax.tree.map(lambda x: np.asarray(x, np.float64), (student, teacher))
  nodes, weights = np.polynomial.hermite_e.hermegauss(60)
  weights /= weights.sum()

  def objective(moving, walking):
    """Both moves' divergence by `moving`, at the places to which `walking` goes."""
    first, _, _ = kl(moving, teacher, 0.0, 0.0)
    _, mean, std = kl(walking, teacher, 0.0, 0.0)
    return first + sum(w * kl(moving, teacher, mean + std * node, 0.5)[0] for node, w in zip(nodes, weights))

  def slope(part, index, follow):
    ends = []
    for sign in (1, -1):
      last = {name: values.copy() for name, values in student[-1].items()}
      last[part][index] += sign * step
      moved = [*student[:-1], last]
      ends.append(objective(moved, moved if follow else student))
    return (ends[0] - ends[1]) / (2 * step)

  places = [("bias", (i,)) for i in range(2)] + [("weights", (row, i)) for row in (0, 7) for i in range(2)]
  return {follow: np.array([slope(*place, follow) for place in places]) for follow in (True, False)}


def test_estimates_are_unbiased_for_what_each_gamma_means():
  """gamma 1 is the gradient of the walks' KL, gamma 0 leaves out what a move does to later ones, and the rest lies
  between the two in a straight line (two moves)."""
  student, teacher = policy(0), policy(1)
  exact = exact_gradients(student, teacher)
  noise = jax.random.normal(jax.random.key(2), (40_000, 1, 2))
  chosen = [0, 1, 2, 3, 2 + 2 * 7, 3 + 2 * 7]  # biases, then the weights row by row
  for gamma in (0.0, 0.5, 1.0):
    sample = np.asarray(jax.jit(toy.estimates)(student, teacher, 0, noise, gamma), np.float64)[:, chosen]
    error = sample.std(axis=0) / len(sample) ** 0.5
    wanted = gamma * exact[True] + (1 - gamma) * exact[False]
    assert np.all(np.abs(sample.mean(axis=0) - wanted) < 4.5 * error)
    if gamma != 0.5:  # else the test could not tell the two apart
      assert np.abs(sample.mean(axis=0) - exact[gamma == 0]).max() > 9 * error.max()


def test_variance_is_the_papers_measure():
  gradients = np.random.default_rng(0).normal(size=(8, 5))
  mean = sum(gradients) / 8
  wanted = sum(sum((value - m) ** 2 for value, m in zip(row, mean)) for row in gradients) / 8
  np.testing.assert_allclose(toy.variance(jnp.asarray(gradients)), wanted, rtol=1e-5)


def test_raw_truncated_sum_has_the_gradient_of_its_definition():
  T, D, V, K = 6, 5, 11, 3
  keys = jax.random.split(jax.random.key(0), 5)
  states = [jax.random.normal(key, (1, T, D)) for key in keys[:2]]
  heads = [jax.random.normal(key, (V, D)) for key in keys[2:4]]
  tokens = jax.random.randint(keys[4], (1, T), 0, V)
  weights = jnp.arange(1, T + 1)[None] / 10
  columns = {"tokens_bs": tokens, "positions_bs": jnp.arange(T)[None], "mask_bs": jnp.ones((1, T), bool)}
  signals = Signals(**columns, weights_bs=weights, behaviour_logprob_bs=jnp.zeros((1, T)))
  teacher = Reading(states[1], heads[1])
  objective = Objective(((1.0, topk.RawTruncated(K)),), V)

  def raw(hidden, head):
    log_p, log_q = (jax.nn.log_softmax(h @ w.T) for h, w in ((hidden, head), teacher))
    best = jax.lax.top_k(log_q, K)[1]
    log_p, log_q = (jnp.take_along_axis(x, best, axis=-1) for x in (log_p, log_q))
    return (weights[..., None] * jnp.exp(log_p) * (log_p - log_q)).sum()

  ours = jax.grad(lambda *reading: objective(Reading(*reading), teacher, signals).value, (0, 1))(states[0], heads[0])
  for got, wanted in zip(ours, jax.grad(raw, (0, 1))(states[0], heads[0])):
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_a_study_goes_on_where_it_was_stopped_and_becomes_a_page(tmp_path, monkeypatch):
  monkeypatch.setattr(variance, "settings", lambda quick: TINY)
  monkeypatch.setattr(variance, "LENGTHS", TINY["lengths"])
  ran, one_seed = [], toy_training.one_seed
  monkeypatch.setattr(toy_training, "one_seed", lambda seed, **kw: ran.append(seed) or one_seed(seed, **kw))
  path = study.ledger_path(variance, tmp_path, quick=False)
  for seeds in (1, 2):  # the second finds the first's run
    ledger = Ledger(path, TINY)
    variance.run(study.Order(tmp_path, seeds, False, tmp_path, 1), ledger)
  assert ran == [0, 1]
  run = json.loads(path.read_text())["runs"]["toy seed 1"]
  assert run["steps"] == [0, 2, 4] and np.shape(run["variance"]) == (3, 5) and np.shape(run["misses"]) == (3, 5, 2)
  first = run["misses"][0]
  assert first == [first[0]] * 5 and run["misses"][-1][0] != run["misses"][-1][-1]  # one student, then one a gamma
  variance.draw(ledger, path.with_suffix(".png"))
  ledger.arrange(["toy seed 1", "none", "toy seed 0"])
  ledger.finish()
  assert list(Ledger(path, TINY)) == ["toy seed 1", "toy seed 0"]
  report.write(("variance", "topk"), tmp_path, tmp_path / "docs" / "page.md")
  page = (tmp_path / "docs" / "page.md").read_text()
  assert "2 seeds." in page and "](../variance.png)" in page and "Not run to its end yet." in page
  assert all(finding.claim in page for finding in variance.findings(ledger))
  with pytest.raises(InputError, match="other settings"):
    Ledger(path, TINY | {"walks": 9})


def test_intervals_are_students():
  """Against scipy's own, on figures whose mean and interval are known: 1 .. 5 has mean 3 and half-width 1.963."""
  ours = estimate([1, 2, 3, 4, 5])
  assert (ours.mean, round(ours.half, 3)) == (3, 1.963)
  assert f"{ours:.1f}" == "3.0 ± 2.0" and f"{estimate([0.5]):.0%}" == "50%" and f"{estimate([]):.1f}" == "-"
  assert f"{difference([0.5, 0.75], [0.25, 0.5]):+.0%}" == "+25 ± 0%"


def test_an_unknown_name_is_one_line_and_status_2():
  done = subprocess.run([sys.executable, "-m", "benchmarks.evidence", "varience"], capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean `variance`" in done.stderr
