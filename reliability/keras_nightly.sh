#!/usr/bin/env bash
# What reaches into Keras, tried with its development version:
#
#     bash reliability/keras_nightly.sh [torch|jax|tensorflow]
#
# Makes a virtual environment for itself, with the backend (torch by default) and the
# newest `keras-nightly`. Not part of CI: a failure here may be Keras' own.
set -euo pipefail
cd "$(dirname "$0")/.."
export KERAS_BACKEND=${1:-torch}
export TF_CPP_MIN_LOG_LEVEL=3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/nightly"
# shellcheck disable=SC1091
source "$work/nightly/bin/activate"
pip install --quiet "$KERAS_BACKEND" matplotlib scikit-learn pytest hypothesis -e .
pip uninstall --quiet --yes keras
pip install --quiet --pre keras-nightly
python -c 'import keras; print("Keras", keras.__version__)'
mapfile -t tests < reliability/machinery.txt
python -m pytest "${tests[@]}"
