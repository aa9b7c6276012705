#!/usr/bin/env bash
# Trains on a GKE cluster through xpk (pip install xpk), which turns one command into a JobSet of the right size.
#
#   launch/xpk.sh submit --cluster=tpus --zone=us-west4-a --name=opd --type=v5litepod-16 --image=REGISTRY/opd_jax:1 \
#       --storage=my-bucket --config=configs/qwen3_1p7b_topd.py --workdir=bucket/qwen3
#   launch/xpk.sh list   --cluster=tpus --zone=us-west4-a
#   launch/xpk.sh logs   --cluster=tpus --zone=us-west4-a --name=opd
#   launch/xpk.sh delete --cluster=tpus --zone=us-west4-a --name=opd
#
#   --cluster=NAME --zone=ZONE  the cluster; --project=ID where it is not gcloud's own
#   --name=NAME          the workload
#   --type=TYPE          TPU type of a slice, v5litepod-16
#   --slices=1           slices that train as one run
#   --image=IMAGE        made of launch/Dockerfile
#   --storage=NAME       attached before with: xpk storage attach NAME --mount-point=/opd_jax/bucket ...
#   --restarts=100       times that GKE starts the workload again after exit status 75 (preempted and saved) or a kill
#   --grace=300          seconds between SIGTERM and the kill: time to save a checkpoint
#   --config=FILE --workdir=FOLDER --config.a.b=VALUE   go to python -m opd_jax.train
#   --dry-run            print the commands, run nothing
#   -- COMMAND           run COMMAND on every host in place of the training
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=arguments.sh
source "$here/arguments.sh"

verbs="submit list logs delete"
declare -A options=(
  [cluster]="" [zone]="" [project]="" [name]="" [type]="" [slices]=1 [image]="" [storage]="" [restarts]=100 [grace]=300
)
read_arguments "$@"
require cluster zone
[[ $verb == list ]] || require name
[[ ${options[name]:-list} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  bad_input "--name=${options[name]} must start with a letter and be at most 40 of a-z, 0-9 and -"
positive slices restarts grace

where=("--cluster=${options[cluster]}" "--zone=${options[zone]}")
project=()
[[ -z ${options[project]} ]] || project=("--project=${options[project]}")

submit() {
  local storage=() command
  require type image
  complete_entry_point python
  # exec: xpk's wrapper sends SIGTERM to the shell that it starts this with, so that shell has to become the run.
  command=$(quoted exec "${entry_point[@]}")
  [[ -z ${options[storage]} ]] || storage=("--storage=${options[storage]}")
  perform_last xpk workload create "${where[@]}" "${project[@]}" "--workload=${options[name]}" \
    "--tpu-type=${options[type]}" "--num-slices=${options[slices]}" "--docker-image=${options[image]}" \
    "${storage[@]}" "--max-restarts=${options[restarts]}" "--restart-on-exit-codes=$PREEMPTED" \
    "--termination-grace-period-seconds=${options[grace]}" "--command=$command"
}

list() {
  perform_last xpk workload list "${where[@]}" "${project[@]}"
}

# Pod 0 of slice 0 is process 0, which writes the log. The list also points kubectl at the cluster.
logs() {
  perform xpk workload list "${where[@]}" "${project[@]}" "--filter-by-job=${options[name]}"
  local first="jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
  perform_last kubectl logs --follow --tail=-1 --all-containers \
    "--selector=jobset.sigs.k8s.io/jobset-name=${options[name]},$first"
}

delete() {
  perform_last xpk workload delete "${where[@]}" "${project[@]}" "--workload=${options[name]}"
}

$verb
