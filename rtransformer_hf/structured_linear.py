# SPDX-License-Identifier: Apache-2.0
"""
Linear layers whose weight has a structure: butterfly, Monarch and block-diagonal matrices in place of dense ones.

A butterfly block over n = 2^L elements is a product of L sparse factors that each mix pairs of elements (arXiv
1903.05895); blocks of increasing and decreasing stride alternate (arXiv 2012.14966). An entry of a product of
consecutive factors is a product of single entries, so a run of factors merges into small dense matrices by elementwise
multiplication. With the bits of an element's index split into a low and a high half, a butterfly of B blocks is a
chain of B + 1 block-diagonal matrices, which mix along the low half, the high half, the low half, and so on: a Monarch
matrix (arXiv 2204.00595) with more factors. All computations use that chain.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils.import_utils import is_tracing

from .configuration_rtransformer import RTransformerConfig
from .cpu_linear import is_unmodified, linear_for_decoding
from .local_rnn import num_gates, recurrent_linear

# ---- Butterfly ----


def merge_levels(levels: torch.Tensor) -> torch.Tensor:
    """
    Multiplies consecutive factors of increasing stride over `size` elements into one matrix for each of a batch.

    Args:
        levels: (log2 size, 2, 2, size / 2, batch), the 2 x 2 matrices of each factor as (to, from); their index is
            that of the pair, bits above the factor's own first. Batch comes last for long inner loops.

    Returns:
        (size, size, batch)
    """
    num_levels, _, _, num_pairs, batch = levels.shape
    merged = levels.new_ones(1, 1, 1, batch) if num_levels == 0 else levels[0]  # (to, from, bits above, batch)
    for level in range(1, num_levels):
        below, above = 2**level, num_pairs // 2**level
        # (to, to below, from, from below, bits above, batch)
        factor = levels[level].view(2, 2, above, below, batch).permute(0, 3, 1, 2, 4)[:, :, :, None]
        merged = merged.view(below, below, above, 2, batch).permute(0, 3, 1, 2, 4)
        merged = (factor * merged).reshape(2 * below, 2 * below, above, batch)
    return merged.flatten(2)


def butterfly_factors(twiddle: torch.Tensor) -> list[torch.Tensor]:
    """
    Merges the factors of a butterfly into a chain of block-diagonal ones, in the order in which they apply.

    Args:
        twiddle: (stacks, blocks, log2 n, n / 2, 2, 2), the 2 x 2 matrices of each factor, as published: factor i of a
            block has the stride 2^i, in every second block n / 2^(i + 1), and element a of each run of two strides is
            paired with element a + stride.

    Returns:
        `blocks + 1` tensors, (stacks, high, low, low) and (stacks, low, high, high) in turn, with high * low = n: the
        first mixes along the low half of an index's bits for each value of the high half, the second vice versa.
    """
    stacks, num_blocks, num_levels = twiddle.shape[:3]
    num_low = num_levels // 2
    low_size, high_size = 2**num_low, 2 ** (num_levels - num_low)
    # A transposed block of decreasing stride is one of increasing stride with transposed matrices, last factor first.
    increasing = twiddle[:, 0::2].permute(2, 4, 5, 3, 1, 0)
    decreasing = twiddle[:, 1::2].flip(2).permute(2, 5, 4, 3, 1, 0)
    levels = torch.cat([increasing, decreasing], dim=4)  # (levels, 2, 2, n / 2, blocks, stacks)
    low_levels = levels[:num_low].reshape(num_low, 2, 2, high_size, low_size // 2, num_blocks * stacks)
    low_levels = low_levels.transpose(3, 4).reshape(num_low, 2, 2, low_size // 2, high_size * num_blocks * stacks)
    high_levels = levels[num_low:].reshape(num_levels - num_low, 2, 2, high_size // 2, low_size * num_blocks * stacks)
    low = merge_levels(low_levels).view(low_size, low_size, high_size, num_blocks, stacks)
    high = merge_levels(high_levels).view(high_size, high_size, low_size, num_blocks, stacks)
    low, high = (half.permute(3, 4, 2, 0, 1).contiguous() for half in (low, high))

    chain: list[torch.Tensor] = []
    for block in range(num_blocks):
        if block % 2 == 0:
            first, last = low[block // 2], high[block // 2]
        else:
            transposed = (num_blocks + 1) // 2 + block // 2  # behind all of increasing stride
            first, last = high[transposed].mT, low[transposed].mT
        chain[-1:] = [first @ chain[-1] if chain else first, last]  # neighbours that mix along the same half merge
    return chain


def butterfly_matrix(factors: list[torch.Tensor]) -> torch.Tensor:
    """The matrix (stacks * n, n) of a chain of factors."""
    first, second, *others = factors
    stacks, high, low, _ = first.shape
    # An entry of the first two's product is one product: (stacks, high, low, high * low).
    matrix = (second.transpose(1, 2)[..., None] * first.transpose(1, 2)[:, None]).view(stacks, high, low, high * low)
    for index, factor in enumerate(others):
        matrix = factor @ matrix if index % 2 == 0 else (factor @ matrix.transpose(1, 2)).transpose(1, 2)
    return matrix.reshape(stacks * high * low, high * low)


def apply_butterfly(factors: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """(rows, n) -> (rows, stacks * n): two batched products for all stacks, then one a stack and further factor."""
    first, second, *others = factors
    stacks, high, low, _ = first.shape
    # Columns are inputs, so that the half to mix along can stand second in memory without a copy.
    columns = inputs.view(-1, high, low).permute(1, 2, 0)
    columns = torch.bmm(first.transpose(0, 1).reshape(high, stacks * low, low), columns)
    columns = torch.bmm(second.reshape(stacks * low, high, high), columns.transpose(0, 1))  # (.., high, rows)
    outputs = []
    for stack, part in enumerate(columns.unflatten(0, (stacks, low))):
        for factor in others:
            part = torch.bmm(factor[stack], part.transpose(0, 1))
        outputs.append(part.permute(2, 0, 1) if len(others) % 2 == 1 else part.permute(2, 1, 0))  # (rows, high, low)
    return torch.cat(outputs, dim=1).flatten(1)


def orthogonal_twiddle(shape: tuple[int, ...], **kwargs) -> torch.Tensor:
    """Each 2 x 2 matrix a rotation by a uniform angle or, with equal chance, that with its first row negated."""
    angles = 2 * math.pi * torch.rand(shape[:-2], **kwargs)
    sign = 1 - 2 * torch.randint(2, shape[:-2], **kwargs)
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([sign * cosine, -sign * sine, sine, cosine], dim=-1).view(shape)


class StructuredLinear(nn.Module):
    """What the structured layers share: sizes, and forms of the weight that are kept in evaluation."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def kept(self, name: str, compute: Callable, *weights: nn.Parameter):
        """
        `compute(*weights)`. Without gradients and outside of training the result is kept until a weight changes. A
        change through `weight.data` in place is noticed from the next call in training mode on.
        """
        if is_tracing(weights[0]):
            return compute(*weights)
        is_counted = all(
            type(weight) in (nn.Parameter, torch.Tensor) and not weight.is_inference() for weight in weights
        )
        # FSDP gathers weights anew without counting that as a change.
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.training or torch.is_grad_enabled() or is_distributed or not is_counted:
            vars(self).pop("_kept", None)
            return compute(*weights)
        kept = vars(self).setdefault("_kept", {})
        version = [(weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights]
        if kept.get(name, (None, None))[0] != version:
            kept[name] = (version, compute(*weights))
        return kept[name][1]

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


MIN_CHAIN_SIZE = 256  # columns; a smaller matrix is formed faster than its chain of factors is applied


class RTransformerButterflyLinear(StructuredLinear):
    """
    A linear layer whose weight is a butterfly matrix, as in sfox14/butterfly-r-transformer: inputs are padded with
    zeros to n, the next power of two; the outputs of ceil(out_features / n) butterflies stand one after another and
    are cut to `out_features`.

    From MIN_CHAIN_SIZE columns on the chain of factors is applied to the inputs; a smaller matrix is formed first.

    Args:
        in_features, out_features: at least 2, at least 1.
        bias: whether there is one.
        num_blocks: number of blocks, of increasing and decreasing stride in turn.

    Raises:
        ValueError: a size is out of its range.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, num_blocks: int = 2):
        if in_features < 2 or out_features < 1 or num_blocks < 1:
            raise ValueError(
                "`in_features` must be at least 2, `out_features` and `num_blocks` at least 1, got "
                f"`in_features={in_features}`, `out_features={out_features}` and `num_blocks={num_blocks}`."
            )
        super().__init__(in_features, out_features)
        self.num_blocks = num_blocks
        num_levels = (in_features - 1).bit_length()
        self.size = 2**num_levels
        stacks = math.ceil(out_features / self.size)
        self.twiddle = nn.Parameter(torch.empty(stacks, num_blocks, num_levels, self.size // 2, 2, 2))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Orthogonal factors; the bias as in `nn.Linear`."""
        twiddle = orthogonal_twiddle(tuple(self.twiddle.shape), dtype=torch.float32, device=self.twiddle.device)
        init.copy_(self.twiddle, twiddle.to(self.twiddle.dtype))
        if self.bias is not None:
            init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.size < MIN_CHAIN_SIZE:
            return F.linear(hidden_states, self.dense_weight(), self.bias)
        factors = self.kept("factors", self.compute_factors, self.twiddle)
        rows = F.pad(hidden_states.reshape(-1, self.in_features), (0, self.size - self.in_features))
        outputs = apply_butterfly(factors, rows)[:, : self.out_features]
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.view(*hidden_states.shape[:-1], self.out_features)

    def dense_weight(self) -> torch.Tensor:
        """(out_features, in_features), differentiable."""
        return self.kept("matrix", self.compute_matrix, self.twiddle)

    @staticmethod
    def compute_factors(twiddle: torch.Tensor) -> list[torch.Tensor]:
        # Products of up to log2 n entries, in float32 or better.
        factors = butterfly_factors(twiddle.to(torch.promote_types(twiddle.dtype, torch.float32)))
        return [factor.to(twiddle.dtype) for factor in factors]

    def compute_matrix(self, twiddle: torch.Tensor) -> torch.Tensor:
        factors = butterfly_factors(twiddle.to(torch.promote_types(twiddle.dtype, torch.float32)))
        return butterfly_matrix(factors)[: self.out_features, : self.in_features].to(twiddle.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_blocks={self.num_blocks}"


# ---- Monarch ----


class RTransformerMonarchLinear(StructuredLinear):
    """
    A linear layer whose weight is a Monarch matrix (arXiv 2204.00595): two block-diagonal factors with a permutation
    between them. Seen as a grid of `num_blocks` x `num_blocks` blocks, each block of its matrix is any matrix of rank
    `rank`. (The paper's own order of the outputs is a fixed permutation of this one.)

    Args:
        in_features, out_features: at least 1; padded to multiples of `num_blocks`.
        bias: whether there is one.
        num_blocks: blocks of each factor. The layer has about 2 / num_blocks of the multiplications of a dense square
            one, and no fewer weights than multiplications.

    Raises:
        ValueError: a size is out of its range.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, num_blocks: int = 4):
        if min(in_features, out_features, num_blocks) < 1:
            raise ValueError(
                "`in_features`, `out_features` and `num_blocks` must be at least 1, got "
                f"`in_features={in_features}`, `out_features={out_features}` and `num_blocks={num_blocks}`."
            )
        super().__init__(in_features, out_features)
        self.num_blocks = num_blocks
        in_size, out_size = math.ceil(in_features / num_blocks), math.ceil(out_features / num_blocks)
        self.rank = math.ceil(min(in_size, out_size) / num_blocks)
        self.right = nn.Parameter(torch.empty(num_blocks, num_blocks * self.rank, in_size))
        self.left = nn.Parameter(torch.empty(num_blocks, out_size, num_blocks * self.rank))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float | None = None):
        """The matrix's entries have the variance of `nn.Linear`'s, or the standard deviation `std` and no bias."""
        bound = 1 / math.sqrt(self.in_features)
        right_std = (bound / math.sqrt(3) if std is None else std) * math.sqrt(self.num_blocks)
        left_std = 1 / math.sqrt(self.left.shape[-1])
        for weight, weight_std in ((self.right, right_std), (self.left, left_std)):
            init.uniform_(weight, -math.sqrt(3) * weight_std, math.sqrt(3) * weight_std)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound) if std is None else init.zeros_(self.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        num_blocks, _, in_size = self.right.shape
        rows = F.pad(hidden_states.reshape(-1, self.in_features), (0, num_blocks * in_size - self.in_features))
        hidden = torch.bmm(rows.view(-1, num_blocks, in_size).transpose(0, 1), self.right.mT)
        # (input blocks, rows, output blocks, rank) -> (output blocks, rows, input blocks * rank)
        hidden = hidden.unflatten(2, (num_blocks, self.rank)).permute(2, 1, 0, 3).flatten(2)
        outputs = torch.bmm(hidden, self.left.mT).transpose(0, 1).flatten(1)[:, : self.out_features]
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.view(*hidden_states.shape[:-1], self.out_features)

    def dense_weight(self) -> torch.Tensor:
        """(out_features, in_features), differentiable."""
        return self.kept("matrix", self.compute_matrix, self.left, self.right)

    def compute_matrix(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        num_blocks, out_size, _ = left.shape
        left = left.view(num_blocks, out_size, num_blocks, self.rank).transpose(1, 2)  # (out, in, out_size, rank)
        right = right.view(num_blocks, num_blocks, self.rank, -1).transpose(0, 1)  # (out, in, rank, in_size)
        matrix = (left @ right).transpose(1, 2).reshape(num_blocks * out_size, -1)
        return matrix[: self.out_features, : self.in_features]

    @classmethod
    @torch.no_grad()
    def from_dense(cls, linear: nn.Linear, num_blocks: int = 4) -> "RTransformerMonarchLinear":
        """
        The Monarch layer nearest to a dense one: each block of the weight is cut to its largest singular values, which
        is the closed form of the paper (section 3.2).
        """
        weight = linear.weight
        monarch = cls(linear.in_features, linear.out_features, linear.bias is not None, num_blocks).to(weight.device)
        in_size, out_size, rank = monarch.right.shape[2], monarch.left.shape[1], monarch.rank
        padding = (0, num_blocks * in_size - linear.in_features, 0, num_blocks * out_size - linear.out_features)
        float_dtype = torch.promote_types(weight.dtype, torch.float32)
        blocks = F.pad(weight.to(float_dtype), padding).view(num_blocks, out_size, num_blocks, in_size)
        left, values, right = torch.linalg.svd(blocks.transpose(1, 2), full_matrices=False)
        scales = values[..., :rank].sqrt()
        left, right = left[..., :rank] * scales[..., None, :], scales[..., None] * right[..., :rank, :]
        monarch.left.data = left.transpose(1, 2).reshape(monarch.left.shape).to(weight.dtype)
        monarch.right.data = right.transpose(0, 1).reshape(monarch.right.shape).to(weight.dtype)
        if linear.bias is not None:
            monarch.bias.data = linear.bias.detach().clone()
        return monarch.train(linear.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_blocks={self.num_blocks}, rank={self.rank}"


# ---- Block-diagonal recurrence ----


class RTransformerBlockDiagonalLinear(nn.Module):
    """
    The recurrent projection of a LocalRNN with heads: the units of a head see the state of their own head alone
    (sLSTM, arXiv 2405.04517, section 2.2).

    Args:
        hidden_size: size of the state.
        num_gates: gates of the cell; the output is (gates * hidden_size), gate by gate.
        num_heads: divides `hidden_size`.
        bias: whether there is one.
    """

    def __init__(self, hidden_size: int, num_gates: int, num_heads: int, bias: bool = True):
        super().__init__()
        head_size = hidden_size // num_heads
        self.weight = nn.Parameter(torch.empty(num_heads, num_gates * head_size, head_size))
        self.bias = nn.Parameter(torch.empty(num_gates * hidden_size)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float | None = None):
        """As in PyTorch's cells, with the inputs that a unit has; or the standard deviation `std` and no bias."""
        num_heads, _, head_size = self.weight.shape
        bound = 1 / math.sqrt(head_size)
        if std is None:
            init.uniform_(self.weight, -bound, bound)
        else:
            init.normal_(self.weight, std=std)
        if self.bias is not None:
            bound = 1 / math.sqrt(num_heads * head_size)
            init.uniform_(self.bias, -bound, bound) if std is None else init.zeros_(self.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return recurrent_linear(hidden_states, self.weight, self.bias)

    def extra_repr(self) -> str:
        num_heads, gates_size, head_size = self.weight.shape
        return f"num_heads={num_heads}, gates_size={gates_size}, head_size={head_size}, bias={self.bias is not None}"


STRUCTURED_LINEARS = (RTransformerButterflyLinear, RTransformerMonarchLinear, RTransformerBlockDiagonalLinear)


# ---- The choice of a kind ----


def make_linear(
    config: RTransformerConfig, in_features: int, out_features: int, bias: bool, projection_type: str | None = None
) -> nn.Module:
    """A linear layer of the given kind; None: `config.projection_type`."""
    match config.projection_type if projection_type is None else projection_type:
        case "butterfly":
            return RTransformerButterflyLinear(in_features, out_features, bias, config.num_butterfly_blocks)
        case "monarch":
            return RTransformerMonarchLinear(in_features, out_features, bias, config.num_monarch_blocks)
    return nn.Linear(in_features, out_features, bias)


class LocalRNNProjections(nn.Module):
    """
    The weights of a LocalRNN: `input_proj` and `recurrent_proj`, or for butterflies `gates_proj`, a joint projection
    of [input, state].
    """

    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.cell_type = config.local_rnn_type
        self.hidden_size, bias = config.hidden_size, config.local_rnn_bias
        gates_size = num_gates(self.cell_type) * self.hidden_size
        make = partial(make_linear, config, bias=bias, projection_type=config.local_rnn_projection_type)
        self.is_joint = config.local_rnn_projection_type == "butterfly"
        if self.is_joint:
            self.gates_proj = make(2 * self.hidden_size, gates_size)
            return
        self.input_proj = make(self.hidden_size, gates_size)
        if config.local_rnn_num_heads > 1:
            self.recurrent_proj = RTransformerBlockDiagonalLinear(
                self.hidden_size, num_gates(self.cell_type), config.local_rnn_num_heads, bias
            )
        else:
            self.recurrent_proj = make(self.hidden_size, gates_size)

    def weights(self) -> dict[str, torch.Tensor | None] | None:
        """The operator's weights and biases; None if a module computes something else, see `is_unmodified`."""
        modules = [self.gates_proj] if self.is_joint else [self.input_proj, self.recurrent_proj]
        has_weights = all(type(module) in (nn.Linear, *STRUCTURED_LINEARS) for module in modules)
        if not has_weights or not all(is_unmodified(module) for module in modules):
            return None
        weights = [module.dense_weight() if hasattr(module, "dense_weight") else module.weight for module in modules]
        biases = [module.bias for module in modules]
        if self.is_joint:
            # W [x; h] = W[:, :d] x + W[:, d:] h
            weights = self.in_order_of_cell(weights[0]).split(self.hidden_size, dim=1)
            biases = [None if biases[0] is None else self.in_order_of_cell(biases[0]), None]
        names = ("input_weight", "recurrent_weight", "input_bias", "recurrent_bias")
        return dict(zip(names, (*weights, *biases), strict=True))

    def in_order_of_cell(self, gates: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Reorders a joint LSTM projection, which has the published order: input, forget, output, candidate."""
        if self.cell_type != "lstm":
            return gates
        input_gate, forget_gate, output_gate, candidate = gates.chunk(4, dim)
        return torch.cat([input_gate, forget_gate, candidate, output_gate], dim)

    def projections(self) -> dict[str, Callable]:
        """The operator's `input_proj` and `recurrent_proj` as callables, which call the modules."""
        if not self.is_joint:
            return {
                "input_proj": partial(linear_for_decoding, self.input_proj),
                "recurrent_proj": partial(linear_for_decoding, self.recurrent_proj),
            }

        def project(hidden_states: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
            return self.in_order_of_cell(self.gates_proj(F.pad(hidden_states, padding)), dim=-1)

        def project_state(state: torch.Tensor) -> torch.Tensor:
            gates = project(state, (self.hidden_size, 0))
            bias = self.gates_proj.bias  # only added once, with the input
            return gates if bias is None else gates - self.in_order_of_cell(bias)

        return {"input_proj": partial(project, padding=(0, self.hidden_size)), "recurrent_proj": project_state}
