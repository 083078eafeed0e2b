# SPDX-License-Identifier: Apache-2.0
"""
Trainers of time series: missing values do not count in a step's loss, evaluations of forecasters draw forecasts, and
the card shows some of them.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import EvalPrediction, Trainer

from .forecasting import LEVELS, ForecastWindows, forecast_metrics, plot_forecasts
from .model_card import FORECASTS_FILE
from .run import ReportingTrainer
from .series_labels import label_statistics


def make_forecast_metrics(windows: ForecastWindows) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics`, over predictions of `ForecastTrainer`."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        quantiles, losses = prediction.predictions
        total, count = losses.astype(np.float64).sum(axis=0)
        return {"loss": total / count, **forecast_metrics(quantiles, windows), "windows": len(windows)}

    return compute_metrics


def window_losses(model, outputs, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(windows, 2): the loss summed over the values to forecast in each window, and their number."""
    start, num_targets = inputs["past_values"].shape[1], model.config.num_target_channels
    future = inputs["future_values"][..., :num_targets].float()
    counts = ~future.isnan()
    scaled = torch.where(counts, (future - outputs.loc) / outputs.scale, 0)
    params = tuple(param[:, start - 1 : start - 1 + future.shape[1]] for param in outputs.params)
    losses = torch.where(counts, model.distribution_head.losses(params, scaled), 0)
    return torch.stack([losses.flatten(1).sum(dim=1), counts.flatten(1).sum(dim=1).float()], dim=1)


class SeriesTrainer(ReportingTrainer):
    """
    A step's loss is the mean over the values of its whole batch, however it is split among processes and accumulated.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # models of numbers leave it off: Trainer would count what is missing

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device):
        labels = [self.values_to_predict(batch) for batch in batch_samples]
        if labels and labels[0].is_floating_point():
            labels = [torch.where(values.isnan(), -100, 0) for values in labels]  # Trainer counts all but -100
        return super()._get_num_items_in_batch([{"labels": values} for values in labels], device)

    def values_to_predict(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["labels"]


class ForecastingTrainer(Trainer):
    """
    Trainer whose evaluations draw forecasts: predictions are their quantiles, and the losses of their windows. A
    window's samples depend on the window alone, so neither batches nor processes change a metric.
    """

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        bare_model, num_covariates = self.accelerator.unwrap_model(model), self.model.config.num_dynamic_real_features
        future = inputs["future_values"]
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, use_cache=False)
            losses = window_losses(bare_model, outputs, inputs)
            samples = bare_model.forecast(
                inputs["past_values"],
                horizon=future.shape[1],
                attention_mask=inputs["attention_mask"],
                future_covariates=future[..., future.shape[-1] - num_covariates :],
                generator=[
                    torch.Generator().manual_seed(zlib.crc32(window.tobytes()))
                    for window in inputs["past_values"].cpu().numpy()
                ],
            ).sequences
        levels = torch.tensor(LEVELS, device=samples.device, dtype=samples.dtype)
        quantiles = samples.quantile(levels, dim=1).transpose(0, 1).contiguous()
        return outputs.loss, (quantiles, losses), future


class LabelingTrainer(Trainer):
    """Trainer whose evaluations keep `label_statistics` in place of logits."""

    def prediction_step(self, *args, **kwargs):
        # Not by `preprocess_logits_for_metrics`: across processes Trainer first pads labels by -100, also numbers.
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        return loss, label_statistics(logits, labels), labels


class LabelTrainer(LabelingTrainer, SeriesTrainer):
    """The trainer of a training script for labels."""


class ForecastTrainer(ForecastingTrainer, SeriesTrainer):
    """The trainer of a training script, whose card shows some of the last forecasts."""

    forecasts: tuple[ForecastWindows, np.ndarray] | None = None

    def values_to_predict(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["future_values"][..., : self.model.config.num_target_channels]

    def evaluate(self, eval_dataset=None, **kwargs) -> dict[str, float]:
        windows, compute_metrics = eval_dataset or self.eval_dataset, self.compute_metrics

        def keep_forecasts(prediction: EvalPrediction) -> dict[str, float]:
            self.forecasts = windows, prediction.predictions[0]
            return compute_metrics(prediction)

        self.compute_metrics = keep_forecasts
        try:
            return super().evaluate(eval_dataset, **kwargs)
        finally:
            self.compute_metrics = compute_metrics

    def create_model_card(self, **kwargs):
        if self.outcome.metrics and self.is_world_process_zero():
            self.outcome.has_forecasts = plot_forecasts(Path(self.args.output_dir, FORECASTS_FILE), *self.forecasts)
        super().create_model_card(**kwargs)
