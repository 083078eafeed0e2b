# SPDX-License-Identifier: Apache-2.0
"""
The output side of the time series model: normalisation of each series, the distribution of the next value, and
forecasts sampled step by step.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Distribution
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, SampleTSPredictionOutput
from transformers.time_series_utils import AffineTransformed, NormalOutput, StudentTOutput

from .configuration_rtransformer import RTransformerConfig
from .masking_rtransformer import can_read, is_any, real_positions

DISTRIBUTIONS = {"student_t": StudentTOutput, "normal": NormalOutput}


@dataclass
class RTransformerTimeSeriesOutput(BaseModelOutputWithPast):
    """
    Args:
        loss: with `future_values`, the mean loss of their observed values, after normalisation.
        params: parameters of the normalised next value's distribution: tensors (batch, time, channels), or for
            quantiles one tensor (batch, time, channels, quantiles). Those at t are for the value at t + 1.
        loc, scale: (batch, 1, channels). Values are normalised as (values - loc) / scale.
    """

    loss: torch.Tensor | None = None
    params: tuple[torch.Tensor, ...] | None = None
    loc: torch.Tensor | None = None
    scale: torch.Tensor | None = None


class QuantileDistribution(Distribution):
    """
    A distribution with the given quantiles. Between them and beyond the outermost two, it is a linear function of a
    standard normal variable, so a normal distribution is represented exactly.

    Args:
        quantiles: (..., quantiles), ascending.
        levels: (quantiles,), ascending, between 0 and 1.
    """

    arg_constraints = {}

    def __init__(self, quantiles: torch.Tensor, levels: torch.Tensor):
        super().__init__(batch_shape=quantiles.shape[:-1], validate_args=False)
        self.quantiles, self.levels = quantiles, levels

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        """Inverse of the cumulative distribution function: (...) probabilities -> (...) values."""
        normal, nodes = torch.special.ndtri(value), torch.special.ndtri(self.levels)
        normal = normal.expand(torch.broadcast_shapes(normal.shape, self.batch_shape)).contiguous()
        upper = torch.searchsorted(nodes, normal).clamp(1, len(nodes) - 1)
        quantiles = self.quantiles.expand(*normal.shape, len(nodes))
        low, high = (quantiles.gather(-1, index[..., None])[..., 0] for index in (upper - 1, upper))
        return low + (high - low) * (normal - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1])

    def sample(self, sample_shape: tuple[int, ...] = ()) -> torch.Tensor:
        shape = torch.Size((*sample_shape, *self.batch_shape))
        tiny = torch.finfo(torch.float32).eps
        levels = torch.rand(shape, device=self.quantiles.device).clamp(tiny, 1 - tiny)
        return self.icdf(levels.to(self.quantiles.dtype))


class RTransformerTimeSeriesHead(nn.Module):
    """Hidden states -> parameters of each channel's next value, of the kind `config.distribution_output`."""

    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.num_targets = config.num_target_channels
        self.output = DISTRIBUTIONS.get(config.distribution_output)
        self.levels = config.quantile_levels
        num_params = len(self.levels) if self.output is None else len(self.output.args_dim)
        self.proj = nn.Linear(config.hidden_size, self.num_targets * num_params)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, time, hidden_size) -> `RTransformerTimeSeriesOutput.params`, in float32."""
        raw = self.proj(hidden_states).float().unflatten(-1, (self.num_targets, -1))
        if self.output is not None:
            return self.output.domain_map(*raw.split(1, dim=-1))
        steps = F.softplus(raw[..., 1:])  # positive, so quantiles cannot cross
        return (torch.cat([raw[..., :1], raw[..., :1] + steps.cumsum(dim=-1)], dim=-1),)

    def losses(self, params: tuple[torch.Tensor, ...], values: torch.Tensor) -> torch.Tensor:
        """
        Loss of (batch, time, channels) normalised values: negative log-likelihood in nats, or for quantiles twice the
        pinball loss, averaged over levels. At level 0.5 that is the absolute error.
        """
        if self.output is not None:
            return -self.output().distribution(params).log_prob(values)
        error = values[..., None] - params[0]
        levels = torch.tensor(self.levels, device=error.device)
        return 2 * torch.maximum(levels * error, (levels - 1) * error).mean(dim=-1)

    def distribution(
        self, params: tuple[torch.Tensor, ...], loc: torch.Tensor, scale: torch.Tensor
    ) -> AffineTransformed | QuantileDistribution:
        """The distribution of (batch, time, channels) values, in the units of the data."""
        if self.output is not None:
            return self.output().distribution(params, loc=loc, scale=scale)
        quantiles = params[0] * scale[..., None] + loc[..., None]
        return QuantileDistribution(quantiles, torch.tensor(self.levels, dtype=quantiles.dtype, device=loc.device))


def instance_scale(values: torch.Tensor, observed: torch.Tensor, scaling: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `loc` and `scale` of each channel of each series, computed from its observed values.

    Args:
        values: (batch, time, channels); values that are not observed are ignored.
        observed: (batch, time, channels), True where a value is observed.
        scaling: "std": mean and standard deviation; "mean": 0 and the mean absolute value; "none": 0 and 1.

    Returns:
        loc and scale, (batch, 1, channels). The scale of a series is its absolute value, or 1 if that is 0, where it
        is constant, or varies by less than numbers of its size and type are apart.
    """
    if scaling == "none":
        return torch.zeros_like(values[:, :1]), torch.ones_like(values[:, :1])
    count = observed.sum(dim=1, keepdim=True).clamp(min=1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.where(observed, values, 0).sum(dim=1, keepdim=True) / count

    size = mean(values.abs())
    if scaling == "mean":
        loc, scale = torch.zeros_like(size), size
    else:
        # Differences from one of the values are exact where the level is large, and 0 where a series is constant.
        first = torch.where(observed, values, 0).gather(1, observed.int().argmax(dim=1, keepdim=True))
        mean_difference = mean(values - first)
        loc, scale = first + mean_difference, mean((values - first - mean_difference) ** 2).sqrt()
    has_spread = scale > torch.finfo(values.dtype).eps * size
    return loc, torch.where(has_spread, scale, torch.where(size > 0, size, 1))


def mean_squared_error(
    predictions: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    The mean over all labels that are neither NaN nor padded.

    Args:
        predictions: (batch, time, num_labels).
        labels: the same shape, or (batch, time) for one label.
        num_items_in_batch: number of labels in the whole batch, if this is only a part of it.

    Raises:
        ValueError: the labels have another shape.
    """
    labels = labels.to(predictions.device, torch.float32)
    if labels.ndim == 2 and predictions.shape[-1] == 1:
        labels = labels[..., None]
    if labels.shape != predictions.shape:
        raise ValueError(
            f"`labels` must have the shape {tuple(predictions.shape)} of the predictions, got {tuple(labels.shape)}."
        )
    counts = ~labels.isnan()
    if attention_mask is not None:
        counts = counts & real_positions(labels, attention_mask)[..., None]
    errors = torch.where(counts, predictions.float() - labels, 0)
    return errors.square().sum() / num_items(counts, num_items_in_batch)


def num_items(counts: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    """What a sum of losses is divided by: the given number, or that of the True `counts`; at least 1."""
    number = counts.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=counts.device)
    return number.clamp(min=1)


class ForecastMixin:
    """Adds `forecast` to the time series model, as `GenerationMixin` adds `generate` to a language model."""

    def output_distribution(
        self, params: tuple[torch.Tensor, ...], loc: torch.Tensor, scale: torch.Tensor
    ) -> Distribution:
        """The distribution described by `params`, `loc` and `scale` of an output, in the units of the data."""
        return self.distribution_head.distribution(params, loc, scale)

    def check_channels(self, name: str, values: torch.Tensor):
        if values.ndim != 3 or values.shape[-1] != self.config.input_size or values.shape[1] < 1:
            raise ValueError(
                f"`{name}` must have the shape (batch, time, {self.config.input_size}) with at least one step and "
                f"`config.input_size` channels, got {tuple(values.shape)}."
            )

    def split_mask(
        self,
        attention_mask: torch.Tensor,
        past_values: torch.Tensor,
        future_values: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, cached + past) and (batch, horizon) masks, from one with or without the horizon."""
        num_past = past_values.shape[1] + (0 if cache is None else cache.get_seq_length())
        horizon = 0 if future_values is None else future_values.shape[1]
        if attention_mask.ndim != 2 or attention_mask.shape[1] not in (num_past, num_past + horizon):
            with_horizon = f", or {num_past + horizon} with the horizon" if horizon else ""
            raise ValueError(
                f"`attention_mask` must have the shape (batch, {num_past}), a column for each past step, cached ones "
                f"included{with_horizon}; got {tuple(attention_mask.shape)}."
            )
        past_mask, future_mask = attention_mask[:, :num_past], attention_mask[:, num_past:]
        if future_values is None:
            return past_mask, None
        if can_read(past_mask) and is_any(past_mask[:, -1] == 0):
            raise ValueError("`attention_mask` must be padded on the left, but the last past step has zeros.")
        return past_mask, future_mask if future_mask.shape[1] else past_mask.new_ones(len(past_mask), horizon)

    @torch.no_grad()
    def forecast(
        self,
        past_values: torch.Tensor,
        horizon: int | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_covariates: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> SampleTSPredictionOutput:
        """
        Samples continuations. Each sample is a path over the whole horizon, drawn step by step with a cache.

        Args:
            past_values: (batch, time, input_size), with the channels of `forward`. NaN is a missing value.
            horizon: number of steps; None: `config.prediction_length`.
            num_samples: number of paths per series; None: `config.num_parallel_samples`.
            generator: source of randomness. The same seed gives the same samples. With a list of one per series,
                the samples of a series do not depend on the rest of the batch.
            past_observed_mask: (batch, time, input_size), 0 at missing values.
            future_covariates: (batch, horizon, num_dynamic_real_features), the covariates of the forecast steps.
            attention_mask: (batch, time), 0 at padding, which must be on the left.

        Returns:
            `SampleTSPredictionOutput` with `sequences` (batch, num_samples, horizon, channels), in the units of
            `past_values`. Prediction intervals are quantiles over the samples.

        Raises:
            ValueError: an argument is out of range, or a series has no observed value; the message says which.
        """
        config = self.config
        horizon = config.prediction_length if horizon is None else horizon
        num_samples = config.num_parallel_samples if num_samples is None else num_samples
        self.check_forecast(past_values, horizon, num_samples, past_observed_mask, future_covariates, attention_mask)
        generators = None
        if generator is not None and not isinstance(generator, torch.Generator):
            generator, generators = None, list(generator)
            if len(generators) != len(past_values):
                raise ValueError(
                    f"`generator` must be one or a list of {len(past_values)}, one per series, got {len(generators)}."
                )
        num_covariates = config.num_dynamic_real_features
        if future_covariates is None:
            future_covariates = past_values.new_zeros(len(past_values), horizon, num_covariates)

        with seeded(generator, self.device):
            cache = DynamicCache(config=config)
            outputs = self(
                past_values,
                past_observed_mask=past_observed_mask,
                next_covariates=future_covariates[:, 0],
                attention_mask=attention_mask,
                cache=cache,
                use_cache=True,
            )
            cache.batch_repeat_interleave(num_samples)

            def repeated(tensor: torch.Tensor) -> torch.Tensor:
                return tensor.repeat_interleave(num_samples, dim=0)

            loc, scale, covariates = repeated(outputs.loc), repeated(outputs.scale), repeated(future_covariates)
            params = tuple(repeated(param[:, -1:]) for param in outputs.params)
            mask = None if attention_mask is None else repeated(attention_mask)
            steps = []
            for step in range(horizon):
                steps.append(self.draw(params, loc, scale, generators))
                if step + 1 == horizon:
                    break
                mask = None if mask is None else F.pad(mask, (0, 1), value=1)
                outputs = self(
                    torch.cat([steps[-1], covariates[:, step : step + 1].to(steps[-1])], dim=-1),
                    next_covariates=covariates[:, step + 1],
                    attention_mask=mask,
                    cache=cache,
                    loc=loc,
                    scale=scale,
                    use_cache=True,
                )
                params = outputs.params
        return SampleTSPredictionOutput(sequences=torch.cat(steps, dim=1).unflatten(0, (-1, num_samples)))

    def draw(
        self,
        params: tuple[torch.Tensor, ...],
        loc: torch.Tensor,
        scale: torch.Tensor,
        generators: list[torch.Generator] | None,
    ) -> torch.Tensor:
        """(batch * num_samples, 1, channels), a value of each path; the paths of a series from its own generator."""
        if generators is None:
            return self.output_distribution(params, loc, scale).sample()
        draws = []
        for index, own in enumerate(generators):
            rows = slice(index * len(loc) // len(generators), (index + 1) * len(loc) // len(generators))
            with seeded(own, self.device):
                own_params = tuple(param[rows] for param in params)
                draws.append(self.output_distribution(own_params, loc[rows], scale[rows]).sample())
        return torch.cat(draws)

    def check_forecast(
        self,
        past_values: torch.Tensor,
        horizon: int | None,
        num_samples: int,
        past_observed_mask: torch.Tensor | None,
        future_covariates: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ):
        config = self.config
        if past_values.ndim != 3 or past_values.shape[1] < 1:
            raise ValueError(
                f"`past_values` must have the shape (batch, time, {config.input_size}) with at least one step, got "
                f"{tuple(past_values.shape)}."
            )
        if horizon is None:
            raise ValueError("`horizon` must be given: `config.prediction_length` is None.")
        for name, value in (("horizon", horizon), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value}.")
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("`attention_mask` must be padded on the left, but its last column has zeros.")
        expected = (len(past_values), horizon, config.num_dynamic_real_features)
        if (future_covariates is None and expected[-1] > 0) or (
            future_covariates is not None and tuple(future_covariates.shape) != expected
        ):
            got = None if future_covariates is None else tuple(future_covariates.shape)
            raise ValueError(
                f"`future_covariates` must have the shape {expected} (batch, horizon, "
                f"`config.num_dynamic_real_features`), got {got}."
            )
        observed = observed_values(past_values, past_observed_mask, attention_mask)
        is_empty = ~observed[..., : config.num_target_channels].any(dim=1).all(dim=-1)
        if is_empty.any():
            raise ValueError(
                "`past_values` has no observed value in a channel to predict of series "
                f"{is_empty.nonzero()[:, 0].tolist()}; expected at least one in each."
            )


def observed_values(
    values: torch.Tensor, mask: torch.Tensor | None, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(batch, time, channels), True where a value is neither NaN nor masked nor padded."""
    observed = ~values.isnan()
    if mask is not None:
        observed = observed & (mask[..., None] if mask.ndim == 2 else mask).bool().to(values.device)
    if attention_mask is not None:
        observed = observed & real_positions(values, attention_mask)[..., None]
    return observed


def check_finite(name: str, values: torch.Tensor, observed: torch.Tensor):
    """Raises a ValueError if an observed value is infinite."""
    if not can_read(values):
        return
    is_infinite = values.isinf() & observed
    if is_any(is_infinite):
        series, step, channel = is_infinite.nonzero()[0].tolist()
        raise ValueError(
            f"`{name}` must hold finite numbers, or NaN where a value is missing, got "
            f"{values[series, step, channel].item()} in series {series}, step {step}, channel {channel}."
        )


@contextlib.contextmanager
def seeded(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """
    PyTorch's distributions only draw from the global random state. In this context it is seeded from `generator`, and
    restored afterwards. Without a generator, nothing changes.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield
