# SPDX-License-Identifier: Apache-2.0
"""Exports models to ONNX, and compares them there with PyTorch's: outputs and speed."""

import copy
from pathlib import Path

import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import ModelOutput

import rtransformer_hf

from .. import RTransformerConfig
from ..cache_rtransformer import CACHE_NAME
from ..structured_linear import LocalRNNProjections, StructuredLinear
from ..time_series_head import instance_scale, observed_values
from .checkpoints import open_checkpoint
from .errors import UsageError
from .loading import open_model
from .timing import Phase, time_interleaved

TASKS = (
    "RTransformerForCausalLM",
    "RTransformerForPolyphonicMusic",
    "RTransformerForSequenceClassification",
    "RTransformerForTimeSeriesPrediction",
    "RTransformerForTokenClassification",
)
TASKS_WITH_CACHE = ("RTransformerForCausalLM", "RTransformerForTimeSeriesPrediction", "RTransformerForPolyphonicMusic")
OPSET = 18  # the lowest that PyTorch's exporter writes without a conversion, so that most runtimes take it
TOKENS_AFTER_PREFILL = 16


def load_model(checkpoint: str, with_cache: bool) -> PreTrainedModel:
    """
    A checkpoint's model in float32.

    Raises:
        UsageError: it can't be exported, or not with a cache.
    """
    with open_checkpoint(checkpoint, "a trained R-Transformer", *TASKS) as architecture:
        model = open_model(getattr(rtransformer_hf, architecture), checkpoint, dtype=torch.float32)
    if getattr(model, "is_quantized", False):
        raise UsageError(f"checkpoint: {checkpoint!r} is quantised (expected floating-point weights)")
    if with_cache and (architecture not in TASKS_WITH_CACHE or has_autoregressive_keys(model.config)):
        raise UsageError(
            f"--with_cache: checkpoint {checkpoint!r} is a {architecture} (expected one of "
            f"{', '.join(TASKS_WITH_CACHE)}, the last with independent keys)"
        )
    return model


