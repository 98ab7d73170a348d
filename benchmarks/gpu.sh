#!/bin/sh
# All that is measured on a GPU, within 9 minutes a call: benchmarks/gpu.sh FOLDER [--images cifar10]
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
