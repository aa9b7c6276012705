#!/usr/bin/env bash
# Trains on Cloud TPU VMs: makes them, sets them up, starts the run on every host, shows its log, deletes them.
#
#   launch/tpu_vm.sh create    --name=opd --zone=us-west4-a --type=v5litepod-16 --queued --spot
#   launch/tpu_vm.sh setup     --name=opd --zone=us-west4-a --bucket=my-bucket
#   launch/tpu_vm.sh run       --name=opd --zone=us-west4-a --config=configs/qwen3_1p7b_topd.py --workdir=bucket/qwen3
#   launch/tpu_vm.sh logs      --name=opd --zone=us-west4-a
#   launch/tpu_vm.sh delete    --name=opd --zone=us-west4-a
#   launch/tpu_vm.sh supervise ...all of the above...   create, setup, run, and wait for the end of the run; all of it
#                                                       again when the machines are taken away
#
#   --name=NAME --zone=ZONE  the TPU; --project=ID where it is not gcloud's own
#   --type=v5litepod-16      accelerator type; --runtime=VERSION where it is not the usual one of that type
#   --spot                   cheaper machines that may be taken away at any time
#   --queued                 as a queued resource: waits until there are machines (give it to every verb)
#   --valid-until=6h         with --queued: give up waiting after this long
#   --slices=1               TPU slices that train as one run, above 1 with --queued (give it to every verb)
#   --bucket=NAME            mounted as ./bucket on every host: a --workdir=bucket/... outlives the machines
#   --poll=60                supervise, create --queued: seconds between two looks
#   --config=FILE --workdir=FOLDER --config.a.b=VALUE   go to python -m opd_jax.train
#   --dry-run                print the commands, run nothing
#   -- COMMAND               run COMMAND on every host in place of the training
#
# setup copies the last commit of this repository. run returns at once; the run goes on without this machine, is
# started again after exit status 75 (preempted and saved), writes opd_jax/train.log on each host, and its exit status
# to opd_jax/train.status when it ends. Gated models: put them into the bucket; no token is copied anywhere.
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=arguments.sh
source "$here/arguments.sh"

verbs="create setup run logs delete supervise"
declare -A switches=([spot]=no [queued]=no) options=(
  [name]="" [zone]="" [project]="" [type]="" [runtime]="" [valid-until]="" [slices]=1 [bucket]="" [poll]=60
)
read_arguments "$@"
require name zone
[[ ${options[name]} =~ ^[a-z]([-a-z0-9]{0,36}[a-z0-9])?$ ]] ||
  bad_input "--name=${options[name]} must start with a letter and be at most 38 of a-z, 0-9 and -"
positive slices poll
if [[ ${switches[queued]} == no ]]; then
  ((options[slices] == 1)) || bad_input "--slices=${options[slices]} needs --queued: slices are created together"
  [[ -z ${options[valid-until]} ]] || bad_input "--valid-until needs --queued"
fi
[[ $verb != run && $verb != supervise ]] || complete_entry_point .venv/bin/python
[[ $verb != create && $verb != supervise ]] || require type

where=("--zone=${options[zone]}")
[[ -z ${options[project]} ]] || where+=("--project=${options[project]}")
tpus=(gcloud compute tpus tpu-vm)
[[ ${switches[queued]} == no ]] || tpus=(gcloud compute tpus queued-resources)

# on HOSTS COMMAND...: gcloud's ssh or scp, for all hosts or for host 0 (of slice 0).
on() {
  local hosts=("--worker=$1")
  [[ ${switches[queued]} == no ]] || hosts+=("--node=$1")
  perform "${tpus[@]}" "${@:2}" "${where[@]}" "${hosts[@]}"
}

runtime() {
  case ${options[type]} in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) bad_input "--type=${options[type]} is none of v5litepod-N, v5p-N, v6e-N, v4-N: give its --runtime too" ;;
  esac
}

