#!/usr/bin/env bash
# Makes the environment that quickstart.sh and test.sh run in: .venv at the root of the repository, with the versions
# that scripts/constraints.txt pins. Its argument is an extra of pyproject.toml: train (the default) or test, which
# includes train. Where that has been done, it does nothing.
#
# PYTHON names the interpreter to make it with; unset, the first on PATH that fits is taken. On Linux, PyPI's build of
# PyTorch is the large one for NVIDIA GPUs; for the small one, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "setup_environment.sh: error: $*" >&2
    exit 1
}

extra=${1:-train}
case "$extra" in
    train) extras=(train) ;;
    test) extras=(train test) ;;
    *) fail "unknown extra '$extra' (expected train or test)." ;;
esac
# A stamp for each extra says what it was installed from. It is written last: after an interrupted set-up there is none.
stamp=.venv/installed-$extra
wanted=$(echo "$PWD"; cat pyproject.toml scripts/constraints.txt)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c "" 2>/dev/null; then
    exit 0
fi

python=
for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
        python=$candidate
        break
    fi
    if [ "$candidate" = "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON does not run or is older than Python 3.11, which the pinned versions need."
    fi
done
[ -n "$python" ] || fail "no Python 3.11 or later found on PATH, which the pinned versions need. Install one, or set PYTHON."
"$python" -c "import ensurepip, venv" 2>/dev/null ||
    fail "$python lacks the modules venv and ensurepip (on Debian and Ubuntu: apt install python3-venv)."

echo "Setting up .venv with $("$python" --version): this takes minutes, and up to 1 GB from the package index."
if ls .venv/installed-* > /dev/null 2>&1 && .venv/bin/python -c "" 2>/dev/null; then
    rm .venv/installed-* # whole, but of an older version or with less in it: it is brought up to date in place
else
    "$python" -m venv --clear .venv
fi
if ! .venv/bin/python -m pip install --retries 1 --constraint scripts/constraints.txt --editable ".[$extra]" 2>&1 |
    tee .venv/install.log; then
    if grep -qE "Failed to establish a new connection|NameResolutionError|ConnectTimeout|ProxyError|Network is unreachable" \
        .venv/install.log; then
        fail "the package index can't be reached: the set-up needs the network (pip's messages are above)."
    fi
    fail "pip could not install the pinned versions (its messages are above)."
fi
for included in "${extras[@]}"; do
    echo "$wanted" > ".venv/installed-$included"
done
