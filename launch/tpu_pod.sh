#!/usr/bin/env bash
# Creates, sets up, uses and deletes a TPU slice with gcloud:
#   launch/tpu_pod.sh create --name b16 --zone us-west4-a --type v5litepod-64
#   launch/tpu_pod.sh setup  --name b16 --zone us-west4-a --bucket my-runs
#   launch/tpu_pod.sh run    --name b16 --zone us-west4-a -- --config configs/clip_vit_b16.py --workdir runs/b16
#   launch/tpu_pod.sh delete --name b16 --zone us-west4-a
#
# create   create the slice
# setup    copy this checkout to all hosts, install it, and mount the bucket at `runs`
# run      train on all hosts; restart after a preemption (exit code 75)
# resume   after a spot slice was reclaimed: delete what is left, then create, setup and run
# delete   delete the slice; the bucket stays
#
# --project P   project (default: that of gcloud)
# --version V   TPU software (default: tpu-ubuntu2204-base)
# --bucket B    bucket with hierarchical namespace, in which renaming a checkpoint is atomic
# --spot        slice that can be reclaimed at any time, at a lower price
# --dry-run     print the commands instead of running them
set -euo pipefail

usage() {
  sed -n '2,19s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

action=${1:-}
[[ $action =~ ^(create|setup|run|resume|delete)$ ]] || usage
shift

name='' zone='' type='' bucket='' project='' spot='' dry_run=''
version=tpu-ubuntu2204-base
while (($#)); do
  case $1 in
    --name | --zone | --type | --bucket | --project | --version)
      (($# > 1)) || usage
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --spot) spot=1 && shift ;;
    --dry-run) dry_run=1 && shift ;;
    --) shift && break ;;
    *) usage ;;
  esac
done
arguments=("$@")

need() {
  local option
  for option in "$@"; do
    [ -n "${!option}" ] || { echo "error: $action needs --$option" >&2 && exit 2; }
  done
}

do_or_show() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

tpu() {
  do_or_show gcloud compute tpus tpu-vm "$1" "$name" "--zone=$zone" ${project:+"--project=$project"} "${@:2}"
}

on_all_hosts() {
  tpu ssh --worker=all --command="$1"
}

create() {
  need name zone type
  tpu create "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
}

setup() {
  need name zone bucket
  local archive=/tmp/vit_jax-$name.tar.gz
  do_or_show git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
  do_or_show gcloud compute tpus tpu-vm scp "$archive" "$name:vit_jax.tar.gz" --worker=all "--zone=$zone" \
    ${project:+"--project=$project"}
  on_all_hosts "mkdir -p vit_jax/runs && tar -xzf vit_jax.tar.gz -C vit_jax && cd vit_jax \
&& python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]' \
&& { mountpoint -q runs || gcsfuse --implicit-dirs '$bucket' runs; }"
}

run() {
  need name zone
  ((${#arguments[@]})) || { echo "error: $action needs the arguments of vit_jax.train after --" >&2 && exit 2; }
  local quoted
  quoted=$(printf '%q ' "${arguments[@]}")
  on_all_hosts "cd vit_jax && while :; do .venv/bin/python -m vit_jax.train $quoted; code=\$?; \
[ \$code = 75 ] || exit \$code; done"
}

delete() {
  need name zone
  tpu delete --quiet
}

resume() {
  need name zone type bucket
  ((${#arguments[@]})) || { echo "error: $action needs the arguments of vit_jax.train after --" >&2 && exit 2; }
  delete || true # it may not exist any more
  create
  setup
  run
}

"$action"