create() {
  local runtime size spot=() limit=()
  runtime=${options[runtime]:-$(runtime)} || exit
  [[ ${switches[spot]} == no ]] || spot=(--spot)
  if [[ ${switches[queued]} == no ]]; then
    perform "${tpus[@]}" create "${options[name]}" "${where[@]}" \
      "--accelerator-type=${options[type]}" "--version=$runtime" "${spot[@]}"
    return
  fi
  size=("--node-id=${options[name]}")
  ((options[slices] == 1)) || size=("--node-count=${options[slices]}" "--node-prefix=${options[name]}")
  [[ -z ${options[valid-until]} ]] || limit=("--valid-until-duration=${options[valid-until]}")
  perform "${tpus[@]}" create "${options[name]}" "${where[@]}" \
    "--accelerator-type=${options[type]}" "--runtime-version=$runtime" "${size[@]}" "${spot[@]}" "${limit[@]}"
  perform_text "$(wait_until_active)"
}

# Shell text that waits until a queued resource has its machines.
wait_until_active() {
  local state
  state=$(quoted "${tpus[@]}" describe "${options[name]}" "${where[@]}" "--format=value(state.state)")
  cat <<TEXT
until state=\$($state) && [ "\$state" = ACTIVE ]; do
  case \$state in FAILED | SUSPEND*) echo "error: it is \$state: delete it and create it again" >&2; exit 1 ;; esac
  sleep ${options[poll]}
done
TEXT
}

setup() {
  local archive=${TMPDIR:-/tmp}/opd_jax-${options[name]}.tar.gz host_setup=(launch/host_setup.sh)
  [[ -z ${options[bucket]} ]] || host_setup+=("--bucket=${options[bucket]}")
  perform git archive --format=tar.gz --prefix=opd_jax/ "--output=$archive" HEAD
  on all scp "$archive" "${options[name]}:opd_jax.tar.gz"
  perform rm "$archive"
  on all ssh "${options[name]}" "--command=tar -xzf opd_jax.tar.gz && cd opd_jax && $(quoted "${host_setup[@]}")"
}

# The braces keep the started command apart from ssh, which would wait for it; the status file tells that it ended.
run() {
  local command
  command="$(quoted launch/restart.sh "${entry_point[@]}"); echo \$? >train.status"
  command="nohup bash -c $(quoted "$command") >train.log 2>&1 </dev/null"
  on all ssh "${options[name]}" "--command=cd opd_jax && rm -f train.status && { $command & }"
}

logs() {
  on 0 ssh "${options[name]}" "--command=tail -n +1 -F opd_jax/train.log"
}

delete() {
  local force=()
  [[ ${switches[queued]} == no ]] || force=(--force) # the machines too, not the request alone
  perform "${tpus[@]}" delete "${options[name]}" "${where[@]}" --quiet "${force[@]}"
}

# Prints what train.status on host 0 says, `running` where there is none; fails where the host does not answer.
look() {
  on 0 ssh "${options[name]}" "--command=cat opd_jax/train.status 2>/dev/null || echo running"
}

supervise() {
  local status silent
  while :; do
    create
    setup
    run
    if [[ $dry_run == yes ]]; then
      echo "# every ${options[poll]} seconds:"
      look
      echo "# the end when it prints an exit status other than $PREEMPTED; on $PREEMPTED, or no answer three times:"
      delete
      echo "# and all of it again"
      return
    fi
    silent=0 status=running
    while [[ $status == running ]] && ((silent < 3)); do
      sleep "${options[poll]}"
      if status=$(look | tail -n 1); then silent=0; else silent=$((silent + 1)); fi
      [[ $status =~ ^[0-9]+$ ]] || status=running
    done
    [[ $status == running || $status == "$PREEMPTED" ]] || return "$status"
    echo "the machines were taken away: making new ones" >&2
    delete || true # they may be gone altogether
  done
}

$verb
