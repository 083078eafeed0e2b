#!/usr/bin/env bash
# Checks and measures this package on an NVIDIA GPU, in under ten minutes: the kernels' tests, then speed and memory of
# operator, training and generation in bfloat16 and float32, eager and compiled. Needs torch, transformers, triton,
# matplotlib and pytest. Every step writes its log and figures to a folder as it ends; a failed step stops no other.
#
#     bash scripts/check_gpu.sh                 # to outputs/gpu
#     bash scripts/check_gpu.sh FOLDER          # to FOLDER
#     PYTHON=python3 ROUNDS=5 bash scripts/check_gpu.sh
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ${1:-} == -* ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
folder=${1:-outputs/gpu}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
rounds=${ROUNDS:-5}
device=${DEVICE:-cuda} # another one is for trying this script without a GPU

if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "check_gpu.sh: error: PyTorch finds no CUDA device (expected an NVIDIA GPU and a CUDA build of torch)." >&2
    exit 1
fi
mkdir -p "$folder"
: > "$folder/steps.txt"
failed=0

step() { # step NAME SECONDS COMMAND...: runs a command, keeps its output, notes its exit code and time
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "check_gpu.sh: $name" >&2
    timeout "$limit" "$@" > "$folder/$name.log" 2>&1
    local code=$?
    [ $code -eq 0 ] || failed=1
    echo "$name: exit code $code, $((SECONDS - start)) s: $*" | tee -a "$folder/steps.txt"
}

step versions 60 "$python" -m rtransformer_hf
[ "$device" != cuda ] || step gpu 30 nvidia-smi
step tests 240 "$python" -m pytest -q -p no:cacheprovider -x tests/test_local_rnn_triton.py \
    tests/test_modeling_rtransformer.py -k "triton or form"
for dtype in bfloat16 float32; do
    for command in operator train generate; do
        step "${command}_$dtype" 90 "$python" scripts/benchmark.py $command --device "$device" --dtype $dtype \
            --rounds "$rounds" --output_dir "$folder" ${FLAGS:-}
    done
    for command in train generate; do
        step "${command}_${dtype}_compiled" 120 "$python" scripts/benchmark.py $command --device "$device" --dtype $dtype \
            --rounds "$rounds" --no-peers --compile reduce-overhead --output_dir "$folder/compiled" ${FLAGS:-}
    done
done
echo "check_gpu.sh: figures and logs are in $folder" >&2
exit $failed
