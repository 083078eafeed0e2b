# SPDX-License-Identifier: Apache-2.0
"""Reading and converting checkpoints of the published code, whatever they hold."""

import io
import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from golden import CHECKPOINTS, FILES, Golden
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from rtransformer_hf import RTransformerForCausalLM, RTransformerForPolyphonicMusic, checkpoint_conversion
from rtransformer_hf.checkpoint_conversion import (
    convert_official_checkpoint,
    convert_official_state_dict,
    load_official_checkpoint,
)
from rtransformer_hf.training.errors import UsageError

SCRIPT = Path(__file__).parents[1] / "scripts" / "convert_official_checkpoint.py"
FORMATS = ["char_gru.state_dict.pt", "char_gru.module.pt", "char_gru.module_legacy.pt"]
UNUSED = ("rt.norm.", "rt.feed_forward.", "local_rnn.output.")


def main(*arguments):
    runpy.run_path(str(SCRIPT))["main"]([str(argument) for argument in arguments])


def size_arguments(sizes: dict[str, int]) -> list[str]:
    return [f"--{name}={value}" for name, value in sizes.items()]


def save(obj, path: Path, legacy: bool = False) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=not legacy)
    return path


def zip_checkpoint(path: Path, pickled: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return path


def legacy_checkpoint(path: Path, pickled: bytes) -> Path:
    before = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(obj, 2) for obj in before) + pickled + pickle.dumps([], 2))
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a file of the golden archive."""

    def write(name: str, data: bytes | None = None) -> Path:
        path = tmp_path / name
        path.write_bytes(FILES[name] if data is None else data)
        return path

    return write


# ---- What users have ----


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_checkpoint(name, checkpoint, tmp_path, capsys):
    golden = Golden(name.split(".")[0])
    sizes = golden.sizes if name.endswith("state_dict.pt") else {}
    output_dir = tmp_path / "new" / "converted"
    main(checkpoint(name), output_dir, *size_arguments(sizes))

    printed = capsys.readouterr().out
    dropped = [line.strip() for line in printed.splitlines() if any(part in line for part in UNUSED)]
    assert len(dropped) == (6 if name.startswith("butterfly") else 10)
    assert all(name.startswith("rt.") for name in dropped)
    assert "from_pretrained" in printed and f"window {golden.arguments['ksize']}" in printed

    auto_class = RTransformerForPolyphonicMusic if golden.task == "music" else AutoModelForCausalLM
    model, info = auto_class.from_pretrained(output_dir, output_loading_info=True)
    assert not any(info.values())
    for inputs, expected in zip(golden.inputs, golden.outputs, strict=True):
        torch.testing.assert_close(golden.run(model, inputs), expected, atol=1e-5, rtol=0)
    assert isinstance(AutoModel.from_pretrained(output_dir), PreTrainedModel)
    assert {path.name for path in output_dir.parent.iterdir()} == {"converted"}


def test_formats_agree(checkpoint):
    expected = torch.load(io.BytesIO(FILES[FORMATS[0]]), map_location="cpu", weights_only=True)
    for name in FORMATS:
        state_dict, sizes = load_official_checkpoint(checkpoint(name))
        assert list(state_dict) == list(expected)
        assert all(torch.equal(state_dict[name], parameter) for name, parameter in expected.items())
        assert sizes == ({} if name == FORMATS[0] else {"local_window_size": 4, "num_attention_heads": 4})


def test_command_line(checkpoint, tmp_path):
    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    result = run(checkpoint("word_lstm_tied.module_legacy.pt"), "converted")
    assert result.returncode == 0, result.stderr
    assert "RTransformerForCausalLM.from_pretrained('converted')" in result.stdout
    model = RTransformerForCausalLM.from_pretrained(tmp_path / "converted")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_pytorch_1_0_module(checkpoint):
    """Modules of that time keep a backend, and their files the source of each class, which is not read."""
    data = FILES["char_gru.module_legacy.pt"]
    assert data.count(b"cmodel\nRT\nq\x01NNt") == data.count(b"X\x08\x00\x00\x00trainingq\x05") == 1
    data = data.replace(b"cmodel\nRT\nq\x01NNt", b"cmodel\nRT\nq\x01X\x08\0\0\0model.pyX\x07\0\0\0raise 1t")
    backend = b"X\x08\0\0\0_backendctorch.nn.backends.thnn\n_get_thnn_function_backend\n)R"
    data = data.replace(b"X\x08\0\0\0trainingq\x05", backend + b"X\x08\0\0\0trainingq\x05")
    state_dict, sizes = load_official_checkpoint(checkpoint("pytorch_1_0.pt", data))
    assert len(state_dict) == 57 and sizes == {"local_window_size": 4, "num_attention_heads": 4}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("legacy", [False, True])
def test_dtype_is_kept(dtype, legacy, tmp_path):
    golden = Golden("word_rnn_untied")
    state_dict = {name: parameter.to(dtype) for name, parameter in golden.state_dict.items()}
    path = save(state_dict, tmp_path / "model.pt", legacy)
    convert_official_checkpoint(path, tmp_path / "converted", **golden.sizes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert model.dtype == dtype
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, state_dict["decoder.weight"])
    assert torch.equal(model.model.embed_tokens.weight, state_dict["encoder.weight"])


def test_safetensors_and_data_parallel(tmp_path):
    golden = Golden("word_rnn_untied")
    state_dict = {f"module.{name}": parameter for name, parameter in golden.state_dict.items()}
    safetensors.torch.save_file(state_dict, tmp_path / "model.safetensors")
    model, dropped = convert_official_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "converted", **golden.sizes
    )
    torch.testing.assert_close(golden.run(model, golden.inputs[-1]), golden.outputs[-1], atol=1e-5, rtol=0)
    assert dropped == []


def test_big_endian(tmp_path):
    path = save({"weight": torch.arange(6.0)[1:5:2], "empty": torch.empty(0)}, tmp_path / "little.pt")
    with zipfile.ZipFile(path) as archive:
        pickled, data = archive.read("little/data.pkl"), archive.read("little/data/0")
    swapped = b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))
    for records in ({"data/0": swapped, "data/1": b"", "byteorder": b"big"}, {"data/0": data, "data/1": b""}):
        state_dict, _ = load_official_checkpoint(zip_checkpoint(tmp_path / "model.pt", pickled, **records))
        assert state_dict["weight"].tolist() == [1, 3]
        assert state_dict["empty"].shape == (0,)


# ---- Sizes and folders ----


@pytest.mark.parametrize("given", [{}, {"local_window_size": 4}, {"num_attention_heads": 4}])
def test_state_dict_needs_sizes(given, checkpoint, tmp_path):
    with pytest.raises(UsageError) as error:
        main(checkpoint("char_gru.state_dict.pt"), tmp_path / "converted", *size_arguments(given))
    for name in ("local_window_size", "num_attention_heads"):
        assert (f"--{name}" in str(error.value)) == (name not in given)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("char_gru.module.pt", {"num_attention_heads": 8}, "`num_attention_heads` is 4 in the module .* 8 was given"),
        ("char_gru.module.pt", {"local_window_size": 5}, "`local_window_size` is 4 in the module .* 5 was given"),
        ("char_gru.state_dict.pt", {"local_window_size": 4, "num_attention_heads": 3}, "`num_attention_heads` must"),
        ("char_gru.state_dict.pt", {"local_window_size": 0, "num_attention_heads": 4}, "`local_window_size` must"),
    ],
)
def test_wrong_sizes(name, sizes, message, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert_official_checkpoint(checkpoint(name), tmp_path / "converted", **sizes)
    assert not (tmp_path / "converted").exists()


def test_given_sizes_may_repeat_the_module(checkpoint, tmp_path):
    (tmp_path / "converted").mkdir()  # an empty folder will do
    convert_official_checkpoint(
        checkpoint("char_gru.module.pt"), tmp_path / "converted", local_window_size=4, num_attention_heads=4
    )
    assert (tmp_path / "converted" / "config.json").exists()


def test_output_dir_with_content_is_kept(checkpoint, tmp_path):
    kept = tmp_path / "converted" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_text("another model")
    for output_dir in (kept.parent, kept):
        with pytest.raises(UsageError, match="`output_dir` must not exist or must be an empty folder"):
            main(checkpoint("char_gru.module.pt"), output_dir)
    assert list(kept.parent.iterdir()) == [kept] and kept.read_text() == "another model"


def test_nothing_is_left_of_a_failed_write(checkpoint, tmp_path, monkeypatch):
    def save_pretrained(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr(RTransformerForCausalLM, "save_pretrained", save_pretrained)
    path = checkpoint("char_gru.module.pt")
    with pytest.raises(OSError, match="No space"):
        convert_official_checkpoint(path, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == [path]


# ---- Files that are something else ----


def assert_refused(path: Path, message: str):
    """The script ends with an error that has `message`, and writes nothing."""
    before = set(path.parent.rglob("*"))
    with pytest.raises(UsageError, match=f"(?s){message}"):
        main(path, path.parent / "converted", "--local_window_size=4", "--num_attention_heads=4")
    assert set(path.parent.rglob("*")) == before


class Reduce:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch executed",)),
        (subprocess.Popen, (["touch", "executed"],)),
        (eval, ("open('executed', 'w')",)),
        (exec, ("open('executed', 'w')",)),
        (open, ("executed", "w")),
        (getattr, (os, "system")),
        (__import__, ("os",)),
        (torch.load, ("model.pt",)),
        (torch.save, ({}, "executed")),
        (runpy.run_path, ("executed",)),
        (pickle.loads, (b"cos\nsystem\n(S'touch executed'\ntR.",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_calls_are_refused(function, arguments, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] is os:
        arguments = ("os", "system")
    state_dict = OrderedDict(weight=torch.zeros(2), payload=Reduce(function, *arguments))
    name = rf"it refers to `[\w.]*{function.__name__}`" if function not in (os.system, open) else "it refers to"
    assert_refused(save(state_dict, tmp_path / "model.pt", legacy), name)


RT = b"cmodel\nRT\n"
FUNCTION = b"ctorch._utils\n_rebuild_parameter\n"


@pytest.mark.parametrize("write", [zip_checkpoint, legacy_checkpoint])
@pytest.mark.parametrize(
    "pickled",
    [
        b"(S'touch executed'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch executed'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85R.",  # STACK_GLOBAL
        RT + b"(S'touch executed'\ntR.",  # a stand-in called with arguments,
        RT + b"(S'touch executed'\nt\x81.",  # made with arguments,
        RT + b")\x81(S'touch executed'\ntR.",  # an instance of it called,
        RT + b"}S'__call__'\n" + FUNCTION + b"sb.",  # its class given attributes,
        RT + b")\x81}S'__setstate__'\n" + FUNCTION + b"sbS'touch executed'\nb.",  # or its instance, then rebuilt
        RT + b")R.",
        b"\x80\x04\x8c\x05model\x8c\x15RT.__init__.__class__\x93.",  # names with dots
        b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_parameter.__globals__\x93.",
        b"ctorch._utils\n_rebuild_parameter_with_state\n.",
        b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.",
        b"ctorch.nn.modules.module\nModule\n)R.",
        b"ctorch.nn.modules.linear\nLinear\n(I1\nI1\ntR.",
        b"cRTransformer\nos\n.",
        b"ccopyreg\n_reconstructor\n.",
        b"\x82\x01.",  # EXT1
        FUNCTION + b"N}S'__defaults__'\n)s\x86b.",
        b"(S'storage'\nS'FloatStorage'\nS'0'\nS'cpu'\nI4\ntQ.",
        b"(S'module'\ncos\nsystem\nNNtQ.",
        b"(S'elsewhere'\nS'0'\ntQ.",
        b"Pelsewhere\n.",
    ],
    ids=range(23),
)
def test_crafted_pickles_are_refused(pickled, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(
        write(tmp_path / "model.pt", pickled), "is damaged or not a checkpoint of the published R-Transformer"
    )


@pytest.mark.parametrize("root", [b"_modules", b"_parameters"])
def test_modules_without_sense_are_refused(root, tmp_path):
    """A module below itself; parameters that are none."""
    module = b"\x80\x02" + RT + b")\x81q\x00}(X\x08\0\0\0_modules}(%sX\x0b\0\0\0_parameters}(%sub."
    child = b"X\x01\0\0\0ah\0u"
    pickled = module % ((child, b"u") if root == b"_modules" else (b"u", child))
    assert_refused(zip_checkpoint(tmp_path / "model.pt", pickled), "RecursionError|neither a state dict nor a module")


def test_torchscript_is_refused(checkpoint, tmp_path):
    path = save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps((), 2))
        archive.writestr("model/code/__torch__.py", "raise ValueError")
    assert_refused(path, "TorchScript")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (0, (4,), (-1,)), (9, (1,), (1,))],
)
def test_tensors_outside_their_storage_are_refused(offset, size, stride, legacy, tmp_path):
    storage = torch.zeros(4)._typed_storage()
    tensor = Reduce(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    assert_refused(save({"weight": tensor}, tmp_path / "model.pt", legacy), "out of bounds|[Nn]egative|resiz|overflow")


def test_storages_of_another_size_are_refused(tmp_path):
    path = save({"weight": torch.zeros(4)}, tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("model/data.pkl")
    for data in (bytes(15), bytes(17), b""):
        records = {"data/0": data}
        assert_refused(
            zip_checkpoint(path, pickled, **records), rf"record size \({len(data)} bytes\) does not match .*16 bytes"
        )
    assert_refused(zip_checkpoint(path, pickled), "data/0")

    data = save({"weight": torch.zeros(4)}, path, legacy=True).read_bytes()
    path.write_bytes(data[:-24] + (5).to_bytes(8, "little") + data[-16:])
    assert_refused(path, "expected 20 bytes for 5 torch.float32 elements, got 16")


@pytest.mark.parametrize("name", [*FORMATS, "char_gru.safetensors"])
def test_truncated_files_are_refused(name, checkpoint):
    data = FILES[name]
    for length in (0, 1, 2, 20, 100, 1000, len(data) // 2, len(data) - 1000, len(data) - 1):
        path = checkpoint(name, data[:length])
        assert_refused(path, f"{name} is damaged or not a checkpoint of the published R-Transformer")


def test_damaged_files_are_refused(checkpoint):
    data = bytearray(FILES["char_gru.state_dict.pt"])
    data[len(data) // 2] ^= 1
    assert_refused(checkpoint("char_gru.state_dict.pt", bytes(data)), "wrong checksum of the record ")


@pytest.mark.parametrize("legacy", [False, True])
def test_other_models_are_refused(legacy, tmp_path):
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=5, n_positions=4))
    path = tmp_path / "model.pt"
    message = "not from a published R-Transformer: it has 0 blocks .* unknown parameters: lm_head.weight, .* and "
    assert_refused(save(gpt2.state_dict(), path, legacy), message)
    assert_refused(save(torch.nn.Linear(2, 2).state_dict(), path, legacy), "unknown parameters: bias, weight")
    assert_refused(save({}, path, legacy), "missing parameters: encoder.bias, encoder.weight, linear.bias, and 1 more")
    assert_refused(save(gpt2, path, legacy), "it refers to `transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel`")
    for obj in ([torch.zeros(2)], torch.zeros(2), 3, {"epoch": 3}, {3: torch.zeros(2)}, {"state_dict": {}}):
        assert_refused(save(obj, path, legacy), "neither a state dict nor a module")


def test_other_state_dicts_are_refused():
    golden = Golden("image_gru")

    def convert(**changes):
        state_dict = {name: value for name, value in {**golden.state_dict, **changes}.items() if value is not None}
        return convert_official_state_dict(state_dict, **golden.sizes)

    name = "rt.forward_net.1.connections.1.norm.a_2"
    with pytest.raises(ValueError, match=f"missing parameters: {name}; unknown parameters: none"):
        convert(**{name: None})
    with pytest.raises(ValueError, match=r"missing parameters: none; unknown parameters: rt\.position\.weight"):
        convert(**{"rt.position.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"one floating-point dtype, got \['torch.float32', 'torch.float64'\]"):
        convert(**{name: torch.zeros(16, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"one of the sizes \[16, 48, 64\], got 32"):
        convert(**{"rt.forward_net.0.layers.0.local_rnn.rnn.weight_hh_l0": torch.zeros(32, 16)})
    with pytest.raises(ValueError, match="shapes in `state_dict` do not fit"):
        convert(**{"rt.forward_net.0.layers.0.local_rnn.rnn.bias_ih_l0": torch.zeros(32)})
    for shape in ((), (16,), (17, 1), (16, 2, 1)):
        with pytest.raises(ValueError, match="shapes in `state_dict` do not fit"):
            convert(**{"encoder.weight": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "parameter", "shape", "message"),
    [
        # Blocks without end, in a file of a few bytes.
        ("word_custom", "pooling.linears.0.twiddle", (1, 10**12, 5, 0, 2, 2), "shapes in `state_dict` do not fit"),
        ("word_custom", "pooling.linears.0.twiddle", (), "shapes in `state_dict` do not fit"),
        (
            "word_custom",
            "pooling.linears.1.twiddle",
            (1, 2, 5, 16, 4),
            r"do not fit together: rt\.forward_net\.0\.pooling\.linears\.1\.twiddle is \[1, 2, 5, 16, 4\], expected "
            r"\[1, 2, 5, 16, 2, 2\]\.$",
        ),
        ("word_custom", "feed_forward.w_2.twiddle", (1, 2, 6, 32, 2, 2), "shapes in `state_dict` do not fit"),
        ("word_custom", "layers.0.local_rnn.rnn.lstm.Gates.twiddle", (2, 2, 6, 32), "do not fit"),
        ("word_custom", "layers.0.local_rnn.rnn.lstm.Gates.weight", (128, 64), "unknown parameters: rt.forward_net.0"),
        ("word_custom", "feed_forward.w_1.bias", (128,), "unknown parameters: rt.forward_net.0.feed_forward.w_1.bias"),
        (
            "word_custom",
            "pooling.linears.2.twiddle",
            None,
            "missing parameters: rt.forward_net.0.pooling.linears.2.tw",
        ),
        ("word_custom_dense", "layers.0.local_rnn.rnn.lstm.Gates.weight", (), "do not fit"),
        ("word_custom_dense", "layers.0.local_rnn.rnn.lstm.Gates.weight", (96, 47), "do not fit"),
        ("word_custom_dense", "pooling.linears.1.twiddle", (1, 2, 5, 16, 2, 2), "unknown parameters: .*twiddle"),
        ("music_gru", "layers.0.local_rnn.rnn.bias_ih_l0", (96,), "missing parameters: .*bias_hh_l0"),
    ],
)
def test_broken_butterflies_are_refused(name, parameter, shape, message):
    golden = Golden(f"butterfly_{name}")
    state_dict = {**golden.state_dict, f"rt.forward_net.0.{parameter}": torch.zeros(shape or ())}
    if shape is None:
        del state_dict[f"rt.forward_net.0.{parameter}"]
    with pytest.raises(ValueError, match=message):
        convert_official_state_dict(state_dict, **golden.sizes)


@pytest.mark.parametrize("name", ["butterfly_word_custom", "char_gru"])
def test_weights_that_are_not_finite_are_refused(name):
    golden = Golden(name)
    for value in (torch.nan, torch.inf):
        state_dict = {**golden.state_dict, "encoder.weight": golden.state_dict["encoder.weight"].clone()}
        state_dict["encoder.weight"][0, 0] = value
        with pytest.raises(ValueError, match=r"must have finite weights, got others in encoder.weight"):
            convert_official_state_dict(state_dict, **golden.sizes)
    unused = "rt.norm.a_2"
    convert_official_state_dict({**golden.state_dict, unused: torch.full((4,), torch.nan)}, **golden.sizes)


@pytest.mark.parametrize("parameter", ["decoder.bias", "rt.forward_net.0.pooling.linears.0.bias"])
@pytest.mark.parametrize("legacy", [False, True])
def test_sizes_without_end_are_refused(parameter, legacy, tmp_path):
    """A view of a single number can have any size, and the model would have it, too."""
    golden = Golden("butterfly_word_custom")
    state_dict = {**golden.state_dict, parameter: torch.ones(1).expand(2**40)}
    path = tmp_path / "model.pt"
    torch.save(state_dict, path, _use_new_zipfile_serialization=not legacy)
    assert_refused(path, f"{parameter} has more elements than are stored")
    with pytest.raises(ValueError, match="shapes in `state_dict` do not fit"):
        convert_official_state_dict(state_dict, **golden.sizes)


def test_attributes_of_pickled_parameters_are_dropped(tmp_path):
    """Butterfly checkpoints have parameters with attributes, which could hide the methods of the class."""
    golden = Golden("butterfly_word_custom")
    state_dict = dict(golden.state_dict)
    for name in ("encoder.weight", "rt.forward_net.0.pooling.linears.0.twiddle"):
        state_dict[name] = torch.nn.Parameter(state_dict[name])
        state_dict[name].numel = state_dict[name].is_floating_point = "no method"
    loaded, _ = load_official_checkpoint(save(state_dict, tmp_path / "model.pt"))
    assert type(loaded["encoder.weight"].numel()) is int
    convert_official_state_dict(loaded, **golden.sizes)


def test_modules_that_disagree_are_refused(monkeypatch):
    modules = [checkpoint_conversion.ModuleStandIn() for _ in range(2)]
    for module, ksize in zip(modules, (4, 5), strict=True):
        module.attributes = {"_modules": {}, "_parameters": {}, "ksize": ksize}
    modules[0].attributes["_modules"]["child"] = modules[1]
    with pytest.raises(ValueError, match=r"expected one integer as `ksize` of its modules, got \['4', '5'\]"):
        checkpoint_conversion.read_module(modules[0])


def test_missing_file(tmp_path):
    assert_refused(tmp_path / "model.pt", "No such file or directory")
