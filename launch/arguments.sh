# shellcheck shell=bash
# Sourced by the launch scripts: their options, their help, and `perform`, which runs a command or, with --dry-run,
# prints it as it would be typed.
#
# A script fills two tables and then calls `read_arguments "$@"`:
#
#   declare -A options=([zone]="" [slices]=1)   --zone=VALUE, --slices=VALUE with their defaults
#   declare -A switches=([spot]=no)             --spot makes it yes
#   verbs="create run delete"                   the one word it takes, where it takes one
set -euo pipefail

# shellcheck disable=SC2034  # restart.sh and tpu_vm.sh read it
PREEMPTED=75   # exit status of a run that saved on SIGTERM: EX_TEMPFAIL of sysexits.h, "try again"
declare -A options=() switches=()
verbs=""
verb=""
dry_run=no
training=()    # --config=..., --config.a.b=..., --workdir=...: handed to the entry point as they are
entry_point=() # what runs in the end; given after `--`, or set by `complete_entry_point`

bad_input() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# The comment that a script starts with is its help.
show_help() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  bad_input "bash $BASH_VERSION is too old: install bash 4.4 or newer (macOS: brew install bash)"

read_arguments() {
  while (($#)); do
    case $1 in
      --help | -h)
        show_help
        exit 0
        ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        (($#)) || bad_input "nothing follows --: give the command that is to run in place of the training"
        entry_point=("$@")
        break
        ;;
      --config=* | --config.* | --noconfig.* | --workdir=*) training+=("$1") ;;
      --*) read_option "${1#--}" ;;
      *)
        [[ -n $verbs ]] || bad_input "unexpected argument '$1': options look like --name=value"
        [[ " $verbs " == *" $1 "* ]] || bad_input "unknown verb '$1': one of $verbs"
        [[ -z $verb ]] || bad_input "two verbs, '$verb' and '$1': give one of $verbs"
        verb=$1
        ;;
    esac
    shift
  done
  [[ -n $verb || -z $verbs ]] || bad_input "what is to be done is missing: give one of $verbs"
}

read_option() {
  local name=${1%%=*} known
  known=$(printf '%s\n' "${!options[@]}" "${!switches[@]}" dry-run help | sed '/^$/d; s/^/--/' | sort | paste -sd ' ' -)
  [[ $name =~ ^[a-z-]+$ && " $known " == *" --$name "* ]] || bad_input "unknown option --$name: one of $known"
  if [[ -n ${switches[$name]+known} ]]; then
    [[ $1 != *=* ]] || bad_input "--$name takes no value"
    switches[$name]=yes
  else
    [[ $1 == *=?* ]] || bad_input "--$name needs a value: --$name=VALUE"
    options[$name]=${1#*=}
  fi
}

# require NAME...: these options must have been given.
require() {
  local name
  for name in "$@"; do
    [[ -n ${options[$name]} ]] || bad_input "--$name is missing: see $0 --help"
  done
}

# positive NAME...: these options must be whole numbers above zero.
positive() {
  local name
  for name in "$@"; do
    [[ ${options[$name]} =~ ^[1-9][0-9]{0,5}$ ]] || bad_input "--$name=${options[$name]} is not a positive whole number"
  done
}

# complete_entry_point PYTHON: the training with the given --config and --workdir, unless `-- COMMAND` was given.
complete_entry_point() {
  if ((${#entry_point[@]})); then
    ((${#training[@]} == 0)) || bad_input "${training[0]} and a command after -- exclude each other"
    return
  fi
  [[ " ${training[*]} " == *" --config="* ]] || bad_input "--config is missing: give --config=configs/quickstart.py"
  [[ " ${training[*]} " == *" --workdir="* ]] || bad_input "--workdir is missing: give --workdir=runs/my_run"
  [[ -d opd_jax ]] || bad_input "there is no opd_jax in this folder: start from the root of the repository"
  entry_point=("$1" -m opd_jax.train "${training[@]}")
}

# check_interpreter PYTHON: it must be on this machine.
check_interpreter() {
  command -v "$1" >/dev/null || bad_input "--python=$1: no such interpreter; give one that has the packages of opd_jax"
}

# The interpreter of this machine: that of `make`, where it has been used.
local_python() {
  if [[ -x .venv/bin/python ]]; then echo .venv/bin/python; else echo python3; fi
}

# cpu_devices COUNT: the value of XLA_FLAGS that makes COUNT devices of this CPU, after what XLA_FLAGS already says.
cpu_devices() {
  echo "${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$1"
}

# The arguments as one line that a shell reads back as the same arguments.
quoted() {
  local argument line=""
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || argument=${argument@Q}
    line+=" $argument"
  done
  echo "${line# }"
}

perform() {
  if [[ $dry_run == yes ]]; then quoted "$@"; else "$@"; fi
}

# The same for a piece of shell text.
perform_text() {
  if [[ $dry_run == yes ]]; then echo "$1"; else bash -c "$1"; fi
}

# The same for the last command of a script, which takes its place: signals go to it, its exit status counts.
perform_last() {
  if [[ $dry_run == yes ]]; then quoted "$@"; else exec "$@"; fi
}
