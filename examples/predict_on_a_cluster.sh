#!/usr/bin/env bash
# Predict millions of photos on a Ray cluster: `ray job submit` from any machine that reaches the cluster's head.
#
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 examples/predict_on_a_cluster.sh RUN s3://bucket/photos.txt s3://bucket/found
#
# RUN is a run folder here; it is uploaded with the job, and from there to the workers, so they need not share a disk.
# Photos are read, and parts written, at addresses that every worker reaches (s3://, gs://, a shared folder).
# To resume a job that was stopped, run the same command again. What is there is not done again.
set -euo pipefail
run=${1:?a run folder} photos=${2:?a list of photos} out=${3:?a folder or address for the parts}
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cp -r "$run" "$here/run"
rm -f "$here"/run/checkpoint.pt
ray job submit --working-dir "$here" --runtime-env-json '{"pip": ["plures[ray]", "s3fs"]}' -- \
    plures predict run "$photos" --out "$out" --engine ray --parts 10000 --precision bfloat16 --resume
