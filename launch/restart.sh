#!/usr/bin/env bash
# Runs a command, and again for as long as it ends with exit status 75: preempted, saved, to be continued.
#
#   launch/restart.sh [--dry-run] COMMAND [ARGUMENT ...]
#
# A SIGTERM or SIGINT to this script goes on to the command as SIGTERM, which saves a checkpoint; it is not started
# again then, and its status is this script's: whoever sent the signal knows when to come back. The same holds after
# 100 restarts, so that a run which can never continue does not burn a machine for ever.
# shellcheck source-path=SCRIPTDIR source=arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

most_restarts=100
case ${1-} in
  --help | -h)
    show_help
    exit 0
    ;;
  --dry-run)
    dry_run=yes
    shift
    ;;
esac
(($#)) || bad_input "the command is missing: $0 COMMAND [ARGUMENT ...]"
if [[ $dry_run == yes ]]; then
  perform "$@"
  exit 0
fi

signals=0
process=""
stop() {
  signals=$((signals + 1))
  [[ -z $process ]] || kill -TERM "$process" 2>/dev/null || true
}
trap stop TERM INT

# Leaves the command's exit status in `status`. A signal with a trap ends `wait` before the command has ended.
wait_for_process() {
  local before
  while :; do
    before=$signals
    wait "$process" && status=0 || status=$?
    ((before != signals)) || break
  done
}

for ((restarts = 0; ; restarts++)); do
  "$@" &
  process=$!
  wait_for_process
  process=""
  ((status == PREEMPTED && signals == 0 && restarts < most_restarts)) || exit "$status"
  echo "exit status $PREEMPTED: preempted and saved; starting again" >&2
done
