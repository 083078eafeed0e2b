# SPDX-License-Identifier: Apache-2.0
"""
Converts checkpoints of the published R-Transformer code (arXiv 1907.05572), and of its variant with butterfly
matrices (sfox14/butterfly-r-transformer), to this package's models.

No code from a checkpoint is executed. `torch.load(weights_only=True)` reads it, with harmless stand-ins for the
classes of pickled modules. It cannot read pickled modules in the format before PyTorch 1.6, so a restricted unpickler
does.
"""

import io
import os
import pickle
import re
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import safetensors.torch
import torch
from transformers import PreTrainedModel

from .configuration_rtransformer import RTransformerConfig
from .local_rnn import CELLS, num_gates
from .modeling_rtransformer import (
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
)

# ---- Reading: from a file to a state dict with the published names ----


class ModuleStandIn:
    """Stands in for a pickled module: holds its attributes, without the code of its class."""

    __slots__ = ("attributes",)  # no __dict__ where the file could put its own `__setstate__`

    def __new__(cls):
        stand_in = super().__new__(cls)
        stand_in.attributes = {}
        return stand_in

    def __setstate__(self, state: dict):
        self.attributes = state


MODULE_CLASSES = {
    "model": ["RT"],
    "RTransformer": [
        "Block",
        "LayerNorm",
        "LocalRNN",
        "LocalRNNLayer",
        "MHPooling",
        "PositionwiseFeedForward",
        "RTransformer",
        "SublayerConnection",
    ],
    "lstm": ["LSTMCell", "LSTMLayer"],
    "torch_butterfly.butterfly": ["Butterfly"],
    "torch.nn.modules.activation": ["ReLU", "Sigmoid"],
    "torch.nn.modules.container": ["ModuleList", "Sequential"],
    "torch.nn.modules.dropout": ["Dropout"],
    "torch.nn.modules.linear": ["Linear"],
    "torch.nn.modules.rnn": ["GRU", "LSTM", "RNN"],
    "torch.nn.modules.sparse": ["Embedding"],
    # An attribute of every module before PyTorch 1.4. The published code was written for 1.0.
    "torch.nn.backends.thnn": ["_get_thnn_function_backend"],
}
STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
}
ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
    **{(module, name): ModuleStandIn for module, names in MODULE_CLASSES.items() for name in names},
}


