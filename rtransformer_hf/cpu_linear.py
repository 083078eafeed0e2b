# SPDX-License-Identifier: Apache-2.0
"""Linear layers and attention on CPUs: the same results, laid out so that PyTorch computes them faster."""

import math
from collections.abc import Callable

import torch
from torch import nn


def is_plain_linear(module: nn.Module) -> bool:
    """True for an unmodified `nn.Linear`: no adapter, quantisation, hook, offloading or tensor parallelism."""
    return type(module) is nn.Linear and is_unmodified(module)


def is_unmodified(module: nn.Module) -> bool:
    """True if the module computes nothing beyond its own weights, in the sense of `is_plain_linear`."""
    if any(type(weight) not in (nn.Parameter, torch.Tensor, type(None)) for weight in module._parameters.values()):
        return False
    has_own_forward = "forward" in vars(module)  # set by Accelerate's offloading and Transformers' tensor parallelism
    return not (module._forward_hooks or module._forward_pre_hooks or has_own_forward)


MIN_DECODE_WEIGHT = 2**18  # elements; smaller matrices fit into the CPU cache, where rows are as fast
MAX_DECODE_ROWS = 8


def linear_for_decoding(linear: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    `linear(hidden_states)`, faster when a CPU decodes a few tokens. PyTorch multiplies one row by a matrix on a single
    core, and a few rows at a fraction of the rate of as many columns. So the rows become columns, and the matrix is
    split into one part per core.

    Generation with the whole model on 2 cores of an AMD EPYC (Zen 4), 27 November 2026, PyTorch 2.13.0, 3 blocks of
    width 512: 1.50, 1.34 and 1.21 times as fast as plain linear layers with 1, 2 and 4 sequences; without the minimum
    size, 0.85 at width 128.
    """
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or hidden_states.device.type != "cpu"
        or hidden_states.dtype != torch.float32  # other types use oneDNN, which is fast with rows
        or hidden_states.shape[:-1].numel() > MAX_DECODE_ROWS
        or torch.is_autocast_enabled("cpu")
        or not is_plain_linear(linear)
        or linear.weight.numel() < MIN_DECODE_WEIGHT
    ):
        return linear(hidden_states)
    num_parts = math.gcd(linear.out_features, torch.get_num_threads())
    parts = linear.weight.view(num_parts, -1, linear.in_features)
    columns = hidden_states.reshape(-1, linear.in_features).t().expand(num_parts, -1, -1)
    outputs = torch.bmm(parts, columns).flatten(0, 1).t()
    if linear.bias is not None:
        outputs = outputs + linear.bias
    return outputs.view(*hidden_states.shape[:-1], linear.out_features)


MAX_FP32_ATTENTION_LENGTH = 256  # beyond this, 16-bit attention saves memory and takes about as long


def is_faster_in_float32(query: torch.Tensor) -> bool:
    """Whether PyTorch's attention for `query` (batch, heads, time, head size) is faster by `attend_in_float32`."""
    return query.device.type == "cpu" and query.requires_grad and query.shape[2] <= MAX_FP32_ATTENTION_LENGTH


def attend_in_float32(attention_interface: Callable) -> Callable:
    """
    The same attention, computed in float32 or better. On CPUs, PyTorch's attention over short sequences is slower in
    16 bits.

    Forward and backward in bfloat16 take, for head sizes of 16, 32 and 64, 2.5, 2.6 and 1.9 times as long as this at
    80 positions, and 1.3, 1.1 and 0.9 times at 256 (same machine and day).
    """

    def attend(module: nn.Module, query, key, value, attention_mask: torch.Tensor | None, **kwargs):
        dtype, float_dtype = query.dtype, torch.promote_types(query.dtype, torch.float32)
        query, key, value = (x.to(float_dtype) for x in (query, key, value))
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask.to(float_dtype)
        with torch.autocast(query.device.type, enabled=False):
            attention_output, weights = attention_interface(module, query, key, value, attention_mask, **kwargs)
        return attention_output.to(dtype), weights

    return attend
