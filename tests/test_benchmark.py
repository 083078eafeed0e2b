# SPDX-License-Identifier: Apache-2.0
"""The benchmark: its baseline against the published code's values, and what it writes."""

import json
import math
import os
import time
import timeit
from concurrent.futures.process import BrokenProcessPool

import benchmark
import pytest
import torch
from golden import MODELS, Golden
from transformers import AutoModelForCausalLM

from rtransformer_hf import (
    modeling_rtransformer,
)
from rtransformer_hf.checkpoint_conversion import convert_official_state_dict
from rtransformer_hf.local_rnn import IMPLEMENTATIONS
from rtransformer_hf.training import benchmark_settings, benchmarks
from rtransformer_hf.training.benchmark_settings import STRUCTURES, Setting, Sizes
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.published_rtransformer import PublishedRTransformer
from rtransformer_hf.training.timing import in_fresh_process, peak_bytes, saved_bytes

MUSIC = "RTransformerForPolyphonicMusic"
TINY_SETTINGS = {
    "tiny_image": Setting(
        "RTransformerForSequenceClassification",
        2,
        9,
        {"input_size": 1, "num_labels": 3},
        Sizes(16, 2, 2, 2, "gru", 4, 0.1),
    ),
    "tiny_music": Setting(
        "RTransformerForPolyphonicMusic", 2, 9, {"input_size": 88}, Sizes(16, 2, 1, 2, "rnn", 4, 0.1)
    ),
    "tiny_text": Setting("RTransformerForCausalLM", 2, 9, {"vocab_size": 23}, Sizes(16, 2, 1, 2, "lstm", 4, 0.1, 0.1)),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Tiny models, a tiny machine, and no process or profile for each measurement of memory."""
    for name, setting in TINY_SETTINGS.items():
        monkeypatch.setitem(benchmark.SETTINGS, name, setting)
    monkeypatch.setitem(benchmarks.MATMUL_SIZE, "cpu", 16)
    monkeypatch.setattr(benchmarks, "COPY_SIZE", 1024)
    monkeypatch.setattr(benchmarks, "TOKENS_AFTER_PREFILL", 2)
    monkeypatch.setattr(benchmarks, "peak_bytes", lambda run, device: 1000)
    monkeypatch.setattr(timeit.Timer, "autorange", lambda timer: (1, timer.timeit(1)))
    monkeypatch.setattr(benchmarks, "in_fresh_process", lambda function, *arguments, seconds: function(*arguments))


def published_golden(name: str) -> tuple[Golden, PublishedRTransformer]:
    golden = Golden(name)
    ours, _ = convert_official_state_dict(golden.state_dict, **golden.sizes)
    published = PublishedRTransformer(type(ours), ours.config).eval()
    published.load_state_dict(golden.state_dict)
    return golden, published


# ---- The baseline ----

PUBLISHED_MODELS = [name for name in MODELS if not name.startswith("butterfly")]  # those are another repository's


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_baseline_outputs(name):
    golden, published = published_golden(name)
    for inputs, expected in zip(golden.inputs, golden.outputs, strict=True):
        torch.testing.assert_close(golden.run(published, inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_baseline_gradients(name):
    golden, published = published_golden(name)
    output = golden.run(published, golden.inputs[-1])
    (output * torch.arange(output.numel()).cos().view_as(output)).sum().backward()
    parameters = dict(published.named_parameters())
    assert parameters.keys() == golden.gradients.keys()
    largest = max(expected.abs().max() for expected in golden.gradients.values())
    for key, expected in golden.gradients.items():
        # The keys' bias has a gradient of 0, of which both values are rounding errors.
        scale = 1e-2 * largest if key.endswith("pooling.linears.1.bias") else expected.abs().max()
        assert (parameters[key].grad - expected).abs().max() <= 1e-4 * scale, key


@pytest.mark.parametrize("name", TINY_SETTINGS)
def test_baseline_and_ours_have_the_same_loss(name):
    setting = TINY_SETTINGS[name]
    published = PublishedRTransformer(setting.model_class, setting.config).eval()
    ours, _ = convert_official_state_dict(
        published.state_dict(),
        local_window_size=setting.config.local_window_size,
        num_attention_heads=setting.config.num_attention_heads,
    )
    assert type(ours) is setting.model_class
    batch = benchmarks.make_batch(setting, "cpu")
    torch.testing.assert_close(ours(**batch).loss, published(**batch).loss, atol=1e-5, rtol=1e-6)


# ---- What it measures ----


def run(tmp_path, *arguments: str) -> list[dict]:
    benchmark.main([*arguments, "--rounds", "2", "--output_dir", str(tmp_path)])
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.unfinished"))
    assert all(argument in report["command"] for argument in arguments)
    assert report["environment"]["torch"] == torch.__version__
    return report["rows"]


def check_rows(rows: list[dict], contenders: list[str], phases: list[str]):
    """Nothing is left out, and the numbers of a row and of its references fit each other."""
    cells = {(row["config"], row["length"], row["phase"], row["model"]): row for row in rows}
    assert len(cells) == len(rows)
    assert {row["model"] for row in rows} == set(contenders)
    assert {row["phase"] for row in rows} == set(phases)
    assert len(rows) == len({key[:2] for key in cells}) * len(contenders) * len(phases)
    for (config, length, phase, contender), row in cells.items():
        assert row["note"] is None or (contender, row["note"][:5]) == ("mamba", "loops"), row["note"]
        assert row["parameters"] > 0
        assert row["matmul_flops_per_second"] > 0
        assert row["copy_bytes_per_second"] > 0
        tokens = 1 if phase == "token" else row["batch_size"] * length
        assert math.isclose(row["tokens_per_second"] * row["seconds"], tokens)
        for other in {"published", *benchmark.PEERS} & set(contenders):
            reference = cells[config, length, phase, other]
            assert math.isclose(row[f"speed_ratio_to_{other}"], reference["seconds"] / row["seconds"])
        published = cells[config, length, phase, "published"]
        assert (row["peak_bytes"], row["peak_bytes_ratio_to_published"]) == (1000, 1)
        assert (row["saved_bytes"] is not None) == (phase == "step")
        if phase == "step":
            assert row["saved_bytes"] > 0
            assert math.isclose(row["saved_bytes_ratio_to_published"], row["saved_bytes"] / published["saved_bytes"])
        others = {*benchmark.PEERS, *STRUCTURES}  # whose operations are not counted
        assert (row["mfu"] is not None) == (phase != "token" and contender not in others)
        if row["mfu"] is not None:
            assert math.isclose(row["mfu"] * row["seconds"], published["mfu"] * published["seconds"])


def test_operator(tmp_path, capsys):
    rows = run(tmp_path, "operator", "--configs", "tiny_text", "tiny_music")
    left_out = [row for row in rows if row["model"] == "triton" and row["note"]]  # without GPU and interpreter
    assert all(row["note"].startswith("left out: ") and row["seconds"] is None for row in left_out)
    contenders = [name for name in (*IMPLEMENTATIONS, "published") if name != "triton" or not left_out]
    check_rows([row for row in rows if row not in left_out], contenders, ["forward", "step"])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_train(tmp_path):
    rows = run(tmp_path, "train", "--configs", *TINY_SETTINGS)
    check_rows(rows, ["ours", "published", *benchmark.PEERS], ["forward", "step"])
    for row in rows:
        if row["model"] == "ours":
            setting = TINY_SETTINGS[row["config"]]
            assert row["parameters"] == setting.model_class(setting.config).num_parameters()


def test_generate(tmp_path):
    rows = run(tmp_path, "generate", "--configs", *TINY_SETTINGS, "--contexts", "3", "6")
    check_rows(rows, ["ours", "published", *benchmark.PEERS], ["prefill", "token"])
    assert {(row["batch_size"], row["length"]) for row in rows} == {(1, 3), (1, 6)}


def test_linear(tmp_path, capsys):
    rows = run(tmp_path, "linear", "--hidden_sizes", "8", "256", "--rows", "4")
    names = [(row["config"], row["phase"], row["model"]) for row in rows]
    kinds = ("dense", "butterfly", "monarch")
    assert names == [
        (f"d {d}", phase, kind) for d in (8, 256) for phase in ("forward", "step", "row") for kind in kinds
    ]
    parameters = {(row["config"], row["model"]): row["parameters"] for row in rows}
    assert parameters["d 256", "dense"] == 257 * 1024
    assert parameters["d 256", "butterfly"] < parameters["d 256", "monarch"] < parameters["d 256", "dense"]
    kinds = ("speed", "peak_bytes", "file_bytes")
    assert all(row[f"{kind}_ratio_to_dense"] == 1 for row in rows for kind in kinds if row["model"] == "dense")
    for row in rows:
        assert row["file_bytes"] == 4 * row["parameters"]
        assert (row["saved_bytes_ratio_to_dense"] is not None) == (row["phase"] == "step")
    table = capsys.readouterr().out
    assert "x dense" in table and "file MB | of dense" in table and "peak MB | of dense" in table


def test_decoding_with_structured_weights(tmp_path):
    structures = ("butterfly", "monarch", "heads_2")
    flags = ("--configs", "tiny_text", "--contexts", "3", "--no-peers", "--structures", *structures)
    rows = run(tmp_path, "generate", *flags)
    check_rows(rows, ["ours", *structures, "published"], ["prefill", "token"])
    times = {(row["phase"], row["model"]): row["seconds"] for row in rows}
    sizes = {row["model"]: row["file_bytes"] for row in rows}
    for row in rows:
        assert math.isclose(row["speed_ratio_to_ours"], times[row["phase"], "ours"] / row["seconds"])
        assert math.isclose(row["file_bytes_ratio_to_ours"], row["file_bytes"] / sizes["ours"])
    assert sizes["monarch"] < sizes["heads_2"] < sizes["ours"]


def test_structures_can_be_measured_too():
    args = benchmark.parse_arguments(["train", "--no-peers", "--structures", "monarch", "heads_2"])
    assert benchmarks.model_names(args) == ["ours", "monarch", "heads_2", "published"]
    setting = Setting("RTransformerForCausalLM", 2, 5, {"vocab_size": 9}, Sizes(32, 1, 1, 8, "gru", 3, 0.0))
    models = {name: benchmarks.make_model(args, setting, name)[0] for name in ("ours", *args.structures)}
    parameters = {name: model.num_parameters() for name, model in models.items()}
    assert parameters["ours"] > parameters["heads_2"] > parameters["monarch"]


def test_generate_in_batches(tmp_path):
    rows = run(tmp_path, "generate", "--configs", "tiny_text", "--contexts", "3", "--batch_size", "5", "--no-peers")
    assert {(row["batch_size"], row["length"]) for row in rows} == {(5, 3)}
    for row in rows:
        tokens = 5 if row["phase"] == "token" else 15
        assert math.isclose(row["tokens_per_second"] * row["seconds"], tokens)


def test_scaling(tmp_path, capsys):
    rows = run(tmp_path, "scaling", "--hidden_sizes", "8", "16", "--lengths", "5", "9")
    cells = {(row["config"], row["length"], row["model"], row["phase"]): row for row in rows}
    assert len(rows) == len(cells) == 2 * 2 * 2 * 2
    assert all(row["seconds"] > 0 and row["note"] is None for row in rows)
    for contender in ("local_rnn", "ours"):
        short, long = (cells["d 16", length, contender, "step"]["saved_bytes"] for length in (5, 9))
        assert 0 < short < long
    table = capsys.readouterr().out.splitlines()
    assert "published" not in table[0]
    assert len(table) == 2 + len(rows)


@pytest.mark.parametrize("flags, expected", [([], [0.1, 0.1, 0.1]), (["--no-dropout"], [0.0, 0.0, 0.0])])
def test_dropout_can_be_left_out(flags, expected, tmp_path, monkeypatch):
    seen = []
    measure = benchmarks.measure

    def watched(args, config_name, setting):
        seen.extend(
            [setting.config.hidden_dropout, setting.config.attention_dropout, setting.config.embedding_dropout]
        )
        return measure(args, config_name, setting)

    monkeypatch.setattr(benchmarks, "measure", watched)
    run(tmp_path, "train", "--configs", "tiny_text", "--no-peers", *flags)
    assert seen == expected


@pytest.mark.parametrize("command", ["operator", "train", "generate"])
def test_low_precision_is_that_of_all_but_the_published_algorithm(command, tmp_path):
    contexts = ["--contexts", "3"] if command == "generate" else []
    rows = run(tmp_path, command, "--configs", "tiny_music", "--dtype", "bfloat16", *contexts)
    assert {row["model"] for row in rows if row["dtype"] == "float32"} == {"published"}
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert all(row["seconds"] is not None for row in rows if row["model"] != "triton"), rows


@pytest.mark.parametrize("flags", [["--no-peers"], ["--peers", "llama"]])
def test_peers_can_be_chosen(flags, tmp_path):
    rows = run(tmp_path, "train", "--configs", "tiny_text", *flags)
    check_rows(rows, ["ours", "published", *flags[1:]], ["forward", "step"])


def test_implementation_can_be_chosen(tmp_path, monkeypatch):
    def refuse(*args, implementation, **kwargs):
        raise ValueError(f"{implementation} was chosen")

    monkeypatch.setattr(modeling_rtransformer, "local_rnn", refuse)
    rows = run(tmp_path, "train", "--configs", "tiny_text", "--no-peers", "--implementation", "reference")
    assert {row["note"] for row in rows if row["model"] == "ours"} == {"left out: reference was chosen"}


def test_a_contender_that_fails_is_left_out_with_a_note(tmp_path, monkeypatch):
    def no_memory(config):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", no_memory)
    rows = run(tmp_path, "train", "--configs", "tiny_text", "--peers", "gpt2")
    left_out = [row for row in rows if row["model"] == "gpt2"]
    assert len(left_out) == 2
    assert all(row["note"] == "left out: out of memory" and row["seconds"] is None for row in left_out)
    assert all(row["seconds"] > 0 for row in rows if row not in left_out)


def test_a_process_of_its_own_ends_in_time():
    assert in_fresh_process(os.getpid, seconds=0) != os.getpid()
    with pytest.raises(BrokenProcessPool):
        in_fresh_process(time.sleep, 60, seconds=1)


def test_peak_bytes():
    def run():
        for _ in range(3):
            ones = torch.ones(2**20, dtype=torch.uint8)
            ones + ones  # gone when the next tensor comes

    assert peak_bytes(run, "cpu") == 2 * 2**20


def test_saved_bytes_count_each_storage_once_and_no_parameters():
    layer = torch.nn.Linear(8, 4)
    inputs = torch.randn(16, 8)

    def graph():
        outputs = layer(inputs).exp()  # exp keeps its output, as does the product, once for each factor
        return (outputs * outputs.view_as(outputs)).sum()

    assert saved_bytes(graph, layer.parameters()) == 4 * (16 * 8 + 16 * 4)


def test_floor_work():
    setting = TINY_SETTINGS["tiny_text"]
    tokens, d, k = 2 * 9, 16, 4
    one_local_rnn = k * 2 * tokens * d * 4 * d
    assert benchmarks.min_flops("operator", setting) == {"forward": one_local_rnn, "step": 3 * one_local_rnn}
    attention = 4 * 2 * tokens * d * d + 2 * 2 * tokens * 9 * d
    forward = 2 * (one_local_rnn + attention + 2 * 2 * tokens * d * 4 * d) + 2 * tokens * d * 23
    assert benchmarks.min_flops("train", setting) == {"forward": forward, "step": 3 * forward}
    assert benchmarks.min_flops("generate", setting) == {"prefill": forward - 2 * (tokens - 2) * d * 23}


# ---- Arguments ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"],
        ["--time_budget", "0"],
        ["--contexts", "0"],
        ["--contexts", "8", "-1"],
        ["--batch_size", "0"],
        ["--configs", "imagenet"],
        ["--dtype", "int8"],
        ["--device", "tpu"],
        ["--implementation", "magic"],
        ["--compile", "magic"],
        ["--peers", "bert"],
        ["--output_dir", __file__],
    ],
)
def test_bad_arguments_are_named_with_their_value(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        benchmark.main(["generate", *arguments])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert arguments[0] in message
    assert arguments[-1] in message


@pytest.mark.parametrize("arguments", [["--lengths", "0"], ["--hidden_sizes", "12"], ["--hidden_sizes", "0"]])
def test_bad_arguments_of_scaling(arguments, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["scaling", *arguments])
    message = capsys.readouterr().err
    assert arguments[0] in message
    assert arguments[1] in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is accepted here")
def test_missing_device_is_refused():
    with pytest.raises(UsageError, match="--device: cuda, but PyTorch finds no CUDA device"):
        benchmark.main(["train", "--device", "cuda"])


def test_the_old_name_of_scaling():
    assert benchmark.parse_arguments(["growth"]).command == "scaling"


def test_implementations_are_those_of_the_operator():
    assert benchmark_settings.IMPLEMENTATIONS == IMPLEMENTATIONS


def test_settings_are_those_of_the_paper():
    assert [name for name in benchmark.SETTINGS if name not in TINY_SETTINGS] == [
        "smnist",
        "nottingham",
        "ptb_word",
        "ptb_char",
        "large",
    ]
    with torch.device("meta"):
        large = benchmark.SETTINGS["large"]
        assert 95e6 < large.model_class(large.config).num_parameters() < 105e6
