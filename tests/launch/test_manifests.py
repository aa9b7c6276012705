"""The Kubernetes and SkyPilot files: every field is one that the API has, and they start the training that they say."""

import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from opd_jax import command_line
from opd_jax.distributed.mesh import mesh_shape
from opd_jax.train import PREEMPTED
from tests.launch.conftest import write_program

ROOT = Path(__file__).resolve().parents[2]
JOBSETS = {"jobset_single_slice.yaml": 1, "jobset_multi_slice.yaml": 2}  # file -> slices
BAD_INPUT = 2  # exit status of opd_jax.command_line

# The fields of jobset.x-k8s.io/v1alpha2 that one may set (the JobSet project's API reference), by type.
JOBSET_SPEC = {
  "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator", "managedBy",
  "ttlSecondsAfterFinished",
}  # fmt: skip
REPLICATED_JOB = {"name", "groupName", "template", "replicas", "dependsOn"}
FAILURE_POLICY = {"maxRestarts", "restartStrategy", "rules"}
FAILURE_POLICY_RULE = {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RecreateJob"}
JOB_FAILURE_REASONS = {
  "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy",
}  # fmt: skip


def read(name):
  return yaml.safe_load((ROOT / "launch" / name).read_text())


@pytest.fixture(params=JOBSETS)
def jobset(request):
  return read(request.param)


@pytest.fixture
def job(jobset):
  """The template of a slice's Job, as the Job that the controller makes of it."""
  (replicated,) = jobset["spec"]["replicatedJobs"]
  return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice-0"}, **replicated["template"]}


@pytest.fixture
def pod(job):
  return job["spec"]["template"]["spec"]


def test_jobset_fields(jobset):
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert jobset.keys() == {"apiVersion", "kind", "metadata", "spec"}
  assert jobset["spec"].keys() <= JOBSET_SPEC
  for replicated in jobset["spec"]["replicatedJobs"]:
    assert replicated.keys() <= REPLICATED_JOB and replicated["template"].keys() <= {"metadata", "spec"}
  policy = jobset["spec"]["failurePolicy"]
  assert policy.keys() <= FAILURE_POLICY and policy["maxRestarts"] > 0
  for rule in policy["rules"]:
    assert rule.keys() <= FAILURE_POLICY_RULE and rule["action"] in ACTIONS
    assert set(rule["onJobFailureReasons"]) <= JOB_FAILURE_REASONS
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


def test_jobs_and_pods_are_valid(job):
  kubernetes_validate.validate(job, "1.31", strict=True)


def test_the_validator_sees_an_unknown_field(job, pod):
  pod["terminationGraceSeconds"] = 300
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, "1.31", strict=True)


def test_names_fit_into_a_host_name(jobset):
  """A pod's host name, JOBSET-JOB-SLICE-HOST, is at most 63 characters."""
  name = f"{jobset['metadata']['name']}-{jobset['spec']['replicatedJobs'][0]['name']}-99-9999"
  assert len(name) <= 63 and name.replace("-", "").isalnum() and name == name.lower()


