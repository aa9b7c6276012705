#!/usr/bin/env bash
# Trains on the NVIDIA GPUs of this machine; started on each of several machines, on all their GPUs together.
#
#   launch/gpu.sh --config=configs/qwen3_1p7b_topd.py:h200-8 --workdir=runs/qwen3
#   launch/gpu.sh --hosts=2 --host=0 --coordinator=10.0.0.1:12345 --config=... --workdir=...    on the first of two
#   launch/gpu.sh --hosts=2 --host=1 --coordinator=10.0.0.1:12345 --config=... --workdir=...    on the second
#
#   --config=FILE --workdir=FOLDER --config.a.b=VALUE   go to python -m opd_jax.train
#   --gpus=0,1,...        use these GPUs alone; all of them where none are given
#   --memory=0.92         share of each GPU's memory that JAX takes at start
#   --hosts=1             machines; each sees the same --workdir (a shared file system)
#   --host=NUMBER         this machine's number, from 0; needed with --hosts above 1
#   --coordinator=A:P     address and port of machine 0; needed with --hosts above 1
#   --python=PATH         interpreter; .venv/bin/python where it exists, else python3 (requirements-cuda.txt in it)
#   --dry-run             print the command, run nothing
#   -- COMMAND            run COMMAND in place of the training
#
# SIGTERM or Ctrl-C saves and ends with status 75; the same command goes on from there.
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=arguments.sh
source "$here/arguments.sh"

declare -A options=([gpus]="" [memory]=0.92 [hosts]=1 [host]="" [coordinator]="" [python]=$(local_python)) switches=()
read_arguments "$@"
positive hosts
[[ ${options[memory]} =~ ^(0\.[0-9]*[1-9][0-9]*|1\.0)$ ]] ||
  bad_input "--memory=${options[memory]} is not a share: give 0.01 to 1.0"
[[ ${options[gpus]:-0} =~ ^[0-9]+(,[0-9]+)*$ ]] ||
  bad_input "--gpus=${options[gpus]} is not a list of numbers: give --gpus=0,1"
check_interpreter "${options[python]}"
complete_entry_point "${options[python]}"

place=(JAX_PLATFORMS=cuda "XLA_PYTHON_CLIENT_MEM_FRACTION=${options[memory]}")
[[ -z ${options[gpus]} ]] || place+=("CUDA_VISIBLE_DEVICES=${options[gpus]}")
if ((options[hosts] > 1)); then
  require host coordinator
  [[ ${options[host]} =~ ^(0|[1-9][0-9]{0,5})$ && ${options[host]} -lt ${options[hosts]} ]] ||
    bad_input "--host=${options[host]} is not one of 0 to $((options[hosts] - 1))"
  [[ ${options[coordinator]} =~ ^.+:[0-9]+$ ]] || bad_input "--coordinator=${options[coordinator]} is not ADDRESS:PORT"
  place+=(
    "JAX_COORDINATOR_ADDRESS=${options[coordinator]}" "JAX_NUM_PROCESSES=${options[hosts]}"
    "JAX_PROCESS_ID=${options[host]}"
  )
fi
perform_last env "${place[@]}" "$here/restart.sh" "${entry_point[@]}"
