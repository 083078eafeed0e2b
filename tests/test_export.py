# SPDX-License-Identifier: Apache-2.0
"""Exported models compute what PyTorch computes, whatever the sizes; and the scripts that export and generate."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import export_onnx
import generate_onnx
import numpy as np
import pytest
import torch

from rtransformer_hf import (
    RTransformerConfig,
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerForTimeSeriesPrediction,
    RTransformerForTokenClassification,
    structured_linear,
)
from rtransformer_hf.training import onnx_export
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.new_tokenizers import load_tokenizer
from rtransformer_hf.training.onnx_export import OnnxModel, carried, export, main_outputs, make_inputs, make_past

# Both together have every kind of layer.
BUTTERFLY = {"projection_type": "butterfly", "local_rnn_projection_type": "monarch", "local_rnn_num_heads": 2}
MONARCH = {"projection_type": "monarch", "local_rnn_projection_type": "butterfly"}
PROMPTS = np.array([[3, 1, 4, 1, 5, 9, 2, 6], [0, 0, 0, 2, 7, 1, 8, 2]])
ATTENTION_MASK = np.array([[1] * 8, [0] * 3 + [1] * 5])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A causal language model of two blocks with structured weights, and what the script exports of it."""
    checkpoint, exported = (tmp_path_factory.mktemp("models") / name for name in ("checkpoint", "exported"))
    tokenizer = load_tokenizer("char", ["abcdefgh \n"])
    tokenizer.save_pretrained(checkpoint)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "local_window_size": 3}
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = RTransformerConfig(**sizes, **tokens, **BUTTERFLY, initializer_range=0.15)
    RTransformerForCausalLM(config).save_pretrained(checkpoint)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(structured_linear, "MIN_CHAIN_SIZE", 32)  # both ways to apply a butterfly are in the graph
        export_onnx.main([str(checkpoint), str(exported), "--with_cache"])
    return checkpoint, exported


def make_model(model_class, config):
    config.architectures = [model_class.__name__]
    return model_class(config).eval()


@torch.no_grad()
def assert_equal_outputs(model, onnx_model, batch_size: int, length: int, padding: int):
    inputs = make_inputs(model.config, batch_size, length, padding=padding)
    is_real = inputs["attention_mask"].bool()
    [logits] = onnx_model(inputs, {})
    expected = model(**inputs).logits
    if logits.ndim == 3:  # what stands at padding means nothing
        logits, expected = logits[is_real], expected[is_real]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def assert_equal_steps(model, onnx_model, lengths: list[int], batch_size: int, padding: int):
    """Inputs come in pieces of these lengths."""
    past, state, past_length = make_past(model.config, batch_size), {}, 0
    for length in lengths:
        inputs = make_inputs(model.config, batch_size, length, past_length, padding)
        if "past_values" in inputs and length > 1:
            inputs["past_values"][-1, 1, 0] = float("nan")
        expected = model(**inputs, **state, use_cache=True)
        logits, *present = onnx_model(inputs, past)
        is_real = inputs["attention_mask"][:, -length:].bool()
        torch.testing.assert_close(logits[is_real], main_outputs(expected)[0][is_real], atol=1e-5, rtol=0)
        past = dict(zip(past, present, strict=True))
        state, past_length = carried(expected), past_length + length


def assert_equal_in_pieces(model, onnx_model):
    assert_equal_steps(model, onnx_model, lengths=[1, 1, 1, 1, 1], batch_size=1, padding=0)
    assert_equal_steps(model, onnx_model, lengths=[9, 1, 1, 3, 1], batch_size=3, padding=0)
    assert_equal_steps(model, onnx_model, lengths=[7, 1, 1, 1, 1], batch_size=2, padding=6)
    assert_equal_steps(model, onnx_model, lengths=[2, 2, 5, 1], batch_size=2, padding=1)


