#!/usr/bin/env bash
# Sets up the environment, then runs the linter and the tests, those of the model with the oldest supported Transformers
# too. With arguments, which go to pytest, it runs the tests that they choose: bash scripts/test.sh -k generate
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_environment.sh test

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
# Two processes of one thread each: the models of the tests are too small for threads to pay. The tests of a file share
# what is costly to set up.
export OMP_NUM_THREADS=1
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

if [ $# -eq 0 ]; then
    oldest=.venv/oldest
    if ! cmp -s scripts/constraints-oldest.txt "$oldest/installed"; then
        rm -rf "$oldest"
        .venv/bin/python -m pip install -q --no-deps --target "$oldest" -r scripts/constraints-oldest.txt
        cp scripts/constraints-oldest.txt "$oldest/installed"
    fi
    PYTHONPATH=$oldest .venv/bin/python -m pytest -n 2 tests/test_modeling_rtransformer.py tests/test_cache_rtransformer.py \
        tests/test_both_directions.py
fi
