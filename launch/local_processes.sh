#!/usr/bin/env bash
# Trains with several processes on this machine, joined over loopback: what the hosts of a pod do, without a pod.
#
#   launch/local_processes.sh --config=configs/quickstart.py --workdir=runs/processes
#
#   --config=FILE --workdir=FOLDER --config.a.b=VALUE   go to python -m opd_jax.train
#   --processes=2    processes
#   --devices=4      simulated devices of each
#   --port=NUMBER    where process 0 listens; a free port where none is given
#   --patience=90    seconds that the others get to end by themselves once one has failed
#   --python=PATH    interpreter; .venv/bin/python where it exists, else python3
#   --dry-run        print the commands, run nothing
#   -- COMMAND       start COMMAND in place of the training
#
# Each process finds its place in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. SIGTERM or Ctrl-C
# makes all of them save and end with status 75. The exit status is that of the first process to fail.
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=arguments.sh
source "$here/arguments.sh"

declare -A options=([processes]=2 [devices]=4 [port]="" [patience]=90 [python]=$(local_python)) switches=()
read_arguments "$@"
positive processes devices patience
check_interpreter "${options[python]}"
complete_entry_point "${options[python]}"
if [[ -z ${options[port]} ]]; then
  listen='import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
  options[port]=$("${options[python]}" -c "$listen")
fi
positive port
((options[port] < 65536)) || bad_input "--port=${options[port]} is no port: give one from 1 to 65535"

declare -A running=() # pid -> process id
# shellcheck disable=SC2329  # the trap calls it
stop() { kill -TERM "${!running[@]}" 2>/dev/null || true; }
trap stop TERM INT

# Job control gives each process a group of its own, so that one that hangs can be ended with all its children.
set -m
for ((process_id = 0; process_id < options[processes]; process_id++)); do
  place=(
    JAX_PLATFORMS=cpu "XLA_FLAGS=$(cpu_devices "${options[devices]}")"
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:${options[port]}" "JAX_NUM_PROCESSES=${options[processes]}"
    "JAX_PROCESS_ID=$process_id"
  )
  if [[ $dry_run == yes ]]; then
    echo "$(quoted env "${place[@]}" "$here/restart.sh" "${entry_point[@]}") &"
  else
    env "${place[@]}" "$here/restart.sh" "${entry_point[@]}" </dev/null &
    running[$!]=$process_id
  fi
done
set +m
if [[ $dry_run == yes ]]; then
  echo wait
  exit 0
fi

failure=0
failed_at=0
while ((${#running[@]})); do
  for pid in "${!running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then continue; fi
    wait "$pid" && status=0 || status=$?
    if ((status && !failure)); then
      failure=$status failed_at=$SECONDS
      echo "process ${running[$pid]} ended with status $status" >&2
    fi
    unset "running[$pid]"
  done
  if ((failure && SECONDS - failed_at > options[patience] && ${#running[@]})); then
    echo "error: process(es) ${running[*]} still ran after ${options[patience]} seconds and are killed" >&2
    for pid in "${!running[@]}"; do kill -KILL -- "-$pid"; done
    failed_at=$SECONDS
  fi
  sleep 0.2
done
exit "$failure"
