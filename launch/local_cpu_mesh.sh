#!/usr/bin/env bash
# Trains on this machine's CPU as if it were eight devices: a mesh to try a sharded run on.
#
#   launch/local_cpu_mesh.sh --config=configs/quickstart.py --workdir=runs/mesh --config.mesh.tensor=2
#
#   --config=FILE --workdir=FOLDER --config.a.b=VALUE   go to python -m opd_jax.train
#   --devices=8      simulated devices
#   --python=PATH    interpreter; .venv/bin/python where it exists, else python3
#   --dry-run        print the command, run nothing
#   -- COMMAND       run COMMAND on those devices in place of the training
#
# SIGTERM or Ctrl-C saves and ends with status 75; the same command goes on from there. A run that is preempted
# without this script being told is started again by itself.
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=arguments.sh
source "$here/arguments.sh"

declare -A options=([devices]=8 [python]=$(local_python)) switches=()
read_arguments "$@"
positive devices
check_interpreter "${options[python]}"
complete_entry_point "${options[python]}"

perform_last env JAX_PLATFORMS=cpu "XLA_FLAGS=$(cpu_devices "${options[devices]}")" \
  "$here/restart.sh" "${entry_point[@]}"
