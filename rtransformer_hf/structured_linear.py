# SPDX-License-Identifier: Apache-2.0
"""
Linear layers with structured weights: butterfly, Monarch and block-diagonal matrices instead of dense ones.

A butterfly block over n = 2^L elements is a product of L sparse factors, each of which mixes pairs of elements (arXiv
1903.05895). Blocks of increasing and decreasing stride alternate (arXiv 2012.14966). Each entry of a product of
consecutive factors is a product of single entries, so a run of factors merges into small dense matrices by elementwise
multiplication. If the bits of an element's index are split into a low and a high half, a butterfly of B blocks becomes
a chain of B + 1 block-diagonal matrices, which mix along the low half, the high half, the low half, and so on: a
Monarch matrix (arXiv 2204.00595) with more factors. All computations use this chain.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.import_utils import is_tracing

from .configuration_rtransformer import RTransformerConfig
from .cpu_linear import is_plain_linear, is_unmodified, linear_for_decoding
from .local_rnn import num_gates, recurrent_linear

# ---- Butterfly ----


def merge_levels(levels: torch.Tensor) -> torch.Tensor:
    """
    Multiplies consecutive factors of increasing stride over `size` elements into one matrix per batch entry.

    Args:
        levels: (log2 size, 2, 2, size / 2, batch), the 2 x 2 matrices of each factor as (to, from), indexed by pair
            with the bits above the factor's own first. Batch comes last so that inner loops are long.

    Returns:
        (size, size, batch)
    """
    num_levels, _, _, num_pairs, batch = levels.shape
    if num_levels == 0:
        return levels.new_ones(1, 1, batch)
    merged, *factors = levels.unbind()  # (to, from, bits above, batch)
    for level, factor in enumerate(factors, start=1):
        below, above = 2**level, num_pairs // 2**level
        # (to, to below, from, from below, bits above, batch)
        factor = factor.view(2, 2, above, below, batch).permute(0, 3, 1, 2, 4)[:, :, :, None]
        merged = merged.view(below, below, above, 2, batch).permute(0, 3, 1, 2, 4)
        merged = (factor * merged).reshape(2 * below, 2 * below, above, batch)
    return merged.flatten(2)


def butterfly_factors(twiddle: torch.Tensor) -> list[torch.Tensor]:
    """
    Merges the factors of a butterfly into a chain of block-diagonal matrices, in order of application.

    Args:
        twiddle: (stacks, blocks, log2 n, n / 2, 2, 2), the 2 x 2 matrices of each factor, as published. Factor i has
            stride 2^i, or n / 2^(i + 1) in every second block, and pairs element a with element a + stride.

    Returns:
        `blocks + 1` tensors, alternately (stacks, high, low, low) and (stacks, low, high, high), with high * low = n.
        The first kind mixes along the low half of the index bits for each value of the high half; the second, vice
        versa.
    """
    stacks, num_blocks, num_levels = twiddle.shape[:3]
    num_low = num_levels // 2
    low_size, high_size = 2**num_low, 2 ** (num_levels - num_low)
    # A block of decreasing stride, transposed, has increasing stride, with transposed matrices in reverse order.
    blocks = twiddle.unbind(1)  # not indexed: the gradient of a part is a copy into zeros of the whole
    increasing = [block.permute(1, 3, 4, 2, 0) for block in blocks[0::2]]
    decreasing = [block.flip(1).permute(1, 4, 3, 2, 0) for block in blocks[1::2]]
    levels = torch.stack(increasing + decreasing, dim=4)  # (levels, 2, 2, n / 2, blocks, stacks)
    low_levels, high_levels = levels.split([num_low, num_levels - num_low])
    low_levels = low_levels.reshape(num_low, 2, 2, high_size, low_size // 2, num_blocks * stacks)
    low_levels = low_levels.transpose(3, 4).reshape(num_low, 2, 2, low_size // 2, high_size * num_blocks * stacks)
    high_levels = high_levels.reshape(num_levels - num_low, 2, 2, high_size // 2, low_size * num_blocks * stacks)
    low = merge_levels(low_levels).view(low_size, low_size, high_size, num_blocks, stacks)
    high = merge_levels(high_levels).view(high_size, high_size, low_size, num_blocks, stacks)
    low, high = (half.permute(3, 4, 2, 0, 1).contiguous().unbind() for half in (low, high))

    chain: list[torch.Tensor] = []
    for block in range(num_blocks):
        if block % 2 == 0:
            first, last = low[block // 2], high[block // 2]
        else:
            transposed = (num_blocks + 1) // 2 + block // 2  # after all blocks of increasing stride
            first, last = high[transposed].mT, low[transposed].mT
        chain[-1:] = [first @ chain[-1] if chain else first, last]  # neighbours along the same half merge
    return chain


def butterfly_matrix(factors: list[torch.Tensor]) -> torch.Tensor:
    """The matrix (stacks * n, n) of a chain."""
    first, second, *others = factors
    stacks, high, low, _ = first.shape
    # Each entry of the product of the first two is a single product: (stacks, high, low, high * low).
    matrix = (second.transpose(1, 2)[..., None] * first.transpose(1, 2)[:, None]).view(stacks, high, low, high * low)
    for index, factor in enumerate(others):
        matrix = factor @ matrix if index % 2 == 0 else (factor @ matrix.transpose(1, 2)).transpose(1, 2)
    return matrix.reshape(stacks * high * low, high * low)


def apply_butterfly(factors: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """(rows, n) -> (rows, stacks * n): two batched products for all stacks, then one per stack and further factor."""
    first, second, *others = factors
    stacks, high, low, _ = first.shape
    # Inputs are columns, so that the half to mix along is the second dimension without a copy.
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
    """2 x 2 rotations by uniform angles, half of them with the first row negated."""
    angles = 2 * math.pi * torch.rand(shape[:-2], **kwargs)
    sign = 1 - 2 * torch.randint(2, shape[:-2], **kwargs)
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([sign * cosine, -sign * sine, sine, cosine], dim=-1).view(shape)


def version_of(weights: tuple[torch.Tensor, ...]) -> list[tuple] | None:
    """Differs once a weight has changed. None for weights that do not count their changes."""
    if any(type(weight) not in (nn.Parameter, torch.Tensor) or weight.is_inference() for weight in weights):
        return None
    try:
        return [(weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights]
    except RuntimeError:  # the tensors of torch.func have no memory of their own
        return None


class StructuredLinear(nn.Module):
    """Base class of the structured layers: their sizes, and a cache of derived weights for inference."""

    applies_matrix = False  # whether `forward` forms the dense matrix

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def kept(self, name: str, compute: Callable, *weights: nn.Parameter):
        """
        `compute(*weights)`, without autocast and cached in inference until a weight changes. In-place changes of
        `weight.data` are not noticed until the next call of `train` or `eval`, or with gradients.
        """
        device_type = weights[0].device.type
        if torch.is_autocast_enabled(device_type):  # the result is a weight, which outlives the context
            with torch.autocast(device_type, enabled=False):
                return self.kept(name, compute, *weights)
        if is_tracing(weights[0]):
            return compute(*weights)
        # FSDP gathers weights without changing their version.
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        # Nor is anything kept of a layer that Accelerate loads for its forward pass alone.
        version = version_of(weights) if is_unmodified(self) and not is_distributed else None
        if self.training or torch.is_grad_enabled() or version is None:
            vars(self).pop("_kept", None)
            return compute(*weights)
        kept = vars(self).setdefault("_kept", {})
        if name not in kept or kept[name][0] != version:
            # The weights' memory is held, so that no others can come to have its address.
            kept[name] = (version, compute(*weights), [weight.detach() for weight in weights])
        return kept[name][1]

    def train(self, mode: bool = True) -> "StructuredLinear":
        vars(self).pop("_kept", None)
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


MIN_CHAIN_SIZE = 256  # padded columns; below this, forming the dense matrix is faster than applying the chain


class RTransformerButterflyLinear(StructuredLinear):
    """
    A linear layer whose weight is a butterfly matrix, as in sfox14/butterfly-r-transformer: inputs are zero-padded to
    n, the next power of two. The outputs of ceil(out_features / n) butterflies are concatenated and cut to
    `out_features`.

    From n = MIN_CHAIN_SIZE on, the chain of factors is applied to the inputs. Smaller layers form the matrix.

    Args:
        in_features: at least 2.
        out_features: at least 1.
        bias: whether to add a bias.
        num_blocks: number of blocks, alternating between increasing and decreasing stride.

    Raises:
        ValueError: a size is out of range.
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
        """Orthogonal factors, and the bias of `nn.Linear`."""
        twiddle = orthogonal_twiddle(tuple(self.twiddle.shape), dtype=torch.float32, device=self.twiddle.device)
        init.copy_(self.twiddle, twiddle.to(self.twiddle.dtype))
        if self.bias is not None:
            init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    @property
    def applies_matrix(self) -> bool:
        return self.size < MIN_CHAIN_SIZE

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.applies_matrix:
            return F.linear(hidden_states, self.dense_weight(), self.bias)
        factors = self.kept("factors", self.compute_factors, self.twiddle)
        rows = F.pad(hidden_states.reshape(-1, self.in_features), (0, self.size - self.in_features))
        outputs = apply_butterfly(factors, rows)[:, : self.out_features]
        if self.bias is not None:
            outputs = outputs + self.bias.to(outputs.dtype)
        return outputs.view(*hidden_states.shape[:-1], self.out_features)

    def dense_weight(self) -> torch.Tensor:
        """(out_features, in_features), differentiable."""
        return self.kept("matrix", self.compute_matrix, self.twiddle)

    @staticmethod
    def compute_factors(twiddle: torch.Tensor) -> list[torch.Tensor]:
        # In float32 or better: an entry is a product of up to log2 n numbers.
        factors = butterfly_factors(twiddle.to(torch.promote_types(twiddle.dtype, torch.float32)))
        return [factor.to(twiddle.dtype) for factor in factors]

    def compute_matrix(self, twiddle: torch.Tensor) -> torch.Tensor:
        factors = butterfly_factors(twiddle.to(torch.promote_types(twiddle.dtype, torch.float32)))
        matrix = butterfly_matrix(factors).to(twiddle.dtype)
        size = (self.out_features, self.in_features)
        return matrix if matrix.shape == size else matrix[: self.out_features, : self.in_features]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_blocks={self.num_blocks}"


