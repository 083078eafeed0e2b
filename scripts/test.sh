#!/usr/bin/env bash
# Sets up the environment, then runs the linter and the tests. Arguments go to pytest: bash scripts/test.sh -k generate
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_environment.sh

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
# Two processes of one thread each: the models of the tests are too small for threads to pay. The tests of a file share
# what is costly to set up.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
