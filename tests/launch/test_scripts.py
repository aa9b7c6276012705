"""What every launch script promises: clean shell, help, a dry run that runs nothing, one line for bad arguments."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh") if path.name != "arguments.sh")
TRAINING = ("--config=configs/quickstart.py", "--workdir=runs/x")
TPU = ("--name=opd", "--zone=us-west4-a")
XPK = ("--cluster=c", "--zone=us-west4-a")


def test_shellcheck():
  shellcheck = Path(sys.executable).with_name("shellcheck")
  files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
  result = subprocess.run([shellcheck, "--external-sources", *files], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


def test_every_script_has_golden_dry_runs():
  assert {path.stem for path in GOLDEN.glob("*.txt")} == {name.removesuffix(".sh") for name in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_runs(script, launch, environment):
  """The golden file is a transcript: lines `$ launch/...`, each followed by all that it prints."""
  expected = (GOLDEN / script).with_suffix(".txt").read_text()
  commands = [line.removeprefix("$ ") for line in expected.splitlines() if line.startswith("$ ")]
  transcript = ""
  for command in commands:
    assert " --dry-run" in command and shlex.split(command)[0] == f"launch/{script}"
    result = launch(script, *shlex.split(command)[1:])
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    transcript += f"$ {command}\n{result.stdout}"
  assert transcript == expected
  assert not Path(environment["CALLS"]).exists()


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud itself checks its flags, where there is one")
def test_gcloud_knows_every_flag(tmp_path):
  text = "".join(path.read_text() for path in GOLDEN.glob("*.txt"))
  commands = {line for line in text.splitlines() if line.startswith("gcloud ")}
  listing = tmp_path / "commands.json"
  listing.write_text(json.dumps([{"command_string": command} for command in sorted(commands)]))
  result = subprocess.run(
    ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={listing}"],
    env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
    capture_output=True,
    text=True,
  )
  verdicts = json.loads(result.stdout)
  assert len(verdicts) == len(commands) > 8
  assert [verdict["error_message"] for verdict in verdicts if not verdict["success"]] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, launch):
  result = launch(script, "--help")
  assert result.returncode == 0 and result.stderr == ""
  assert f"launch/{script}" in result.stdout and "--dry-run" in result.stdout
  assert not any(line.startswith("#") for line in result.stdout.splitlines())


@pytest.mark.parametrize(
  "script, arguments, complaint",
  [
    ("local_cpu_mesh.sh", TRAINING[1:], "--config is missing"),
    ("local_cpu_mesh.sh", TRAINING[:1], "--workdir is missing"),
    ("local_cpu_mesh.sh", (*TRAINING, "--devices=0"), "--devices=0 is not a positive whole number"),
    ("local_cpu_mesh.sh", (*TRAINING, "--devices"), "--devices needs a value"),
    ("local_cpu_mesh.sh", (*TRAINING, "--device=8"), "unknown option --device: one of --devices --dry-run"),
    ("local_cpu_mesh.sh", (*TRAINING, "--x[$(id)]=8"), "unknown option --x[$(id)]"),
    ("local_cpu_mesh.sh", (*TRAINING, "train"), "unexpected argument 'train'"),
    ("local_cpu_mesh.sh", (*TRAINING, "--"), "nothing follows --"),
    ("local_cpu_mesh.sh", (*TRAINING, "--", "true"), "exclude each other"),
    ("local_processes.sh", (*TRAINING, "--processes=two"), "--processes=two is not a positive whole number"),
    ("local_processes.sh", (*TRAINING, "--python=/nope"), "--python=/nope: no such interpreter"),
    ("local_processes.sh", (*TRAINING, "--port=70000"), "--port=70000 is no port"),
    ("gpu.sh", (*TRAINING, "--gpus=all"), "--gpus=all is not a list"),
    ("gpu.sh", (*TRAINING, "--memory=92"), "--memory=92 is not a share"),
    ("gpu.sh", (*TRAINING, "--hosts=2"), "--host is missing"),
    ("gpu.sh", (*TRAINING, "--hosts=2", "--host=2", "--coordinator=a:1"), "--host=2 is not one of 0 to 1"),
    ("gpu.sh", (*TRAINING, "--hosts=2", "--host=1", "--coordinator=a"), "is not ADDRESS:PORT"),
    ("host_setup.sh", ("--requirements=none.txt",), "there is no none.txt here"),
    ("restart.sh", (), "the command is missing"),
    ("tpu_vm.sh", TPU, "what is to be done is missing: give one of create setup run"),
    ("tpu_vm.sh", ("destroy", *TPU), "unknown verb 'destroy'"),
    ("tpu_vm.sh", ("create", "delete", *TPU), "two verbs, 'create' and 'delete'"),
    ("tpu_vm.sh", ("create", *TPU), "--type is missing"),
    ("tpu_vm.sh", ("create", *TPU, "--type=v9-4"), "--type=v9-4 is none of"),
    ("tpu_vm.sh", ("create", *TPU, "--type=v6e-8", "--slices=2"), "--slices=2 needs --queued"),
    ("tpu_vm.sh", ("create", *TPU, "--type=v6e-8", "--valid-until=6h"), "--valid-until needs --queued"),
    ("tpu_vm.sh", ("create", *TPU, "--type=v6e-8", "--spot=yes"), "--spot takes no value"),
    ("tpu_vm.sh", ("run", *TPU), "--config is missing"),
    ("tpu_vm.sh", ("logs", "--zone=us-west4-a"), "--name is missing"),
    ("tpu_vm.sh", ("logs", "--zone=us-west4-a", "--name=My run"), "--name=My run must start with a letter"),
    ("xpk.sh", ("submit", *XPK), "--name is missing"),
    ("xpk.sh", ("submit", *XPK, "--name=opd", "--type=v6e-8", *TRAINING), "--image is missing"),
    ("xpk.sh", ("list", "--zone=us-west4-a"), "--cluster is missing"),
  ],
)
def test_bad_arguments(script, arguments, complaint, launch, environment):
  result = launch(script, *arguments)
  assert result.returncode == 2
  assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
  assert complaint in result.stderr
  assert result.stdout == ""
  assert not Path(environment["CALLS"]).exists()


def test_elsewhere_than_in_the_root(tmp_path):
  result = subprocess.run([ROOT / "launch/local_cpu_mesh.sh", *TRAINING], cwd=tmp_path, capture_output=True, text=True)
  assert (result.returncode, result.stderr.count("\n")) == (2, 1)
  assert "start from the root of the repository" in result.stderr


def test_settings_that_are_already_there_are_kept(launch, environment):
  environment["XLA_FLAGS"] = "--xla_dump_to=a b"
  result = launch("local_cpu_mesh.sh", "--dry-run", "--", "true")
  assert "XLA_FLAGS=--xla_dump_to=a b --xla_force_host_platform_device_count=8" in shlex.split(result.stdout)


arguments = st.lists(
  st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12), min_size=1
)


@settings(max_examples=40)
@given(arguments)
def test_a_printed_command_reads_back_as_itself(words):
  """Whatever the arguments hold, a shell that is given the printed line sees the same arguments."""
  script = 'source launch/arguments.sh; line=$(quoted printf "%s\\0" "$@"); eval "$line"'
  result = subprocess.run(["bash", "-c", script, "bash", *words], cwd=ROOT, capture_output=True, check=True)
  assert result.stdout.decode().split("\0")[:-1] == words