@pytest.mark.parametrize("name, slices", JOBSETS.items())
def test_hosts_and_chips_make_the_slice(name, slices):
  (replicated,) = read(name)["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  pod = spec["template"]["spec"]
  assert replicated["replicas"] == slices
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
  rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
  assert spec["parallelism"] == spec["completions"] == rows * columns // chips
  assert spec["completionMode"] == "Indexed"


def test_a_preempted_job_starts_again_and_bad_input_does_not(jobset, job, pod):
  """Any pod's failure fails the Job; a Job's failure restarts the set unless it was for bad input."""
  assert job["spec"]["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
  (rule,) = job["spec"]["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  on_exit = rule["onExitCodes"]
  assert (on_exit["operator"], on_exit["values"]) == ("In", [BAD_INPUT]) and PREEMPTED not in on_exit["values"]
  assert on_exit["containerName"] == pod["containers"][0]["name"]
  assert [rule["onJobFailureReasons"] for rule in jobset["spec"]["failurePolicy"]["rules"]] == [["PodFailurePolicy"]]
  assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
  assert pod["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize("name, slices", JOBSETS.items())
def test_the_training_fits_the_chips(name, slices, monkeypatch):
  """The arguments are those of a config that loads, and whose mesh and batch divide over the chips."""
  monkeypatch.chdir(ROOT)
  (replicated,) = read(name)["spec"]["replicatedJobs"]
  (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
  assert container["command"] == ["python", "-m", "opd_jax.train"]
  spec, overrides, rest = command_line.split(container["args"])
  config = command_line.load_config(spec, overrides)
  assert [argument.partition("=")[0] for argument in rest] == ["--workdir"]
  chips = slices * 16
  data, fsdp, _ = mesh_shape((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), chips)
  assert data % slices == 0
  assert config.rows % (config.optimizer.micro_batches * data * fsdp) == 0


def test_paths_of_the_run_are_in_the_bucket(pod):
  (container,) = pod["containers"]
  (mount,) = container["volumeMounts"]
  (volume,) = pod["volumes"]
  workdir = next(line for line in (ROOT / "launch/Dockerfile").read_text().splitlines() if line.startswith("WORKDIR"))
  assert mount == {"name": volume["name"], "mountPath": f"{workdir.split()[1]}/bucket"}
  assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
  assert container["args"][0].startswith("--config=configs/")
  paths = [value for value in container["args"][1:] if "path=" in value or "workdir=" in value]
  assert len(paths) == 3 and all("=bucket/" in value for value in paths)


def test_no_token_is_written_down(pod):
  for variable in pod["containers"][0]["env"]:
    assert variable.keys() == {"name", "valueFrom"} and "secretKeyRef" in variable["valueFrom"]
  assert read("skypilot.yaml")["secrets"] == {"HF_TOKEN": ""}


def test_single_and_multi_slice_differ_where_they_must():
  single, multi = (read(name) for name in JOBSETS)
  container = multi["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
  changed = ["--workdir=", "--config.mesh.data=", "--config.optimizer.micro_batches="]
  container["args"] = [argument for argument in container["args"] if not argument.startswith(tuple(changed))]
  container["ports"] = [port for port in container["ports"] if port["containerPort"] != 8080]
  multi["spec"]["replicatedJobs"][0]["replicas"] = 1
  multi["metadata"]["name"] = single["metadata"]["name"]
  args = single["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
  args[:] = [argument for argument in args if not argument.startswith(tuple(changed))]
  assert multi == single


def test_skypilot():
  """Fields of SkyPilot's task and resources schemas; the run ends at the entry point."""
  task = read("skypilot.yaml")
  assert task.keys() == {"name", "resources", "workdir", "envs", "secrets", "setup", "run"}
  resources = task["resources"]
  assert resources.keys() == {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
  assert resources["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [PREEMPTED]}
  assert task["envs"]["BUCKET"] is None  # SkyPilot then asks for it
  assert task["setup"].split()[0] == "launch/host_setup.sh"
  spec = task["envs"]["CONFIG"]
  assert (ROOT / spec.partition(":")[0]).is_file()


def test_skypilot_run_hands_over_its_variables(tmp_path, environment):
  """The run block, executed: the entry point gets the config and the workdir whole, in place of the shell."""
  python = tmp_path / "host/.venv/bin/python"
  python.parent.mkdir(parents=True)
  write_program(python, 'printf "%s\\n" "$@"; exit 75')
  variables = {"BUCKET": "b", "CONFIG": "configs/a b.py:x", "RUN": "my run"}
  result = subprocess.run(
    ["bash", "-c", read("skypilot.yaml")["run"]],
    cwd=tmp_path / "host",
    env=environment | variables,
    capture_output=True,
    text=True,
  )
  assert result.returncode == PREEMPTED
  arguments = ["-m", "opd_jax.train", "--config=configs/a b.py:x", "--workdir=bucket/runs/my run"]
  assert result.stdout.splitlines() == arguments
