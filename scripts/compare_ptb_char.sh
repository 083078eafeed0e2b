#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: bash scripts/compare_ptb_char.sh DATA_FOLDER OUTPUT_FOLDER [--flag value ...]

Trains six language models of 3.57 million parameters (within 0.2 %) on the characters of the Penn Treebank, with the
same steps, schedule and seed, one after another, evaluates each in contexts eight times as long as in training, and
writes OUTPUT_FOLDER/comparison.md with a table and learning curves: R-Transformer, the same with gated feed-forward
layers, the paper's Transformer, Llama, GPT-2 (which has no positions for the long contexts) and LFM2.

DATA_FOLDER has ptb.train.txt, ptb.valid.txt and ptb.test.txt (`python scripts/prepare_data.py ptb`). Flags go to every
training, and win over scripts/recipes/ptb_char_compare.yaml: `--seed 2`, `--bf16 --use_cpu`, `--max_steps 20`. The same
command again goes on where it stopped. Environment variables: LAUNCHER, what runs a training, python by default, such
as "torchrun --nproc_per_node 2" with `--per_device_train_batch_size 4`; MODELS, names of some models alone.
USAGE
}

case "${1:-}" in
    -h | --help)
        usage
        exit 0
        ;;
esac
if [ $# -lt 2 ] || [[ "$1" == -* ]] || [[ "$2" == -* ]]; then
    echo "compare_ptb_char.sh: error: got '$*' (expected DATA_FOLDER OUTPUT_FOLDER, then flags; --help says more)" >&2
    exit 2
fi
data=$1
output=$2
shift 2
for split in train valid test; do
    if [ ! -r "$data/ptb.$split.txt" ]; then
        echo "compare_ptb_char.sh: error: DATA_FOLDER: no such file: '$data/ptb.$split.txt' (expected ptb.train.txt," \
            "ptb.valid.txt and ptb.test.txt)" >&2
        exit 2
    fi
done

scripts=$(dirname "${BASH_SOURCE[0]}")
block="hidden_size=256,num_attention_heads=4"
rotary="$block,num_hidden_layers=5,intermediate_size=584,max_position_embeddings=4096,tie_word_embeddings=true"
rtransformer="$block,num_hidden_layers=3,local_window_size=7,final_layer_norm=true"
lfm2_layers='["conv", "full_attention", "conv", "full_attention", "conv"]'

# Sets model_type and config_overrides.
describe() {
    model_type=rtransformer
    case "$1" in
        rtransformer) config_overrides=$rtransformer ;;
        rtransformer_gated) config_overrides="$rtransformer,mlp_type=gated,hidden_act=silu,intermediate_size=683" ;;
        transformer)
            config_overrides="$block,num_hidden_layers=5,intermediate_size=872,final_layer_norm=true"
            config_overrides+=",num_local_rnn_layers=0,position_embedding_type=sinusoidal"
            ;;
        llama)
            model_type=llama
            config_overrides=$rotary
            ;;
        gpt2)
            model_type=gpt2
            config_overrides="n_embd=256,n_layer=5,n_head=4,n_inner=846,n_positions=257"
            config_overrides+=",resid_pdrop=0,embd_pdrop=0,attn_pdrop=0" # the others have no dropout
            ;;
        lfm2)
            model_type=lfm2
            config_overrides='{"hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4,'
            config_overrides+=' "num_key_value_heads": 4, "intermediate_size": 584, "block_auto_adjust_ff_dim": false,'
            config_overrides+=" \"layer_types\": $lfm2_layers}"
            ;;
        *)
            echo "compare_ptb_char.sh: error: MODELS: unknown: '$1' (expected some of $all)" >&2
            exit 2
            ;;
    esac
}

all="rtransformer rtransformer_gated transformer llama gpt2 lfm2"
models=${MODELS:-$all}
for name in $models; do
    describe "$name" # all of them, before the first is trained
done
runs=()
for name in $models; do
    describe "$name"
    # shellcheck disable=SC2086  # the launcher may have flags
    ${LAUNCHER:-python} "$scripts/train_causal_lm.py" "$scripts/recipes/ptb_char_compare.yaml" \
        --train_file "$data/ptb.train.txt" --validation_file "$data/ptb.valid.txt" --test_file "$data/ptb.test.txt" \
        --model_type "$model_type" --config_overrides "$config_overrides" --output_dir "$output/$name" "$@"
    runs+=("$output/$name")
done
evaluation=()
for name in $models; do
    if [ "$name" != gpt2 ]; then
        python "$scripts/evaluate_checkpoint.py" "$output/$name" --data "$data/ptb.test.txt" --context_length 2048 \
            --batch_size 2 --output "$output/$name/context_2048.json"
        evaluation=(--evaluation context_2048.json)
    fi
done
python "$scripts/compare.py" "${runs[@]}" ${evaluation[@]+"${evaluation[@]}"} --decode_tokens 200 \
    --output "$output/comparison.md"
