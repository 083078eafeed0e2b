# SPDX-License-Identifier: Apache-2.0
"""Every training script in mixed precision and with a compiled model: the same training, to rounding."""

import json
from pathlib import Path

import pytest
import torch
import train_causal_lm
import train_causal_lm_accelerate
import train_polyphonic_music
import train_sequence_classification
import train_time_series
import train_token_classification
from accelerate.state import AcceleratorState
from conftest import write_texts
from safetensors.torch import load_file
from test_train_polyphonic_music import write_mat
from test_train_time_series import sales
from test_train_token_classification import make_sentences, write_conll
from torch._dynamo.utils import counters

RECIPE = """
hidden_size: 8
num_hidden_layers: 1
num_attention_heads: 2
local_window_size: 3
hidden_dropout: 0
max_steps: 2
logging_steps: 1
save_strategy: "no"
eval_strategy: "no"
per_device_train_batch_size: 4
per_device_eval_batch_size: 64
learning_rate: 1e-3
dataloader_pin_memory: false
disable_tqdm: true
use_cpu: true
"""
TEXT = ["--train_file", "train.txt", "--validation_file", "validation.txt", "--block_size", "16"]
FORECAST = ["--train_file", "sales.csv", "--id_column", "shop", "--time_column", "month", "--target_columns", "sold"]
SCRIPTS = {
    "causal_lm": (train_causal_lm, TEXT),
    "accelerate": (train_causal_lm_accelerate, TEXT),
    "text": (train_sequence_classification, ["--train_file", "rows.csv", "--validation_file", "rows.csv"]),
    "music": (train_polyphonic_music, ["--data", "tunes.mat"]),
    "series": (train_time_series, [*FORECAST, "--horizon", "3", "--context_length", "12"]),
    "tags": (train_token_classification, ["--train_file", "train.conll", "--validation_file", "validation.conll"]),
}
COMPILE = ["--torch_compile", "--torch_compile_backend", "eager"]  # without a compiler of C++, which takes minutes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data for every script, in which `run` trains."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("runs"))
        Path("recipe.yaml").write_text(RECIPE)
        write_texts(train=12, validation=4)
        Path("rows.csv").write_text("text,label\n" + "".join(f"a b {'c' * (i % 3)},{i % 2}\n" for i in range(12)))
        write_mat("tunes.mat", {"traindata": 6, "validdata": 3, "testdata": 3})
        sales().to_csv("sales.csv", index=False)
        for name, number in (("train", 8), ("validation", 4)):
            write_conll(f"{name}.conll", make_sentences(number))
        yield


def run(name: str, output_dir: str, *flags: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The losses of the validation data, and the weights."""
    script, data = SCRIPTS[name]
    AcceleratorState._reset_state(reset_partial_state=True)
    script.main(["recipe.yaml", *data, "--output_dir", f"{name}/{output_dir}", *flags])
    results = json.loads(Path(name, output_dir, "all_results.json").read_text())
    losses = {key: value for key, value in results.items() if key in ("train_loss", "eval_loss")}
    return losses, load_file(f"{name}/{output_dir}/model.safetensors")


@pytest.mark.parametrize("name", SCRIPTS)
def test_mixed_precision_and_a_compiled_model(folder, name):
    losses, weights = run(name, "plain")
    assert losses and all(weight.dtype == torch.float32 for weight in weights.values())

    in_bf16, weights_of_bf16 = run(name, "bf16", "--bf16")
    assert in_bf16 == pytest.approx(losses, rel=0.03) and in_bf16 != losses
    assert all(weight.dtype == torch.float32 for weight in weights_of_bf16.values())

    if name == "accelerate":  # the loop does not compile, and says so
        with pytest.raises(SystemExit):
            run(name, "compiled", *COMPILE)
        return
    counters.clear()
    compiled, weights_of_compiled = run(name, "compiled", *COMPILE)
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled == pytest.approx(losses, rel=1e-5)
    assert weights_of_compiled.keys() == weights.keys()  # under the names of the model that is not compiled