@pytest.mark.parametrize(
    "model_class, sizes",
    [
        (RTransformerForCausalLM, {"local_rnn_type": "rnn", "num_local_rnn_layers": 2}),
        (
            RTransformerForPolyphonicMusic,
            {"local_rnn_type": "lstm", "input_size": 5, "local_rnn_gate_activation": "hard_sigmoid", **MONARCH},
        ),
        (RTransformerForTimeSeriesPrediction, {"input_size": 3, "num_dynamic_real_features": 1}),
    ],
)
def test_with_cache(tiny_config, tmp_path, model_class, sizes):
    """In onnxruntime, and the program of `torch.export` that the graph is made of in PyTorch."""
    model = make_model(model_class, tiny_config(num_hidden_layers=1, local_window_size=3, **sizes))
    program = export(model, with_cache=True)
    program.save(tmp_path / "model.onnx")
    assert_equal_in_pieces(model, OnnxModel(tmp_path / "model.onnx"))
    exported = program.exported_program.module()
    assert_equal_in_pieces(model, lambda inputs, past: exported(inputs=inputs, past=past))


def test_with_cache_from_the_script(folders):
    checkpoint, exported = folders
    assert_equal_in_pieces(RTransformerForCausalLM.from_pretrained(checkpoint), OnnxModel(exported / "model.onnx"))


@torch.no_grad()
def test_rows_go_on_after_padding_anywhere(folders):
    checkpoint, exported = folders
    model, onnx_model = RTransformerForCausalLM.from_pretrained(checkpoint), OnnxModel(exported / "model.onnx")
    input_ids = torch.randint(1, model.config.vocab_size, (3, 8))
    mask = torch.tensor([[1] * 8, [1, 1, 0, 0, 0, 1, 0, 1], [0, 1, 0, 1, 1, 1, 1, 1]])
    past, outputs = make_past(model.config, 3), []
    for start, end in ((0, 5), (5, 7), (7, 8)):
        logits, *present = onnx_model({"input_ids": input_ids[:, start:end], "attention_mask": mask[:, :end]}, past)
        past = dict(zip(past, present, strict=True))
        outputs.append(logits)
    for row, is_real, actual in zip(input_ids, mask.bool(), torch.cat(outputs, dim=1), strict=True):
        torch.testing.assert_close(actual[is_real], model(row[None, is_real]).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "model_class, sizes",
    [
        (RTransformerForCausalLM, {}),
        (RTransformerForSequenceClassification, {"num_labels": 3}),
        (RTransformerForSequenceClassification, {"num_labels": 3, "input_size": 2}),
        (RTransformerForTokenClassification, {"num_labels": 3}),
        (RTransformerForTokenClassification, {"num_labels": 3, "is_causal": False}),
        (RTransformerForSequenceClassification, {"num_labels": 3, "is_causal": False, "pad_token_id": 0}),
        (RTransformerForPolyphonicMusic, {"input_size": 5, "key_head_type": "autoregressive"}),
    ],
)
def test_without_cache(tiny_config, tmp_path, model_class, sizes):
    model = make_model(model_class, tiny_config(num_hidden_layers=1, local_window_size=2, **sizes))
    export(model, with_cache=False).save(tmp_path / "model.onnx")
    onnx_model = OnnxModel(tmp_path / "model.onnx")
    for batch_size, length, padding in ((1, 1, 0), (1, 2, 0), (3, 17, 0), (2, 9, 7), (4, 3, 2)):
        assert_equal_outputs(model, onnx_model, batch_size, length, padding)


