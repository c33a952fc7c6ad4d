#!/bin/bash
# One run on several hosts without a scheduler: the same line on each of them.
#
#   examples/cluster/hosts.sh FIRST_HOST HOSTS RECIPE OUT [key=value ...]
#
# OUT lies on a file system that all hosts share. Ctrl-C or SIGTERM on any host saves and ends all.

set -eu
first=$1 hosts=$2 recipe=$3 out=$4
shift 4

# Each start gets a store of its own: the addresses of processes that are gone are not in it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
  --nnodes="$hosts" \
  --nproc-per-node="${DEVICES:-gpu}" \
  --max-restarts=3 \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$first:${PORT:-29500}" \
  --rdzv-id="$(basename "$out")" \
  -m fourstage run "$recipe" "$@" --out "$out"