class RestrictedUnpickler(pickle.Unpickler):
    """
    For the format before PyTorch 1.6. Rebuilds tensors and plain containers, replaces modules by `ModuleStandIn`, and
    refuses all other names.

    Args:
        file: the file to read one pickle from.
        get_storage: returns the storage for a dtype, key and number of elements, as a one-dimensional tensor.
    """

    def __init__(self, file: BinaryIO, get_storage: Callable[[torch.dtype, str, int], torch.Tensor] | None = None):
        super().__init__(file)
        self.get_storage = get_storage
        self.allowed_globals = {
            **ALLOWED_GLOBALS,
            # New for each file, because a pickle can set attributes of a function. `as_strided` checks its bounds.
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: torch.as_strided(
                storage, size, stride, offset
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.allowed_globals:
            raise refused_name(f"{module}.{name}")
        return self.allowed_globals[module, name]

    def persistent_load(self, saved_id: tuple):
        match saved_id:
            case ("storage", torch.dtype() as dtype, str(key), _device, int(numel), None):
                return self.get_storage(dtype, key, numel)
            case ("module", module_class, _file, _source):
                return module_class
        raise pickle.UnpicklingError(f"expected a reference to a storage, got {saved_id!r:.200}")


def read_zip(file: BinaryIO):
    """Reads the format of `torch.save` since PyTorch 1.6."""
    with zipfile.ZipFile(file) as archive:
        if damaged := archive.testzip():  # `torch.load` does not check
            raise ValueError(f"wrong checksum of the record {damaged}")
    file.seek(0)
    classes = [(ModuleStandIn, f"{module}.{name}") for module, names in MODULE_CLASSES.items() for name in names]
    try:
        with torch.serialization.safe_globals(classes):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's message recommends loading without checks
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise (
            refused_name(refused[1]) if refused else pickle.UnpicklingError("it contains more than weights")
        ) from None


def refused_name(name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"it refers to `{name}`, which no published checkpoint contains")


def read_legacy(file: BinaryIO):
    """Reads the format of `torch.save` before PyTorch 1.6: five pickles, then the storages, little-endian."""
    magic_number, protocol_version = RestrictedUnpickler(file).load(), RestrictedUnpickler(file).load()
    if magic_number != 0x1950A86A20F9469CFC6C or protocol_version != 1001:
        raise pickle.UnpicklingError("it does not start with the magic number and version of `torch.save`")
    RestrictedUnpickler(file).load()  # sizes of C types on the machine that saved it

    storages = {}

    def get_storage(dtype: torch.dtype, key: str, numel: int) -> torch.Tensor:
        if key not in storages:
            storages[key] = torch.empty(numel, dtype=dtype)
        return storages[key]

    checkpoint = RestrictedUnpickler(file, get_storage).load()
    keys = RestrictedUnpickler(file).load()
    if set(keys) != set(storages):
        raise pickle.UnpicklingError("its list of storages does not match its tensors")
    for key in keys:
        storage = storages[key]
        numel = int.from_bytes(file.read(8), "little")
        storage.copy_(storage_from_bytes(file.read(storage.nbytes), storage.dtype, numel))
    return checkpoint


def storage_from_bytes(data: bytes, dtype: torch.dtype, numel: int) -> torch.Tensor:
    """(numel,) tensor with a copy of little-endian bytes. Raises ValueError if their number is wrong."""
    if len(data) != numel * dtype.itemsize:
        raise ValueError(f"expected {numel * dtype.itemsize} bytes for {numel} {dtype} elements, got {len(data)}")
    storage = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    if sys.byteorder == "big":
        storage.untyped_storage().byteswap(dtype)
    return storage


def named_modules(module: ModuleStandIn, prefix: str = "") -> Iterator[tuple[str, dict]]:
    """The attributes of a module and its descendants, each with its prefix in the state dict."""
    yield prefix, module.attributes
    for name, child in module.attributes["_modules"].items():
        yield from named_modules(child, f"{prefix}{name}.")


def read_module(module: ModuleStandIn) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Returns a module's state dict, and the `local_window_size` and `num_attention_heads` found in its attributes."""
    modules = dict(named_modules(module))
    state_dict = {
        f"{prefix}{name}": parameter
        for prefix, attributes in modules.items()
        for name, parameter in attributes["_parameters"].items()
        if parameter is not None
    }
    sizes = {}
    for size, attribute in (("local_window_size", "ksize"), ("num_attention_heads", "h")):
        values = {attributes[attribute] for attributes in modules.values() if attribute in attributes}
        if len(values) > 1 or not all(type(value) is int for value in values):
            raise ValueError(f"expected one integer as `{attribute}` of its modules, got {sorted(map(repr, values))}")
        sizes.update((size, value) for value in values)
    return state_dict, sizes


def load_official_checkpoint(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """
    Reads a checkpoint of the published code without executing anything from it.

    Args:
        path: a state dict or a pickled module, saved by any version of `torch.save` from any device, or a state dict
            in a `.safetensors` file.

    Returns:
        The state dict with the published names, on the CPU. And, from a pickled module, its `local_window_size` and
        `num_attention_heads`, which are keyword arguments of [`convert_official_state_dict`].

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, contains something else, or refers to code that no such checkpoint needs.
    """
    data = Path(path).read_bytes()
    try:
        if Path(path).suffix == ".safetensors":
            checkpoint = safetensors.torch.load(data)
        elif data.startswith(b"PK"):
            checkpoint = read_zip(io.BytesIO(data))
        else:
            checkpoint = read_legacy(io.BytesIO(data))
        state_dict, sizes = read_module(checkpoint) if type(checkpoint) is ModuleStandIn else (checkpoint, {})
        if not isinstance(state_dict, dict) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state_dict.items()
        ):
            raise ValueError("it contains neither a state dict nor a module")
        # A pickled parameter can have attributes, which would stand before the methods of its class.
        state_dict = {name: torch.Tensor.detach(value) for name, value in state_dict.items()}
        for name, value in state_dict.items():
            if value.layout is not torch.strided or value.untyped_storage().nbytes() < value.numel() * value.itemsize:
                raise ValueError(f"{name} has more elements than are stored")
    except Exception as error:  # a damaged or hostile file can cause any kind
        raise ValueError(
            f"{path} is damaged or not a checkpoint of the published R-Transformer: {type(error).__name__}: {error}"
        ) from error
    return state_dict, sizes


# ---- Converting: from the published names to ours ----

LOCAL_RNN_PARAMETERS = {
    "connection.norm.a_2": "norm.weight",
    "connection.norm.b_2": "norm.bias",
    "local_rnn.rnn.weight_ih_l0": "cell.input_proj.weight",
    "local_rnn.rnn.weight_hh_l0": "cell.recurrent_proj.weight",
}
LOCAL_RNN_BIASES = {
    "local_rnn.rnn.bias_ih_l0": "cell.input_proj.bias",
    "local_rnn.rnn.bias_hh_l0": "cell.recurrent_proj.bias",
}
# The LSTM with hard sigmoids has one matrix over [input, state].
JOINT_GATES = "local_rnn.rnn.lstm.Gates.weight"
BLOCK_PARAMETERS = {
    "connections.0.norm.a_2": "self_attn_norm.weight",
    "connections.0.norm.b_2": "self_attn_norm.bias",
    "pooling.linears.0.weight": "self_attn.q_proj.weight",
    "pooling.linears.0.bias": "self_attn.q_proj.bias",
    "pooling.linears.1.weight": "self_attn.k_proj.weight",
    "pooling.linears.1.bias": "self_attn.k_proj.bias",
    "pooling.linears.2.weight": "self_attn.v_proj.weight",
    "pooling.linears.2.bias": "self_attn.v_proj.bias",
    "pooling.linears.3.weight": "self_attn.o_proj.weight",
    "pooling.linears.3.bias": "self_attn.o_proj.bias",
    "connections.1.norm.a_2": "mlp_norm.weight",
    "connections.1.norm.b_2": "mlp_norm.bias",
    "feed_forward.w_1.weight": "mlp.up_proj.weight",
    "feed_forward.w_1.bias": "mlp.up_proj.bias",
    "feed_forward.w_2.weight": "mlp.down_proj.weight",
    "feed_forward.w_2.bias": "mlp.down_proj.bias",
}
UNUSED_PARAMETERS = re.compile(r"rt\.(norm|feed_forward|forward_net\.\d+\.layers\.\d+\.local_rnn\.output)\.")


class Variant(NamedTuple):
    """How the published models differ. Only those of the first repository have biases in the LocalRNN."""

    has_butterflies: bool = False
    has_joint_gates: bool = False
    has_local_rnn_bias: bool = True

    @classmethod
    def of(cls, names: Collection[str]) -> "Variant":
        layer = "rt.forward_net.0.layers.0"
        return cls(
            has_butterflies="rt.forward_net.0.pooling.linears.0.twiddle" in names,
            has_joint_gates=any(f"{layer}.{as_twiddle(JOINT_GATES, joint)}" in names for joint in (True, False)),
            has_local_rnn_bias=f"{layer}.local_rnn.rnn.bias_ih_l0" in names,
        )


def as_twiddle(name: str, has_butterflies: bool) -> str:
    """The name of a weight, or of the twiddle that replaces it in a butterfly layer."""
    return name.removesuffix("weight") + "twiddle" if has_butterflies and name.endswith(".weight") else name


def parameter_names(
    architecture: type[PreTrainedModel], num_blocks: int, num_local_rnn_layers: int, variant: Variant
) -> dict[str, str]:
    """
    Maps the published name of each parameter that a published model uses to our name. Dense joint gates get one name
    here; `split_joint_gates` splits them into our two parameters.
    """
    if architecture is RTransformerForCausalLM:
        names = {
            "encoder.weight": "model.embed_tokens.weight",
            "decoder.weight": "lm_head.weight",
            "decoder.bias": "lm_head.bias",
        }
    else:
        head = "key_head" if architecture is RTransformerForPolyphonicMusic else "score"
        names = {
            "encoder.weight": "model.input_projection.weight",
            "encoder.bias": "model.input_projection.bias",
            "linear.weight": f"{head}.weight",
            "linear.bias": f"{head}.bias",
        }
    local_rnn = {**LOCAL_RNN_PARAMETERS, **(LOCAL_RNN_BIASES if variant.has_local_rnn_bias else {})}
    if variant.has_joint_gates:
        local_rnn = {old: new for old, new in local_rnn.items() if not new.startswith("cell.")}
        joint_gates = (as_twiddle(name, variant.has_butterflies) for name in (JOINT_GATES, "cell.gates_proj.weight"))
        local_rnn.update([tuple(joint_gates)])
    block = dict(BLOCK_PARAMETERS)
    if variant.has_butterflies:  # their feed-forward layers have no biases
        block = {
            as_twiddle(old, "norm" not in old): as_twiddle(new, "norm" not in new)
            for old, new in block.items()
            if not (old.startswith("feed_forward") and old.endswith("bias"))
        }
    for i in range(num_blocks):
        for j in range(num_local_rnn_layers):
            for old, new in local_rnn.items():
                names[f"rt.forward_net.{i}.layers.{j}.{old}"] = f"model.layers.{i}.local_rnns.{j}.{new}"
        for old, new in block.items():
            names[f"rt.forward_net.{i}.{old}"] = f"model.layers.{i}.{new}"
    return names


def split_joint_gates(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Splits each dense `gates_proj.weight` over [input, state] (our names) in two, with the gates in our order."""
    converted = {}
    for name, parameter in state_dict.items():
        if name.endswith("cell.gates_proj.weight"):
            input_gate, forget_gate, output_gate, candidate = parameter.chunk(4)
            halves = torch.cat([input_gate, forget_gate, candidate, output_gate]).tensor_split(2, dim=1)
            for new, half in zip(("input_proj", "recurrent_proj"), halves, strict=True):
                converted[name.replace("gates_proj", new)] = half
        else:
            converted[name] = parameter
    return converted


def convert_official_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    *,
    local_window_size: int | None = None,
    num_attention_heads: int | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """
    Converts a published model to this package's. The parameters determine all of its sizes except two.

    Args:
        state_dict: the parameters with their published names, of one floating-point dtype, which the model keeps.
        local_window_size: number of inputs in a LocalRNN window; required.
        num_attention_heads: number of attention heads; required.

    Returns:
        The model, in evaluation mode: an `RTransformerForCausalLM` (characters, words), an
        `RTransformerForSequenceClassification` (images) or an `RTransformerForPolyphonicMusic` (music). And the
        published names of the dropped parameters, which the published model has but never uses.

    Raises:
        ValueError: the parameters are not those of a published model, or a size is missing or does not fit them.
    """
    # torch.nn.DataParallel wraps the model in an attribute named `module`.
    state_dict = {name.removeprefix("module."): parameter for name, parameter in state_dict.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in state_dict.items()}
    if "decoder.weight" in shapes:
        architecture = RTransformerForCausalLM
    elif shapes.get("linear.weight") == shapes.get("encoder.weight", ())[::-1]:  # keys -> hidden -> keys
        architecture = RTransformerForPolyphonicMusic
    else:
        architecture = RTransformerForSequenceClassification

    layers = [re.match(r"rt\.forward_net\.(\d+)\.layers\.(\d+)\.", name) for name in shapes]
    num_blocks, num_local_rnn_layers = (len({match[group] for match in layers if match}) for group in (1, 2))
    variant = Variant.of(shapes)
    names = parameter_names(architecture, num_blocks, num_local_rnn_layers, variant)
    missing = sorted(names.keys() - shapes.keys())
    dropped = sorted(shapes.keys() - names.keys())
    unknown = [name for name in dropped if not UNUSED_PARAMETERS.match(name)]
    if num_blocks == 0 or missing or unknown:
        raise ValueError(
            "`state_dict` is not from a published R-Transformer: it has "
            f"{num_blocks} blocks `rt.forward_net.I` with LocalRNN layers; missing parameters: {abbreviate(missing)}; "
            f"unknown parameters: {abbreviate(unknown)}."
        )
    dtypes = {state_dict[name].dtype for name in names}
    if len(dtypes) > 1 or not state_dict["encoder.weight"].is_floating_point():
        raise ValueError(f"`state_dict` must have one floating-point dtype, got {sorted(map(str, dtypes))}.")

    sizes = {"local_window_size": local_window_size, "num_attention_heads": num_attention_heads}
    unset = [size for size, value in sizes.items() if value is None]
    if unset:
        raise ValueError(
            f"A state dict does not contain {' and '.join(f'`{size}`' for size in unset)}: set "
            f"{' and '.join(f'`--{size}`' for size in unset)}."
        )

    hidden_size = state_dict["rt.forward_net.0.pooling.linears.0.bias"].numel()
    if variant.has_joint_gates:
        cell_type = "lstm"
    else:
        gates_size = shapes["rt.forward_net.0.layers.0.local_rnn.rnn.weight_hh_l0"][:1]
        cell_types = {(num_gates(cell_type) * hidden_size,): cell_type for cell_type in CELLS}
        if gates_size not in cell_types:
            raise ValueError(
                f"The LocalRNN's weights must have one of the sizes {sorted(size for (size,) in cell_types)}, got "
                f"{' x '.join(map(str, gates_size)) or 'none'}."
            )
        cell_type = cell_types[gates_size]
    structure = {}
    if variant.has_butterflies:
        intermediate_size = 4 * hidden_size
        twiddle = state_dict["rt.forward_net.0.pooling.linears.0.twiddle"]
        num_levels = max(1, (hidden_size - 1).bit_length())
        structure = {
            "projection_type": "butterfly",
            "local_rnn_projection_type": "butterfly" if variant.has_joint_gates else "dense",
            "num_butterfly_blocks": max(1, twiddle.numel() // (num_levels * 2 ** (num_levels + 1))),
            "mlp_bias": False,
        }
    else:
        intermediate_size = state_dict["rt.forward_net.0.feed_forward.w_1.bias"].numel()
    if architecture is RTransformerForCausalLM:
        tied = torch.equal(state_dict["encoder.weight"], state_dict["decoder.weight"])
        task = {"vocab_size": state_dict["decoder.bias"].numel(), "tie_word_embeddings": tied}
    elif architecture is RTransformerForPolyphonicMusic:
        task = {"input_size": state_dict["linear.bias"].numel()}
    else:
        input_size = state_dict["encoder.weight"].shape[-1:].numel()
        task = {"input_size": input_size, "num_labels": state_dict["linear.bias"].numel()}
    config = RTransformerConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_blocks,
        local_rnn_type=cell_type,
        local_rnn_gate_activation="hard_sigmoid" if variant.has_joint_gates else "sigmoid",
        local_rnn_bias=variant.has_local_rnn_bias,
        num_local_rnn_layers=num_local_rnn_layers,
        layer_norm_type="unbiased",
        **structure,
        **sizes,
        **task,
    )

    try:
        converted = split_joint_gates({new: state_dict[old] for old, new in names.items()})
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"The shapes in `state_dict` do not fit together: {error}") from error
    with torch.device("meta"):  # wrong sizes may be larger than the memory
        expected = {name: list(weight.shape) for name, weight in architecture(config).state_dict().items()}
    old_names = {new: old for old, new in names.items()}
    misfits = [
        f"{old_names.get(name, name)} is {list(converted[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if list(converted[name].shape) != shape
    ]
    if misfits:
        raise ValueError(f"The shapes in `state_dict` do not fit together: {abbreviate(misfits)}.")
    broken = sorted(name for name in names if not state_dict[name].isfinite().all())
    if broken:
        raise ValueError(f"`state_dict` must have finite weights, got others in {abbreviate(broken)}.")
    model = architecture(config).to(*dtypes).eval()
    model.load_state_dict(converted)
    return model, dropped


def abbreviate(names: list[str]) -> str:
    return ", ".join(names[:3] + [f"and {len(names) - 3} more"] * (len(names) > 3)) or "none"


def convert_official_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    local_window_size: int | None = None,
    num_attention_heads: int | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """
    Converts a checkpoint file of the published code to a folder for `from_pretrained`. The folder appears whole or not
    at all.

    Args:
        path: the file, as in [`load_official_checkpoint`].
        output_dir: the folder to create; it must not exist or be empty.
        local_window_size, num_attention_heads: required for a state dict; a pickled module contains them.

    Returns:
        As [`convert_official_state_dict`].

    Raises:
        OSError: the checkpoint cannot be read or the folder cannot be written.
        ValueError: the checkpoint is not from a published model, a size is missing or contradicts the pickled module,
            or `output_dir` is not empty.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise ValueError(f"`output_dir` must not exist or must be an empty folder, got {output_dir}.")
    state_dict, sizes = load_official_checkpoint(path)
    given = {"local_window_size": local_window_size, "num_attention_heads": num_attention_heads}
    for size, value in given.items():
        if value is not None and sizes.setdefault(size, value) != value:
            raise ValueError(f"`{size}` is {sizes[size]} in the module of {path}, but {value} was given.")
    model, dropped = convert_official_state_dict(state_dict, **sizes)

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as temporary_dir:
        written = Path(temporary_dir) / "model"
        model.save_pretrained(written)
        if output_dir.exists():
            output_dir.rmdir()
        written.rename(output_dir)
    return model, dropped
