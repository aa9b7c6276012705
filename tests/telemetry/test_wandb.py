"""Numbers on Weights & Biases: a stand-in of the package here, the package itself without a server where it is."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from opd_jax import train
from opd_jax.command_line import load_config
from opd_jax.errors import InputError
from opd_jax.telemetry.rows import read_rows
from opd_jax.telemetry.wandb_run import WandbRun, check_wandb
from opd_jax.telemetry.workdir import RunLog, write_command, write_config

KEY = "0123456789abcdef0123456789abcdef01234567"


class FakeRun:
  def __init__(self, **arguments):
    self.arguments, self.rows, self.x_axes, self.ended, self.broken = arguments, [], {}, None, False
    self.url = f"https://example.invalid/{arguments['id']}"

  def define_metric(self, name, step_metric=None):
    self.x_axes[name] = step_metric

  def log(self, row):
    if self.broken:
      raise ConnectionError(f"no server for {KEY}")
    self.rows.append(row)

  def finish(self, exit_code):
    self.ended = exit_code


@pytest.fixture
def fake(monkeypatch):
  """What `import wandb` gives: nobody is logged in; `runs` are those that were begun, `asked` the logins."""
  package = SimpleNamespace(runs=[], asked=[], logged_in=False, Settings=dict, setup=lambda settings: None)

  def login(*, prompt, verify):
    package.asked.append((prompt, verify))
    return package.logged_in

  def init(**arguments):
    package.runs.append(FakeRun(**arguments))
    return package.runs[-1]

  package.login, package.init = login, init
  monkeypatch.setitem(sys.modules, "wandb", package)
  monkeypatch.delenv("WANDB_MODE", raising=False)
  monkeypatch.setenv("WANDB_API_KEY", KEY)
  return package


def begin(workdir: Path, resumed: bool = False, name: str = "", mode: str = "online") -> WandbRun:
  workdir.mkdir(exist_ok=True)
  return WandbRun(workdir, project="p", name=name, mode=mode, config={"steps": 3}, resumed=resumed)


def test_without_the_package_or_a_login_a_run_does_not_begin(monkeypatch, fake, tiny_config, tmp_path):
  config = load_config(tiny_config, ["--config.log.wandb=true"])
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=r"nobody is logged in to W&B: run `wandb login`, set WANDB_API_KEY, or take"):
    train.main(config)
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match=r'cannot be imported \(.*\): pip install "opd_jax\[wandb\]"'):
    train.main(config)
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(InputError, match=r"config\.log\.wandb_mode is 'ofline' \(did you mean `offline`\?\)"):
    load_config(tiny_config, ["--config.log.wandb_mode=ofline"])


def test_a_login_is_asked_of_who_sends_to_a_server(monkeypatch, fake):
  check_wandb("offline")
  monkeypatch.setenv("WANDB_MODE", "offline")
  check_wandb("")
  assert fake.asked == []
  fake.logged_in = True
  check_wandb("online")
  assert fake.asked == [(False, True)]  # nobody is there to be prompted; the server is asked whether the key is good


def test_a_key_stands_in_no_error_and_no_file(monkeypatch, fake, tmp_path, caplog):
  def refuse(**_):
    raise RuntimeError(f"{KEY} is no key")

  with monkeypatch.context() as patch:
    patch.setattr(fake, "login", refuse)
    with pytest.raises(InputError, match=r"\*\*\* is no key.*offline") as error:
      check_wandb("online")
    patch.setattr(fake, "init", refuse)
    with pytest.raises(InputError, match=r"\*\*\* is no key"):
      begin(tmp_path / "refused")
  with RunLog(tmp_path / "run", tensorboard=False) as log:
    write_config(tmp_path / "run", {"log": {"wandb": True}})
    write_command(tmp_path / "run", "opd_jax.train", ["--config.log.wandb=true"])
    log.wandb = begin(tmp_path / "run")
    fake.runs[-1].broken = True
    for step in (1, 2):
      log.step({"step": step, "loss": 0.5})
  assert [record.getMessage() for record in caplog.records] == [
    "W&B takes no more numbers from step 1 on: no server for ***"
  ]
  assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
  assert KEY not in str(error.value)
  assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_an_older_package_is_one_line(monkeypatch, fake):
  monkeypatch.setattr(fake, "login", lambda **_: [][_])  # TypeError, as of an argument that is not known
  with pytest.raises(InputError, match=r'pip install -U "opd_jax\[wandb\]"'):
    check_wandb("online")


def test_the_numbers_of_the_rows_arrive_and_a_resumed_run_goes_on(fake, tmp_path):
  evaluation = {"step": 1, "set": "s", "model": "student", "k": 1, "temperature": 0, "accuracy": 0.5}
  with RunLog(tmp_path, tensorboard=False) as log:
    log.wandb = begin(tmp_path, name="mine")
    log.step({"step": 1, "loss": 0.25, "tokens": 7, "skewed": float("nan"), "loss_by_position": [1.0], "why": "text"})
    log.evaluation(evaluation)
  with pytest.raises(RuntimeError), RunLog(tmp_path, resume_step=1, tensorboard=False) as log:
    log.wandb = begin(tmp_path, resumed=True)
    log.step({"step": 2, "loss": 0.125})
    raise RuntimeError
  begin(tmp_path)
  first, second, anew = fake.runs
  prefix = "eval/s/student/k1_t0"
  assert first.rows == [{"train/loss": 0.25, "train/tokens": 7, "step": 1}, {f"{prefix}/accuracy": 0.5, "step": 1}]
  assert second.rows == [{"train/loss": 0.125, "step": 2}]
  assert (first.ended, second.ended) == (0, 1)
  assert first.x_axes == {"step": None, "*": "step"}
  names, resumes = ([run.arguments[key] for run in fake.runs] for key in ("name", "resume"))
  assert names == ["mine", tmp_path.name, tmp_path.name] and resumes == [None, "allow", None]
  assert first.arguments["id"] == second.arguments["id"] != anew.arguments["id"]
  assert first.arguments["config"] == {"steps": 3} and first.arguments["mode"] == "online"


def test_the_package_itself_without_a_server(monkeypatch, tmp_path):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_API_KEY", KEY)
  check_wandb("offline")
  with RunLog(tmp_path / "run", tensorboard=False) as log:
    log.wandb = begin(tmp_path / "run", mode="offline")
    assert Path(log.wandb.place).is_dir()
    log.step({"step": 1, "loss": 0.5})
  logging.shutdown()
  assert list(Path(log.wandb.place).glob("run-*.wandb"))
  assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
