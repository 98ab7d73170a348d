#!/usr/bin/env bash
# Trains what is missing of the study (benchmarks/study.py) and ends within so many minutes; the same command goes on:
#     benchmarks/study.sh MINUTES [--settings 'digits-*' --policies supervised,fixmatch,dpl --subsets 0-4 ...]
set -eu
minutes=${1:?give the minutes, as benchmarks/study.sh 60}
shift
cd "$(dirname "$0")/.."
# What has not ended by itself is killed, and goes on from its last checkpoint.
exec timeout "${minutes}m" "${PYTHON:-python}" -m benchmarks.study --minutes "$minutes" "$@"
