# SPDX-License-Identifier: Apache-2.0
"""Training a model that forecasts: evaluations draw forecasts, and the card shows some of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import EvalPrediction, Trainer

from .forecasting import LEVELS, ForecastWindows, forecast_metrics, plot_forecasts
from .model_card import FORECASTS_FILE
from .run import ReportingTrainer

FORECAST_SEED = 0  # no flag: evaluations draw the same samples


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


class ForecastingTrainer(Trainer):
    """Trainer whose evaluations draw forecasts: predictions are their quantiles, and the losses of their windows."""

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
                generator=torch.Generator(self.args.device).manual_seed(FORECAST_SEED),
            ).sequences
        levels = torch.tensor(LEVELS, device=samples.device, dtype=samples.dtype)
        quantiles = samples.quantile(levels, dim=1).transpose(0, 1).contiguous()
        return outputs.loss, (quantiles, losses), future


class ForecastTrainer(ForecastingTrainer, ReportingTrainer):
    """The trainer of a training script, whose card shows some of the last forecasts."""

    forecasts: tuple[ForecastWindows, np.ndarray] | None = None

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
