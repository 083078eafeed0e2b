#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: bash scripts/quickstart.sh [TEXT_FILE]

Trains a small character-level R-Transformer on 2 CPU cores within 6 minutes, and lets it write.

Without TEXT_FILE it learns the documentation that every CPython carries, and writes to outputs/quickstart; with one, a
UTF-8 text, its last tenth is held out, and the output goes to outputs/quickstart-NAME. The first time, an environment
(.venv) is set up, which takes minutes more. The same command again goes on where it stopped: a finished model is
evaluated and writes again. To train anew, remove its folder.

The output folder then has the model, tokenizer, metrics (all_results.json), card (README.md) and learning curves.
USAGE
}

case "${1:-}" in
    -h | --help)
        usage
        exit 0
        ;;
esac
if [ $# -gt 1 ] || [[ "${1:-}" == -* ]]; then
    echo "quickstart.sh: error: got the arguments '$*' (expected one text file, --help or nothing)." >&2
    exit 2
fi
text=
if [ $# -eq 1 ]; then
    if [ ! -f "$1" ] || [ ! -r "$1" ]; then
        echo "quickstart.sh: error: TEXT_FILE '$1' is no readable file (expected UTF-8 text)." >&2
        exit 2
    fi
    text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_environment.sh
python=.venv/bin/python

if [ -z "$text" ]; then
    output=outputs/quickstart
    data=outputs/quickstart-data
    prompt="The "
    "$python" scripts/make_quickstart_data.py "$data"
    files=(--train_file "$data/python-topics.train.txt" --validation_file "$data/python-topics.validation.txt")
else
    name=$(basename "$text")
    output=outputs/quickstart-${name%.*}
    prompt=$'\n'
    files=(--train_file "$text")
fi

export OMP_WAIT_POLICY=passive # threads that wait sleep, so that whatever else runs slows the training down less
"$python" scripts/train_causal_lm.py scripts/recipes/quickstart.yaml "${files[@]}" --output_dir "$output"

echo
echo "A new process loads $output and writes:"
echo
"$python" scripts/generate.py "$output" "$prompt" --temperature 0.7
echo
echo "Write more with: $python scripts/generate.py $output \"your prompt\""