# ---- Monarch ----


class RTransformerMonarchLinear(StructuredLinear):
    """
    A linear layer whose weight is a Monarch matrix (arXiv 2204.00595): two block-diagonal factors with a permutation
    in between. In a grid of `num_blocks` x `num_blocks` blocks, each block of the matrix has rank `rank` and is
    otherwise arbitrary. (The paper orders the outputs differently, by a fixed permutation.)

    Args:
        in_features, out_features: at least 1; padded to multiples of `num_blocks`.
        bias: whether to add a bias.
        num_blocks: number of blocks in each factor. A square layer has about 2 / num_blocks of the weights and
            multiplications of a dense one.

    Raises:
        ValueError: a size is out of range.
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
        """Entries of the matrix have the variance of `nn.Linear`, or standard deviation `std` and zero bias."""
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
            outputs = outputs + self.bias.to(outputs.dtype)
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
        The nearest Monarch layer to a dense one, in closed form (the projection of the paper): each block of the
        weight keeps its largest singular values.

        Raises:
            ValueError: the layer is not an unmodified `nn.Linear`, or its weight is not finite.
        """
        if not is_plain_linear(linear):
            raise ValueError(f"`linear` must be an unmodified nn.Linear, got {linear}.")
        weight = linear.weight
        if not weight.isfinite().all():
            raise ValueError("`linear.weight` must be finite, got NaN or infinity in it.")
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
    The recurrent projection of a LocalRNN with heads: each head sees only its own state (sLSTM, arXiv 2405.04517,
    section 2.2).

    Args:
        hidden_size: size of the state.
        num_gates: number of gates of the cell. The output, num_gates * hidden_size wide, is gate by gate.
        num_heads: must divide `hidden_size`.
        bias: whether to add a bias.

    Raises:
        ValueError: `num_heads` does not divide `hidden_size`.
    """

    def __init__(self, hidden_size: int, num_gates: int, num_heads: int, bias: bool = True):
        if num_heads < 1 or hidden_size % num_heads != 0:
            raise ValueError(f"`num_heads` must divide `hidden_size`, {hidden_size} here, got {num_heads}.")
        super().__init__()
        head_size = hidden_size // num_heads
        self.weight = nn.Parameter(torch.empty(num_heads, num_gates * head_size, head_size))
        self.bias = nn.Parameter(torch.empty(num_gates * hidden_size)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float | None = None):
        """As in PyTorch's RNN cells, for head_size inputs; or standard deviation `std` and zero bias."""
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
            if self.gates_proj.bias is None:
                return gates
            # The bias is only added once, with the input. A modified layer may have another, or have it on disk.
            if is_unmodified(self.gates_proj):
                return gates - self.in_order_of_cell(self.gates_proj.bias).to(gates.dtype)
            return gates - project(torch.zeros_like(state[:1, :1]), (self.hidden_size, 0))

        return {"input_proj": partial(project, padding=(0, self.hidden_size)), "recurrent_proj": project_state}


