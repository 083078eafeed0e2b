# SPDX-License-Identifier: Apache-2.0
"""
Forecasts of time series: windows that are split by time, metrics, baselines, and pictures of forecasts with bands.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from rtransformer_hf import RTransformerFeatureExtractor

from .errors import UsageError, listed
from .files import write_figure
from .time_series import Series, TimeSeriesArguments, common_spacing, place

logger = logging.getLogger(__name__)

SEASON_CHANNELS = ("sine of the season", "cosine of the season")
LEVELS = tuple(level / 10 for level in range(1, 10))  # of the quantiles that forecasts are judged by


@dataclass
class ForecastSetting:
    """What splits, windows and metrics of a forecast depend on. Lengths in steps."""

    FLAGS: ClassVar[tuple[str, ...]] = (
        *("horizon", "context_length", "season_length"),
        *("validation_length", "test_length"),
    )

    horizon: int
    context_length: int
    season_length: int
    validation_length: int
    test_length: int
    num_targets: int

    @classmethod
    def of(cls, args: TimeSeriesArguments, series: Sequence[Series]) -> "ForecastSetting":
        """
        Raises:
            UsageError: lengths are no multiples of the horizon, or a series is too short.
        """
        spacing = common_spacing(series)
        season_length = args.season_length or (1 if spacing is None else spacing.season_length)
        horizon = args.horizon or min(max(season_length, 8), 96)
        setting = cls(
            horizon=horizon,
            context_length=args.context_length or min(max(3 * horizon, 2 * season_length), 512),
            season_length=season_length,
            validation_length=horizon if args.validation_length is None else args.validation_length,
            test_length=horizon if args.test_length is None else args.test_length,
            num_targets=series[0].values.shape[1] - len(args.covariate_columns or []),
        )
        for name in ("validation_length", "test_length"):
            value = getattr(setting, name)
            if value % horizon != 0:
                raise UsageError(f"--{name}: {value} (expected a multiple of --horizon, {horizon})")
        for part in series:
            needed = setting.validation_length + setting.test_length + horizon + 2
            if len(part.values) < needed:
                raise UsageError(
                    f"{place(part)}: {len(part.values)} steps (expected at least {needed}: 2 to start from, --horizon "
                    f"{horizon} to train on, {setting.validation_length} to validate and {setting.test_length} to "
                    "test on)"
                )
        return setting

    def train_end(self, series: Series) -> int:
        return len(series.values) - self.validation_length - self.test_length


def season_features(steps: np.ndarray, season_length: int) -> np.ndarray:
    """(time,) numbers of steps -> (time, 2), where in its season each of them is."""
    phases = 2 * np.pi * (steps % season_length) / season_length
    return np.stack([np.sin(phases), np.cos(phases)], axis=1)


def add_time_features(series: Sequence[Series], setting: ForecastSetting):
    """Two covariates that say where in its season a step is."""
    for part in series:
        part.values = np.column_stack([part.values, season_features(part.steps, setting.season_length)])
        part.channels = [*part.channels, *SEASON_CHANNELS]


def has_time_features(args: TimeSeriesArguments, series: Sequence[Series], setting: ForecastSetting) -> bool:
    return args.time_features and setting.season_length > 1 and series[0].steps is not None


def fit_forecast_extractor(series: Sequence[Series], setting: ForecastSetting) -> RTransformerFeatureExtractor:
    """
    A feature extractor that normalises the covariates by their training steps, and leaves the targets to the model,
    which scales each series by its past.

    Raises:
        UsageError: a target is constant or missing in the training steps of a series, or varies by less than float32
            resolves; a covariate is constant in those of all, or missing anywhere.
    """
    for part in series:
        end = setting.train_end(part)
        for name, values in zip(part.channels[: setting.num_targets], part.values[:end].T, strict=False):
            found = np.unique(values[~np.isnan(values)])
            if len(found) < 2:
                what = "has no value" if len(found) == 0 else f"holds {found[0]:g} alone"
                raise UsageError(
                    f"{place(part, end=end)}: column {name!r} {what} in the {end} training steps (expected values "
                    "that vary; leave the series or the column out)"
                )
            level, spread = np.nanmean(values), np.nanstd(values)
            if spread <= np.finfo(np.float32).eps * abs(level):
                raise UsageError(
                    f"{place(part, end=end)}: column {name!r} varies by {spread:.3g} around {level:.9g} in the {end} "
                    "training steps, less than 32-bit numbers of that size are apart (expected smaller numbers, such "
                    "as differences from a constant)"
                )
        is_missing = np.isnan(part.values[:, setting.num_targets :])
        if is_missing.any():
            step, channel = np.argwhere(is_missing)[0]
            raise UsageError(
                f"{part.where}: column {part.channels[setting.num_targets + channel]!r} is empty in row "
                f"{part.rows[step]} (from 0; expected covariates without missing values)"
            )
    steps = np.concatenate([part.values[: setting.train_end(part)] for part in series])
    mean, std = np.zeros(steps.shape[1]), np.ones(steps.shape[1])
    covariates = slice(setting.num_targets, None)
    mean[covariates], std[covariates] = steps[:, covariates].mean(axis=0), steps[:, covariates].std(axis=0)
    if (std <= 1e-12 * np.abs(mean)).any():
        index = int((std <= 1e-12 * np.abs(mean)).argmax())
        raise UsageError(
            f"{series[0].where}: column {series[0].channels[index]!r} holds {mean[index]:g} alone in the training "
            "steps (expected covariates that vary)"
        )
    return RTransformerFeatureExtractor(
        feature_size=steps.shape[1],
        mean=mean,
        std=std,
        padding_side="left",
        channel_names=series[0].channels,
        fill_missing=False,
    )


class ForecastWindows(Dataset):
    """
    Windows of series: what is known, padded on the left where a series is shorter, and the steps to forecast.

    Args:
        series: normalised series.
        origins: (index of a series, its first step to forecast) of each window.
        setting: lengths of the windows.
    """

    def __init__(self, series: Sequence[Series], origins: Sequence[tuple[int, int]], setting: ForecastSetting):
        self.series, self.setting = series, setting
        self.origins = [
            (index, origin)
            for index, origin in origins
            if self.has_values(index, origin - setting.context_length, origin)
            and self.has_values(index, origin, origin + setting.horizon, needs_all=False)
        ]

    def has_values(self, index: int, start: int, end: int, needs_all: bool = True) -> bool:
        targets = self.series[index].values[max(start, 0) : end, : self.setting.num_targets]
        is_there = ~np.isnan(targets)
        return is_there.any(axis=0).all() if needs_all else is_there.any()

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        part, origin = self.origins[index]
        values = torch.from_numpy(self.series[part].values).float()
        past = values[max(origin - self.setting.context_length, 0) : origin]
        padding = self.setting.context_length - len(past)
        return {
            "past_values": F.pad(past, (0, 0, padding, 0)),
            "attention_mask": F.pad(torch.ones(len(past), dtype=torch.long), (padding, 0)),
            "future_values": values[origin : origin + self.setting.horizon],
        }

    @cached_property
    def actual(self) -> np.ndarray:
        """(windows, horizon, channels) the values to forecast; NaN where one is missing."""
        horizon, num_targets = self.setting.horizon, self.setting.num_targets
        return np.stack([self.series[i].values[o : o + horizon, :num_targets] for i, o in self.origins])

    @cached_property
    def naive_errors(self) -> np.ndarray:
        """(windows, channels) mean absolute error of the seasonal naive forecast on training steps, MASE's scale."""
        errors = [naive_error(part, self.setting) for part in self.series]
        return np.stack([errors[index] for index, _ in self.origins])

    def sha256(self) -> str:
        digest = hashlib.sha256(repr(self.origins).encode())
        for part in self.series:
            digest.update(np.ascontiguousarray(part.values).tobytes())
        return digest.hexdigest()