@pytest.mark.parametrize("distribution, covariates", [("student_t", 0), ("quantiles", 1)])
def test_forecasters(tiny_config, tmp_path, distribution, covariates):
    config = tiny_config(input_size=3, num_dynamic_real_features=covariates, distribution_output=distribution)
    model = make_model(RTransformerForTimeSeriesPrediction, config)
    export(model, with_cache=False).save(tmp_path / "model.onnx")
    onnx_model = OnnxModel(tmp_path / "model.onnx")
    for batch_size, length, padding in ((1, 1, 0), (3, 9, 2)):
        inputs = make_inputs(config, batch_size, length, padding=padding)
        inputs["past_values"][-1, length // 2, 0] = float("nan") if length > 1 else 2.0
        params, loc, scale = onnx_model(inputs, {})
        with torch.no_grad():
            expected = model(**inputs)
        torch.testing.assert_close((loc, scale), (expected.loc, expected.scale), atol=1e-5, rtol=1e-5)
        is_real = inputs["attention_mask"].bool()
        found = [params] if distribution == "quantiles" else params.unbind(-1)
        for param, wanted in zip(found, expected.params, strict=True):
            torch.testing.assert_close(param[is_real], wanted[is_real], atol=1e-5, rtol=1e-5)
    assert onnx_export.largest_difference(model, onnx_model, with_cache=False) < 1e-5


def test_generation_token_by_token(folders):
    """A padded batch, and one sequence alone."""
    checkpoint, exported = folders
    model = RTransformerForCausalLM.from_pretrained(checkpoint)
    model.generation_config.eos_token_id = None
    session, _, _ = generate_onnx.load(str(exported))
    for rows in (slice(0, 2), slice(0, 1)):
        prompt, mask = PROMPTS[rows], ATTENTION_MASK[rows]
        expected = model.generate(
            torch.from_numpy(prompt),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        tokens = np.concatenate(list(generate_onnx.generate(session, prompt, mask, max_new_tokens=12)), axis=1)
        assert tokens.tolist() == expected[:, prompt.shape[1] :].tolist()

        # Either token of a batch ends its own sequence alone, and the last to end ends generation.
        for eos_token_id in tokens[:, 3].tolist():
            options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": eos_token_id}
            expected = model.generate(
                torch.from_numpy(prompt),
                attention_mask=torch.from_numpy(mask),
                eos_token_id=eos_token_id,
                **options,
            )
            steps = generate_onnx.generate(session, prompt, mask, max_new_tokens=12, eos_token_id=eos_token_id)
            assert np.concatenate(list(steps), axis=1).tolist() == expected[:, prompt.shape[1] :].tolist()


def test_the_text_ends_where_the_model_ends_it(folders, capsys, monkeypatch):
    _, exported = folders
    _, tokenizer, eos_token_id = generate_onnx.load(str(exported))
    assert eos_token_id == tokenizer.token_to_id("<|endoftext|>")
    written = [*tokenizer.encode("de").ids, eos_token_id]
    monkeypatch.setattr(generate_onnx, "generate", lambda *args: (np.array([[token]]) for token in written))
    generate_onnx.main([str(exported), " ab"])
    assert capsys.readouterr().out == " abde\n"


def test_sampling_follows_the_distribution(folders):
    checkpoint, exported = folders
    session, _, _ = generate_onnx.load(str(exported))
    prompts = np.repeat(PROMPTS[:1], 3000, axis=0)
    [draws] = generate_onnx.generate(session, prompts, max_new_tokens=1, temperature=0.5, seed=1)
    with torch.no_grad():
        logits = RTransformerForCausalLM.from_pretrained(checkpoint)(torch.from_numpy(PROMPTS[:1])).logits[0, -1]
    expected = torch.softmax(logits / 0.5, dim=-1).numpy()
    counts = np.bincount(draws[:, 0], minlength=len(expected))
    assert np.abs(counts / 3000 - expected).max() < 0.04


# --- the scripts ---

GENERATE = """
import sys
sys.modules.update(torch=None, transformers=None)  # importing them fails
import generate_onnx
generate_onnx.main(sys.argv[1:])
"""


def test_generation_needs_neither_pytorch_nor_transformers(folders, tmp_path):
    checkpoint, exported = folders
    run = subprocess.run(
        [sys.executable, "-c", GENERATE, str(exported), "ab h", "--max_new_tokens", "9", "--temperature", "0"],
        cwd=Path(generate_onnx.__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    tokenizer = load_tokenizer(str(checkpoint), [])
    prompt = torch.tensor([tokenizer("ab h", add_special_tokens=False)["input_ids"]])
    model = RTransformerForCausalLM.from_pretrained(checkpoint)
    expected = model.generate(prompt, max_new_tokens=9, do_sample=False)
    assert run.stdout == tokenizer.decode(expected[0]) + "\n"


@pytest.fixture
def quick_export(folders, monkeypatch):
    """The script writes the graph that it has made before."""

    class Program:
        def save(self, path):
            shutil.copy(folders[1] / "model.onnx", path)

    monkeypatch.setattr(onnx_export, "export", lambda model, with_cache: Program())


def test_report_and_files(folders, quick_export, tmp_path, capsys):
    checkpoint, _ = folders
    export_onnx.main([str(checkpoint), str(tmp_path / "new" / "folder"), "--with_cache", "--time", "5"])
    report = json.loads(capsys.readouterr().out)
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "config.json", "tokenizer.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert report["bytes"] == (folder / "model.onnx").stat().st_size
    assert report["bytes_of_parameters"] == 4 * RTransformerForCausalLM.from_pretrained(checkpoint).num_parameters()
    assert 0 <= report["largest_difference"] < 1e-5
    for phase in ("prefill", "token"):
        rates = report["tokens_per_second"][phase]
        assert rates["ratio"] == pytest.approx(rates["onnxruntime"] / rates["pytorch"])


def test_matrices_that_are_formed_are_in_the_graph(tiny_config):
    """Alone, without what they are formed of."""
    model = make_model(RTransformerForCausalLM, tiny_config(hidden_size=32, num_hidden_layers=1, **MONARCH))
    dense = onnx_export.with_matrices(model)
    kinds = {name: type(layer) for name, layer in dense.model.layers[0].named_modules()}
    assert kinds["local_rnns.0.cell.gates_proj"] is torch.nn.Linear
    assert kinds["mlp.up_proj"] is structured_linear.RTransformerMonarchLinear  # applied by its factors
    assert type(model.model.layers[0].local_rnns[0].cell.gates_proj) is structured_linear.RTransformerButterflyLinear
    input_ids = torch.randint(23, (2, 5))
    with torch.no_grad():
        torch.testing.assert_close(dense(input_ids).logits, model(input_ids).logits, atol=1e-6, rtol=0)


def test_paths_of_this_machine_stay_out_of_the_file(folders):
    assert str(Path(export_onnx.__file__).parent.parent).encode() not in (folders[1] / "model.onnx").read_bytes()


def test_what_differs_is_not_kept(folders, quick_export, tmp_path, monkeypatch):
    checkpoint, _ = folders
    run = OnnxModel.__call__
    monkeypatch.setattr(
        OnnxModel, "__call__", lambda self, *inputs: (run(self, *inputs)[0] + 1e-3, *run(self, *inputs)[1:])
    )
    with pytest.raises(UsageError, match=r"differ from PyTorch's by 1\.0e-03 \(expected at most 1e-04\)"):
        export_onnx.main([str(checkpoint), str(tmp_path / "folder"), "--with_cache"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing", "new"], "checkpoint 'missing' can't be used"),
        (["checkpoint", "checkpoint"], "output_folder: 'checkpoint' is not empty"),
        (["checkpoint", "checkpoint/config.json"], "is a file"),
        (["checkpoint", "new", "--time", "0"], "--time: 0 (expected"),
        (["classifier", "new", "--with_cache"], "--with_cache: checkpoint 'classifier' is a"),
        (["chords", "new", "--with_cache"], "--with_cache: checkpoint 'chords' is a"),
    ],
)
def test_bad_input_is_named(folders, tiny_config, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders[0], "checkpoint")
    RTransformerForSequenceClassification(tiny_config()).save_pretrained("classifier")
    chords = tiny_config(input_size=5, key_head_type="autoregressive")
    RTransformerForPolyphonicMusic(chords).save_pretrained("chords")
    with pytest.raises((SystemExit, UsageError)) as stop:
        export_onnx.main(arguments)
    assert named in f"{stop.value} {capsys.readouterr().err}"
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["missing", "a"], "folder: no model.onnx in 'missing'"),
        (["exported", ""], "prompt: '' (expected"),
        (["exported", "a", "--max_new_tokens", "0"], "--max_new_tokens: 0 (expected"),
        (["exported", "a", "--temperature", "-1"], "--temperature: -1 (expected"),
    ],
)
def test_bad_input_of_generation_is_named(folders, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(folders[1].parent)
    with pytest.raises((SystemExit, UsageError)) as stop:
        generate_onnx.main(arguments)
    assert named in f"{stop.value} {capsys.readouterr().err}"