class FunctionalModel(nn.Module):
    """A model whose cache comes in and goes out as tensors."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, inputs: dict[str, torch.Tensor], past: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Takes what `make_inputs` and `make_past` make; no past means no cache. Returns `main_outputs`, present."""
        if past is None:
            return main_outputs(self.model(**inputs, use_cache=False))
        states = iter(past.values())
        if forecasts(self.model.config):
            inputs = {**inputs, **self.normalisation(inputs, next(states), next(states))}
        cache = DynamicCache(config=self.model.config)
        for layer in cache.layers:
            layer.update(next(states), next(states))
            for state_idx in getattr(layer, "conv_states", ()):
                layer.update_conv_state(next(states), state_idx)
        outputs = self.model(**inputs, cache=cache, use_cache=True)
        return *main_outputs(outputs), *(
            state
            for layer in cache.layers
            for state in (layer.keys, layer.values, *getattr(layer, "conv_states", {}).values())
        )

    def normalisation(
        self, inputs: dict[str, torch.Tensor], loc: torch.Tensor, scale: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """`loc` and `scale` as given, or where the scale is 0, as in a new past, those of the values."""
        config, is_new = self.model.config, scale == 0
        observed = observed_values(inputs["past_values"], None, inputs["attention_mask"])
        targets = slice(config.num_target_channels)
        own_loc, own_scale = instance_scale(
            inputs["past_values"][..., targets], observed[..., targets], config.scaling
        )
        return {"loc": torch.where(is_new, own_loc, loc), "scale": torch.where(is_new, own_scale, scale)}


def main_outputs(outputs: ModelOutput) -> tuple[torch.Tensor, ...]:
    """The logits; of a model that forecasts, parameters (batch, time, channels, parameters), loc and scale."""
    if "params" not in outputs:
        return (outputs.logits,)
    params = outputs.params[0] if len(outputs.params) == 1 else torch.stack(outputs.params, dim=-1)
    return params, outputs.loc, outputs.scale


def carried(outputs: ModelOutput) -> dict:
    """What a model is called with to go on from its outputs."""
    return {name: outputs[name] for name in (CACHE_NAME, "loc", "scale") if name in outputs}


def make_inputs(
    config: RTransformerConfig, batch_size: int, length: int, past_length: int = 0, padding: int = 0
) -> dict[str, torch.Tensor]:
    """Random inputs of a model, the first row left-padded by `padding` positions."""
    if config.input_size is None:
        inputs = {"input_ids": torch.randint(config.vocab_size, (batch_size, length))}
    elif forecasts(config):
        inputs = {"past_values": torch.randn(batch_size, length, config.input_size)}
        if config.num_dynamic_real_features > 0:
            inputs["next_covariates"] = torch.randn(batch_size, config.num_dynamic_real_features)
    else:
        inputs = {"input_values": torch.rand(batch_size, length, config.input_size).round()}
    attention_mask = torch.ones(batch_size, past_length + length, dtype=torch.long)
    attention_mask[0, :padding] = 0
    inputs["attention_mask"] = attention_mask
    if has_autoregressive_keys(config):
        inputs["labels"] = inputs["input_values"]
    return inputs


def forecasts(config: RTransformerConfig) -> bool:
    return config.architectures == ["RTransformerForTimeSeriesPrediction"]


def has_autoregressive_keys(config: RTransformerConfig) -> bool:
    return config.architectures == ["RTransformerForPolyphonicMusic"] and config.key_head_type == "autoregressive"


def make_past(config: RTransformerConfig, batch_size: int, past_length: int = 0) -> dict[str, torch.Tensor]:
    """A new cache, of zeros, as tensors in the order of the graph's inputs."""
    past, head_size = {}, config.hidden_size // config.num_attention_heads
    if forecasts(config):
        past |= {name: torch.zeros(batch_size, 1, config.num_target_channels) for name in ("loc", "scale")}
    for block, layer_type in enumerate(config.layer_types):
        for name in ("key", "value"):
            past[f"{block}.{name}"] = torch.zeros(batch_size, config.num_attention_heads, past_length, head_size)
        for state_idx in range(config.number_of_conv_states if layer_type == "hybrid" else 0):
            window = torch.zeros(batch_size, config.hidden_size, config.local_window_size)
            past[f"{block}.local_rnn.{state_idx}"] = window
    return past


@torch.no_grad()
def with_matrices(model: PreTrainedModel) -> PreTrainedModel:
    """
    The model with dense layers for the structured ones that form their matrix to apply it. Otherwise the graph would
    form it, in many small operations, whose results the exporter may all store as constants.
    """
    if not any(isinstance(module, StructuredLinear) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, StructuredLinear) and (
                layer.applies_matrix or isinstance(parent, LocalRNNProjections)
            ):
                dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
                dense.weight, dense.bias = nn.Parameter(layer.dense_weight()), layer.bias
                setattr(parent, name, dense)
    return model


def export(model: PreTrainedModel, with_cache: bool) -> torch.onnx.ONNXProgram:
    """The model as an ONNX program whose batch size and lengths are dynamic."""
    past_length = 5 if with_cache else 0
    inputs = make_inputs(model.config, batch_size=2, length=3, past_length=past_length)
    past = make_past(model.config, 2, past_length) if with_cache else {}
    kwargs, axes = {"inputs": inputs}, {"inputs": {name: {0: "batch", 1: "time"} for name in inputs}}
    if "next_covariates" in inputs:
        axes["inputs"]["next_covariates"] = {0: "batch"}
    if with_cache:
        kwargs["past"] = past
        grows = {name: name.endswith((".key", ".value")) for name in past}
        axes["past"] = {name: {0: "batch", 2: "past"} if grows[name] else {0: "batch"} for name in past}
        axes["inputs"]["attention_mask"] = {0: "batch", 1: "past_and_time"}
    program = torch.onnx.export(
        FunctionalModel(with_matrices(model)).eval(),
        kwargs=kwargs,
        dynamic_shapes=axes,
        input_names=[*inputs, *(f"past.{name}" for name in past)],
        output_names=[
            *(("params",) if forecasts(model.config) else ("logits",)),
            *(("loc", "scale") if forecasts(model.config) and not with_cache else ()),
            *(f"present.{name}" for name in past),
        ],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    ClearMetadataAndDocStringPass()(program.model)  # PyTorch's stack traces outweigh a small model
    return program


class OnnxModel:
    """An exported model in onnxruntime, with the interface of `FunctionalModel`."""

    def __init__(self, path: Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, torch.Tensor], past: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        feed = inputs | {f"past.{name}": state for name, state in past.items()}
        outputs = self.session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        return tuple(torch.from_numpy(output) for output in outputs)


@torch.no_grad()
def largest_difference(model: PreTrainedModel, onnx_model: OnnxModel, with_cache: bool) -> float:
    """Of the outputs from PyTorch's: a single position, a padded batch, and single positions that follow on them."""
    config, differences = model.config, []
    for batch_size, length, padding in ((1, 1, 0), (3, config.local_window_size + 3, 2)):
        inputs = make_inputs(config, batch_size, length, padding=padding)
        past = make_past(config, batch_size) if with_cache else {}
        expected = model(**inputs, use_cache=with_cache)
        outputs = onnx_model(inputs, past)
        is_real = inputs["attention_mask"].bool()
        for found, output in zip(outputs, main_outputs(expected), strict=not with_cache):  # then the cache
            difference = (found - output).abs()
            differences.append(difference[is_real] if difference.shape[:2] == is_real.shape else difference)
        present = outputs[1:]
        for past_length in range(length, length + 3 if with_cache else length):
            inputs = make_inputs(config, batch_size, 1, past_length, padding)
            expected = model(**inputs, **carried(expected), use_cache=True)
            logits, *present = onnx_model(inputs, dict(zip(past, present, strict=True)))
            differences.append((logits - main_outputs(expected)[0]).abs())
    return max(difference.max().item() for difference in differences)


@torch.no_grad()
def tokens_per_second(model: PreTrainedModel, onnx_model: OnnxModel, with_cache: bool, length: int) -> dict[str, dict]:
    """Of a sequence of so many positions and, with a cache, of single ones after it; both take turns in one run."""
    config = model.config
    prompt, new = make_inputs(config, 1, length), []
    for step in range(TOKENS_AFTER_PREFILL):
        new.append(make_inputs(config, 1, 1, length + step))
    past = make_past(config, 1) if with_cache else {}
    state = {}

    def pytorch_prefill():
        state["pytorch"] = carried(model(**prompt, use_cache=with_cache))

    def pytorch_tokens():
        for inputs in new:
            model(**inputs, **state["pytorch"], use_cache=True)

    def onnx_prefill():
        _, *state["onnxruntime"] = onnx_model(prompt, past)

    def onnx_tokens():
        for inputs in new:
            _, *state["onnxruntime"] = onnx_model(inputs, dict(zip(past, state["onnxruntime"], strict=True)))

    phases = {
        ("prefill", "pytorch"): Phase(pytorch_prefill, length),
        ("prefill", "onnxruntime"): Phase(onnx_prefill, length),
    }
    if with_cache:
        count = TOKENS_AFTER_PREFILL
        phases["token", "pytorch"] = Phase(pytorch_tokens, count, prepare=pytorch_prefill, calls=1)
        phases["token", "onnxruntime"] = Phase(onnx_tokens, count, prepare=onnx_prefill, calls=1)
    rates = {key: phases[key].tokens / time for key, time in time_interleaved(phases, rounds=7).items()}
    return {
        phase: {
            "pytorch": rates[phase, "pytorch"],
            "onnxruntime": rates[phase, "onnxruntime"],
            "ratio": rates[phase, "onnxruntime"] / rates[phase, "pytorch"],
        }
        for phase in dict.fromkeys(phase for phase, _ in phases)
    }