def naive_error(series: Series, setting: ForecastSetting) -> np.ndarray:
    values = series.values[: setting.train_end(series), : setting.num_targets]
    for lag in (setting.season_length, 1):
        if lag < len(values):
            errors = np.abs(values[lag:] - values[:-lag])
            if not np.isnan(errors).all(axis=0).any():
                mean = np.nanmean(errors, axis=0)
                if (mean > 0).all():
                    return mean
    return np.nanstd(values, axis=0)  # of values so sparse that no two are a step apart


def make_windows(
    args: TimeSeriesArguments, series: Sequence[Series], setting: ForecastSetting
) -> dict[str, ForecastWindows]:
    """
    Windows of "train", "validation" and "test", split by time: what is validated or tested comes after all that is
    trained on.

    Raises:
        UsageError: no window of a split has values.
    """
    origins = {"train": [], "validation": [], "test": []}
    for index, part in enumerate(series):
        end = setting.train_end(part)
        first = min(setting.context_length, end - setting.horizon)
        origins["train"] += [(index, o) for o in range(first, end - setting.horizon + 1, args.window_stride)]
        stops = {"validation": end + setting.validation_length, "test": len(part.values)}
        for split, stop in stops.items():
            start = end if split == "validation" else stops["validation"]
            origins[split] += [(index, origin) for origin in range(start, stop, setting.horizon)]
    if setting.test_length == 0:
        del origins["test"]
    windows = {split: ForecastWindows(series, found, setting) for split, found in origins.items()}
    for split, found in windows.items():
        if len(found) == 0:
            raise UsageError(f"{args.source('train')}: the {split} steps have no values (expected some to forecast)")
    return windows


