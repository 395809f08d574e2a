#!/usr/bin/env bash
# Whether, how fast and with how much memory DEPT runs on one GPU, within ten minutes (docs/gpu.md):
#   bash bench/gpu.sh                    records go to results/bench
#   OUT=folder bash bench/gpu.sh         or to another folder
#   DEVICE=cpu bash bench/gpu.sh         tries the script itself at a tiny size, without a GPU
#   bash bench/gpu.sh smoke attention    only these steps
# PYTHON is the interpreter: that of .venv, or python3 where the packages are in PYTHONPATH.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
export HF_HUB_OFFLINE=1 GIT_PYTHON_REFRESH=quiet USE_TF=0 USE_FLAX=0 USE_JAX=0
export OMP_WAIT_POLICY=PASSIVE PYTORCH_NVML_BASED_CUDA_CHECK=1
if [ "${DEVICE:-gpu}" = cpu ]; then
    export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
else
    export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}" # one GPU, so that two workers share it
fi
exec "$PYTHON" bench/gpu.py --device "${DEVICE:-gpu}" --out "${OUT:-results/bench}" "$@"
