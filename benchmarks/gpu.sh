#!/bin/sh
# All that is measured on a GPU, within 9 minutes: benchmarks/gpu.sh FOLDER [--images cifar10 --minutes 8]
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