def normalised_series(series: Sequence[Series], extractor: RTransformerFeatureExtractor) -> list[Series]:
    mean, std = np.asarray(extractor.mean), np.asarray(extractor.std)
    return [replace(part, values=(part.values - mean) / std) for part in series]


def last_value(windows: ForecastWindows) -> np.ndarray:
    """(windows, horizon, channels), the last value that is known, again and again."""
    return repeat_season(windows, 1)


def seasonal_naive(windows: ForecastWindows) -> np.ndarray:
    """(windows, horizon, channels), the value of the same step in the last season that is known."""
    return repeat_season(windows, windows.setting.season_length)


def repeat_season(windows: ForecastWindows, season_length: int) -> np.ndarray:
    horizon, num_targets = windows.setting.horizon, windows.setting.num_targets
    forecasts = []
    for index, origin in windows.origins:
        known = pd.DataFrame(windows.series[index].values[:origin, :num_targets])
        last = known.ffill().iloc[-1].to_numpy()
        season = known.groupby((np.arange(origin) - origin) % season_length).last()  # skips what is missing
        season = season.reindex(range(season_length)).to_numpy()
        steps = season[np.arange(horizon) % season_length]
        forecasts.append(np.where(np.isnan(steps), last, steps))
    return np.stack(forecasts)


BASELINES = {"seasonal naive": seasonal_naive, "last value": last_value}
FORECAST_METRICS = ("loss", "mase", "smape", "weighted_quantile_loss", "coverage_80")