class CompressionMixin:
    """Adds `from_dense` to the models."""

    @classmethod
    def from_dense(
        cls, model: PreTrainedModel, num_monarch_blocks: int = 4, include_local_rnn: bool = False
    ) -> PreTrainedModel:
        """
        Replaces the dense matrices of a trained model by the nearest Monarch matrices, to be fine-tuned.

        Args:
            model: a model of this class with dense, unmodified projections.
            num_monarch_blocks: as in [`RTransformerConfig`].
            include_local_rnn: whether to compress the LocalRNN's projections, too. It saves weights but no time, since
                the operator needs the dense matrices.

        Returns:
            The compressed model; `model` is unchanged.

        Raises:
            ValueError: `model` is of another class, has other projections or weights that are not finite, or
                `num_monarch_blocks` is out of range.
        """
        if type(model) is not cls:
            raise ValueError(f"`model` must be an {cls.__name__}, got an instance of {type(model).__name__}.")
        config = copy.deepcopy(model.config)
        kinds = {"projection_type": config.projection_type}
        if include_local_rnn:
            kinds["local_rnn_projection_type"] = config.local_rnn_projection_type
        for name, kind in kinds.items():
            if kind != "dense":
                raise ValueError(f"`model.config.{name}` must be 'dense', got {kind!r}.")
            setattr(config, name, "monarch")
        config.num_monarch_blocks = num_monarch_blocks
        compressed = cls(config).to(model.device, model.dtype)
        state_dict = model.state_dict()
        for name, module in compressed.named_modules():
            if isinstance(module, RTransformerMonarchLinear):
                try:
                    monarch = RTransformerMonarchLinear.from_dense(model.get_submodule(name), num_monarch_blocks)
                except ValueError as error:
                    raise ValueError(f"`{name}` of the model can't be compressed: {error}") from error
                del state_dict[f"{name}.weight"]
                state_dict.update((f"{name}.{key}", weight) for key, weight in monarch.state_dict().items())
        compressed.load_state_dict(state_dict)
        if model.can_generate():
            compressed.generation_config = copy.deepcopy(model.generation_config)
        return compressed.train(model.training)
