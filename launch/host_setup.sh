#!/usr/bin/env bash
# Makes a fresh cloud machine ready to train: Python packages in .venv, and the bucket of the run as a folder.
# tpu_vm.sh and skypilot.yaml start it on every host, in the root of the copied repository.
#
#   launch/host_setup.sh --bucket=my-bucket
#
#   --requirements=requirements-tpu.txt   packages to install
#   --python-version=3.12                 uv fetches it where the machine has an older one
#   --bucket=NAME     a Cloud Storage bucket to mount at ./bucket, so that --workdir=bucket/... outlives the machine
#   --dry-run         print the commands, run nothing
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=arguments.sh
source "$here/arguments.sh"

declare -A options=([requirements]=requirements-tpu.txt [python-version]=3.12 [bucket]="") switches=()
read_arguments "$@"
[[ -f ${options[requirements]} ]] ||
  bad_input "there is no ${options[requirements]} here: start from the root of the repository"

perform python3 -m pip install --quiet --user uv
perform python3 -m uv venv --quiet --allow-existing "--python=${options[python-version]}" .venv
perform python3 -m uv pip install --quiet --python=.venv/bin/python -r "${options[requirements]}"
if [[ -n ${options[bucket]} ]]; then
  if [[ $dry_run == yes ]] || ! command -v gcsfuse >/dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    packages=https://packages.cloud.google.com/apt
    perform sudo curl -fsSo "$key" "$packages/doc/apt-key.gpg"
    list=/etc/apt/sources.list.d/gcsfuse.list
    perform_text "echo \"deb [signed-by=$key] $packages gcsfuse-\$(lsb_release -cs) main\" | sudo tee $list"
    perform sudo apt-get -qq update
    perform sudo apt-get -qq install --yes gcsfuse
  fi
  perform mkdir -p bucket
  if [[ $dry_run == yes ]] || ! mountpoint -q bucket; then
    perform gcsfuse --implicit-dirs "${options[bucket]}" bucket
  fi
fi