def forecast_metrics(quantiles: np.ndarray, windows: ForecastWindows) -> dict[str, float]:
    """
    Args:
        quantiles: (windows, levels, horizon, channels), those of the levels `LEVELS`; a point forecast is repeated.
        windows: that were forecast.

    Returns:
        "mase": mean absolute error of the median, divided by that of the seasonal naive forecast on training steps.
        "smape": 200 |y - f| / (|y| + |f|), in percent.
        "weighted_quantile_loss": twice the pinball loss, summed and divided by the sum of |y|, averaged over the
            levels: an approximation of the CRPS.
        "coverage_80": share of the values between the lowest and the highest quantile; 0.8 would be right.
    """
    actual, median = windows.actual, quantiles[:, len(LEVELS) // 2]
    is_there = ~np.isnan(actual)
    error = np.abs(actual - median)
    size = np.abs(actual) + np.abs(median)
    relative = np.divide(200 * error, size, out=np.zeros_like(error), where=size > 0)
    over = actual[:, None] - quantiles
    levels = np.asarray(LEVELS)[:, None, None]
    pinball = 2 * np.maximum(levels * over, (levels - 1) * over)
    total = np.abs(actual)[is_there].sum()
    return {
        "mase": float((error / windows.naive_errors[:, None])[is_there].mean()),
        "smape": float(relative[is_there].mean()),
        "weighted_quantile_loss": float(np.nansum(pinball) / len(LEVELS) / total) if total > 0 else float("nan"),
        "coverage_80": float(((actual >= quantiles[:, 0]) & (actual <= quantiles[:, -1]))[is_there].mean()),
    }


def baseline_forecasts(windows: ForecastWindows) -> dict[str, dict[str, float]]:
    """The metrics of each baseline. They are points without bands: their coverage is left out."""
    metrics = {}
    for name, forecast in BASELINES.items():
        points = np.repeat(forecast(windows)[:, None], len(LEVELS), axis=1)
        metrics[name] = {
            key: value for key, value in forecast_metrics(points, windows).items() if key != "coverage_80"
        }
    return metrics


def until_last_value(series: Series, num_targets: int) -> tuple[Series, Series]:
    """
    A series up to the last step that has a value to forecast from, and the steps after it, whose covariates may be
    known: rows with empty targets at the end of a file.
    """
    end = np.flatnonzero(~np.isnan(series.values[:, :num_targets]).all(axis=1))[-1] + 1
    return tuple(
        replace(
            series,
            values=series.values[part],
            rows=series.rows[part],
            steps=None if series.steps is None else series.steps[part],
            times=None if series.times is None else series.times[part],
        )
        for part in (slice(end), slice(end, None))
    )


def known_parts(args: TimeSeriesArguments, series: Sequence[Series]) -> list[Series]:
    """Series up to their last values: to train and test on files that go on with covariates of the steps ahead."""
    num_covariates = len(args.covariate_columns or [])
    return [until_last_value(part, part.values.shape[1] - num_covariates)[0] for part in series]


@torch.no_grad()
def forecast_ahead(
    model: PreTrainedModel,
    extractor: RTransformerFeatureExtractor,
    series: Series,
    season_length: int,
    horizon: int,
    generator: torch.Generator | None = None,
    future: Series | None = None,
) -> np.ndarray:
    """
    What comes after the end of a series.

    Args:
        model: of forecasts.
        extractor: that of the model.
        series: as of `load_series`, its targets and then the covariates that the model's training data had, in the
            model's order; with time stamps, where the model reads the season.
        season_length: steps of a season.
        horizon: steps to forecast.
        generator: source of randomness, on the model's device.
        future: the steps after the series, for a model with such covariates, as of [`until_last_value`].

    Returns:
        (levels, horizon, channels), the quantiles of the levels `LEVELS`.

    Raises:
        UsageError: the series has other channels than the model, no time stamps where they are needed, no value to go
            on from, or a covariate is missing.
    """
    config, num_targets = model.config, model.config.num_target_channels
    has_season = tuple((extractor.channel_names or [])[-2:]) == SEASON_CHANNELS
    num_known = config.input_size - 2 * has_season
    if series.values.shape[1] != num_known:
        raise UsageError(
            f"{place(series)}: {series.values.shape[1]} channels (expected {num_known}, of which the model forecasts "
            f"{num_targets})"
        )
    values, ahead = series.values, np.zeros((horizon, 0))
    if num_known > num_targets:
        ahead = covariates_ahead(series, future, num_targets, horizon)
    if has_season:
        if series.steps is None:
            raise UsageError(f"{place(series)}: no time stamps (expected some: the model reads the season)")
        steps = np.concatenate([series.steps, series.steps[-1] + 1 + np.arange(horizon)])
        season = season_features(steps, season_length)
        values, ahead = np.column_stack([values, season[:-horizon]]), np.column_stack([ahead, season[-horizon:]])
    mean, std = np.asarray(extractor.mean), np.asarray(extractor.std)
    past = ((values - mean) / std)[-(config.context_length or len(values)) :]
    ahead = (ahead - mean[num_targets:]) / std[num_targets:]
    is_missing = np.isnan(np.concatenate([past[:, num_targets:], ahead])).any(axis=0)
    if is_missing.any():
        raise UsageError(
            f"{place(series)}: column {series.channels[num_targets + is_missing.argmax()]!r} is empty in the last "
            f"{len(past)} or the next {horizon} steps (expected covariates without missing values)"
        )
    if np.isnan(past[:, :num_targets]).all(axis=0).any():
        raise UsageError(f"{place(series)}: no value in the last {len(past)} steps (expected some to go on from)")
    past, ahead = (torch.from_numpy(part).float()[None].to(model.device) for part in (past, ahead))
    samples = model.forecast(past, horizon=horizon, future_covariates=ahead, generator=generator).sequences
    levels = torch.tensor(LEVELS, device=samples.device, dtype=samples.dtype)
    return samples[0].quantile(levels, dim=0).cpu().numpy()


def covariates_ahead(series: Series, future: Series | None, num_targets: int, horizon: int) -> np.ndarray:
    """(horizon, covariates), of the steps after a series."""
    num_steps = 0 if future is None else len(future.values)
    if num_steps < horizon:
        raise UsageError(
            f"{place(series)}: {num_steps} rows follow its last value (expected at least {horizon}, with empty cells "
            f"of values and the covariates {listed(series.channels[num_targets:])}, which the model reads)"
        )
    return future.values[:horizon, num_targets:]


def forecast_table(
    series: Sequence[Series],
    quantiles: Sequence[np.ndarray],
    id_column: str | None = None,
    time_column: str | None = None,
) -> pd.DataFrame:
    """
    A row for each channel and step that is forecast.

    Args:
        series: what is known.
        quantiles: of each, as of [`forecast_ahead`].
        id_column, time_column: names of the columns that say which series and when; unset, they are "series" and, with
            steps counted from 1 after the last known one, "step".
    """
    parts = []
    for part, found in zip(series, quantiles, strict=True):
        horizon = found.shape[1]
        times = 1 + np.arange(horizon) if part.times is None else part.spacing.ahead(part.times, horizon)
        for channel in range(found.shape[2]):
            where = {
                id_column or "series": part.name,
                (time_column if part.times is not None else None) or "step": times,
                "channel": part.channels[channel],
            }
            columns = {f"{level:g}": found[index, :, channel] for index, level in enumerate(LEVELS)}
            parts.append(pd.DataFrame({**where, **columns}))
    return pd.concat(parts, ignore_index=True)


def plot_forecasts(path: Path, windows: ForecastWindows, quantiles: np.ndarray, most: int = 4) -> bool:
    """
    Draws some forecasts with their bands, of the widest range of series. Returns whether there is a picture:
    matplotlib may be missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("No picture of the forecasts: matplotlib is not installed.")
        return False
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(most, len(windows))).round().astype(int))
    figure = Figure(figsize=(8, 2.4 * len(chosen)), layout="constrained")
    for axes, window in zip(figure.subplots(len(chosen), squeeze=False)[:, 0], chosen, strict=True):
        index, origin = windows.origins[window]
        part, setting = windows.series[index], windows.setting
        start = max(origin - setting.context_length, 0)
        known = part.values[start : origin + setting.horizon, 0]
        draw_forecast(axes, np.arange(start, start + len(known)), known, quantiles[window, :, :, 0], origin)
        axes.set_title(f"{part.name}: {part.channels[0]}", fontsize=9)
    axes.set_xlabel("step")
    axes.legend(fontsize=8)
    write_figure(path, figure, dpi=150)
    return True


def draw_forecast(axes, steps: np.ndarray, values: np.ndarray, quantiles: np.ndarray, origin: int):
    """
    One channel with its forecast.

    Args:
        axes: of matplotlib.
        steps: (time,) where on the horizontal axis the values are.
        values: (time,) that are known, those that were forecast too.
        quantiles: (levels, horizon), of the levels `LEVELS`.
        origin: the first step that was forecast.
    """
    ahead = np.arange(origin, origin + quantiles.shape[1])
    axes.plot(steps, values, color="black", linewidth=1, label="values")
    for low, alpha in ((0, 0.2), (2, 0.3)):
        label = f"{LEVELS[-1 - low] - LEVELS[low]:.0%} of the samples"
        axes.fill_between(ahead, quantiles[low], quantiles[-1 - low], alpha=alpha, color="tab:blue", lw=0, label=label)
    axes.plot(ahead, quantiles[len(LEVELS) // 2], color="tab:blue", label="median forecast")
    axes.grid(alpha=0.3)
