# SPDX-License-Identifier: Apache-2.0
"""The model of real-valued series: scaling, missing values, covariates, distributions, forecasts; and regression."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForAudioFrameClassification,
    AutoModelForTimeSeriesPrediction,
    DynamicCache,
)

from rtransformer_hf import (
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerForTimeSeriesPrediction,
    RTransformerForTokenClassification,
)
from rtransformer_hf.modeling_rtransformer import CACHE_NAME
from rtransformer_hf.time_series_head import QuantileDistribution, instance_scale

every_distribution = pytest.mark.parametrize("distribution", ["student_t", "normal", "quantiles"])


@pytest.fixture
def make_model(tiny_config):
    def make(**overrides):
        config = tiny_config(**{"input_size": 3, "num_dynamic_real_features": 1, "prediction_length": 4, **overrides})
        return RTransformerForTimeSeriesPrediction(config).eval()

    return make


def make_series(batch=2, time=9, channels=3):
    return torch.randn(batch, time, channels).cumsum(dim=1) * torch.tensor([1.0, 50.0, 0.1])[:channels] + 7


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


@every_distribution
def test_the_loss_is_that_of_the_observed_future_after_scaling(make_model, distribution):
    model = make_model(distribution_output=distribution, quantile_levels=[0.1, 0.5, 0.75])
    past, future = make_series(), make_series(time=5)
    future[1, 2, 0] = math.nan
    with torch.no_grad():
        outputs = model(past, future_values=future)
    assert_close(outputs.loc[:, 0], past[..., :2].mean(dim=1))
    assert_close(outputs.scale[:, 0], past[..., :2].std(dim=1, unbiased=False))

    scaled = ((future[..., :2] - outputs.loc) / outputs.scale).double()
    params = [param[:, 8:13].double() for param in outputs.params]
    if distribution == "quantiles":
        losses = 0
        for level, quantile in zip([0.1, 0.5, 0.75], params[0].unbind(-1), strict=True):
            over = scaled - quantile
            losses = losses + 2 * torch.where(over > 0, level * over, (level - 1) * over) / 3
        assert (params[0].diff(dim=-1) > 0).all()
    elif distribution == "normal":
        losses = 0.5 * ((scaled - params[0]) / params[1]) ** 2 + params[1].log() + 0.5 * math.log(2 * math.pi)
    else:
        df, loc, scale = params
        z = (scaled - loc) / scale
        losses = -(torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log() - scale.log())
        losses = losses + (df + 1) / 2 * torch.log1p(z**2 / df)
    expected = losses[~losses.isnan()]
    assert len(expected.flatten()) == 2 * 5 * 2 - 1
    assert_close(outputs.loss.double(), expected.mean())
    share = model(past, future_values=future, num_items_in_batch=torch.tensor(50)).loss
    assert_close(share.double(), expected.sum() / 50)


@pytest.mark.parametrize("scaling", ["std", "mean"])
def test_units_and_sizes_of_a_series_make_no_difference(make_model, scaling):
    model = make_model(scaling=scaling)
    past, future = make_series(), make_series(time=2)
    factors = torch.tensor([1000.0, 0.01, 1.0])
    offset = torch.tensor([5e3, -3.0, 0.0]) if scaling == "std" else torch.zeros(3)
    with torch.no_grad():
        here = model(past, future_values=future)
        there = model(past * factors + offset, future_values=future * factors + offset)
    assert_close(there.loss, here.loss, atol=1e-3)
    assert_close(there.params[1], here.params[1], atol=1e-3)


def test_series_without_spread_are_scaled_by_their_size():
    values = torch.tensor([[5.0, 0.0, -2.0], [5.0, 0.0, math.nan]])[None]
    for scaling, locs in (("std", [5, 0, -2]), ("mean", [0, 0, 0]), ("none", [0, 0, 0])):
        loc, scale = instance_scale(values.nan_to_num(99), ~values.isnan(), scaling)
        assert loc.flatten().tolist() == locs
        assert scale.flatten().tolist() == ([1, 1, 1] if scaling == "none" else [5, 1, 2])
    loc, scale = instance_scale(values, torch.zeros(1, 2, 3, dtype=torch.bool), "std")
    assert loc.flatten().tolist() == [0, 0, 0] and scale.flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("distribution", ["normal", "quantiles"])
def test_the_level_of_a_series_does_not_hide_its_spread(make_model, distribution):
    model = make_model(distribution_output=distribution, input_size=1, num_dynamic_real_features=0)
    series = 10 * torch.sin(torch.arange(40) / 3).double()[None, :, None]
    forecasts = {}
    for level in (0, 1e7, 1e12):
        with torch.no_grad():
            outputs = model(series + level)
        assert_close(outputs.scale.flatten(), series.std(dim=1, unbiased=False).flatten(), atol=1e-3)
        options = {"horizon": 3, "num_samples": 50, "generator": torch.Generator().manual_seed(0)}
        forecasts[level] = model.forecast(series + level, **options).sequences - level
    assert_close(forecasts[1e7], forecasts[0], atol=1e-4)
    assert_close(forecasts[1e12], forecasts[0], atol=1e-2)

    counter = (series + 1e7).float()  # in steps of 1
    loc, scale = instance_scale(counter, ~counter.isnan(), "std")
    assert_close(scale.double(), counter.double().std(dim=1, unbiased=False, keepdim=True), atol=1e-3)
    for constant in (0.1, 123456.7, -1e30):
        values = torch.full((1, 1000, 1), constant)
        loc, scale = instance_scale(values, ~values.isnan(), "std")
        assert loc.item() == values[0, 0] and scale.item() == pytest.approx(abs(constant))


def test_missing_values_may_be_masked_or_nan_and_padding_changes_nothing(make_model):
    model = make_model()
    past, future = make_series(), make_series(time=3)
    mask = torch.ones_like(past)
    mask[0, 3, 1] = mask[1, 6:8, 0] = 0
    with torch.no_grad():
        masked = model(past, past_observed_mask=mask, future_values=future)
        nan = model(torch.where(mask.bool(), past, math.nan), future_values=future)
        complete = model(past, future_values=future)
        padded = model(
            F.pad(torch.where(mask.bool(), past, math.nan), (0, 0, 4, 0), value=123),
            attention_mask=F.pad(torch.ones(2, 9), (4, 0)),
            future_values=future,
        )
        with_horizon = model(
            F.pad(torch.where(mask.bool(), past, math.nan), (0, 0, 4, 0), value=123),
            attention_mask=F.pad(torch.ones(2, 12), (4, 0)),
            future_values=future,
        )
    assert torch.equal(masked.loss, nan.loss) and not torch.equal(complete.loss, nan.loss)
    assert torch.equal(with_horizon.loss, padded.loss) and torch.equal(with_horizon.loc, padded.loc)
    assert_close(padded.loss, nan.loss)
    assert_close(padded.params[1][:, 4:], nan.params[1])


@pytest.mark.parametrize("scaling", ["std", "none"])
def test_a_channel_without_a_past_has_no_scale_and_no_loss(make_model, scaling):
    model = make_model(scaling=scaling)
    past, future = make_series(), make_series(time=3)
    past[0, :, 1] = math.nan
    without = future.clone()
    without[0, :, 1] = math.nan
    with torch.no_grad():
        loss, expected = (model(past, future_values=values).loss for values in (future, without))
    assert torch.equal(loss, expected) == (scaling == "std")


def test_gradients_of_each_series_under_vmap(make_model):
    """Where a check has no single value to look at."""
    model = make_model(local_rnn_implementation="shared_projection")
    series = make_series(batch=3)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return model(values[None, :6], future_values=values[None, 6:], use_cache=False).params[1].sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(series)
    assert_close(gradients[1], torch.func.grad(loss)(series[1]))


def test_integers_are_read_as_numbers(make_model):
    model = make_model(input_size=1, num_dynamic_real_features=0)
    past, future = torch.tensor([[[1], [2], [3], [4]]]), torch.tensor([[[4.5], [5.5]]])
    assert torch.equal(model(past, future_values=future).loss, model(past.float(), future_values=future).loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.ones(2, 8)}, r"`attention_mask` must have the shape \(batch, 9\).*or 12 with the"),
        ({"attention_mask": torch.ones(2, 9, 9)}, r"got \(2, 9, 9\)"),
        ({"attention_mask": F.pad(torch.ones(2, 8), (0, 1))}, "padded on the left"),
        ({"loc": torch.zeros(2, 1, 2)}, "`loc` and `scale` must be given together, got `loc` alone"),
        ({"scale": torch.ones(2, 1, 2)}, "got `scale` alone"),
        (
            {"past_values": make_series().index_fill(1, torch.tensor([4]), math.inf)},
            "`past_values` .* got inf in series 0, step 4",
        ),
        ({"future_values": torch.full((2, 3, 3), -math.inf)}, "`future_values` .* got -inf in series 0, step 0"),
    ],
)
def test_inputs_that_would_be_misread_are_refused(make_model, change, message):
    inputs = {"past_values": make_series(), "future_values": make_series(time=3)}
    with pytest.raises(ValueError, match=message):
        make_model()(**{**inputs, **change})
    hidden = torch.ones(2, 3, 3)
    hidden[:, 0] = 0  # what is masked may hold anything
    future = make_series(time=3).index_fill(1, torch.tensor([0]), math.inf)
    assert make_model()(**{**inputs, "future_values": future, "future_observed_mask": hidden}).loss.isfinite()


def test_a_step_sees_its_own_covariates_and_the_values_before(make_model):
    model = make_model()
    past, covariates = make_series(), torch.randn(2, 1)

    def means(past, covariates):
        unscaled = {"loc": torch.zeros(2, 1, 2), "scale": torch.ones(2, 1, 2)}
        with torch.no_grad():
            return model(past, next_covariates=covariates, **unscaled).params[1]

    before = means(past, covariates)
    changed = past.clone()
    changed[:, 5, :2] += 1  # read at 5, where step 6 is predicted
    is_changed = (means(changed, covariates) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert is_changed.tolist() == [False] * 5 + [True] * 4
    changed = past.clone()
    changed[:, 5, 2] += 1  # read at 4, where step 5 is predicted
    is_changed = (means(changed, covariates) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert is_changed.tolist() == [False] * 4 + [True] * 5
    is_changed = (means(past, covariates + 1) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert is_changed.tolist() == [False] * 8 + [True]


@pytest.mark.parametrize("local_window_size", [1, 4])
def test_streaming_step_by_step_gives_what_the_whole_series_gives(make_model, local_window_size):
    model = make_model(local_window_size=local_window_size)
    past, rest = make_series(time=6), make_series(time=5)
    rest[0, 2, 1] = math.nan
    whole = torch.cat([past, rest], dim=1)
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        first = model(past, next_covariates=rest[:, 0, 2:], cache=cache, use_cache=True)
        expected = model(whole, loc=first.loc, scale=first.scale)
        steps = [first.params]
        for step in range(4):
            outputs = model(
                rest[:, step : step + 1],
                next_covariates=rest[:, step + 1, 2:],
                loc=first.loc,
                scale=first.scale,
                **{CACHE_NAME: cache},
            )
            steps.append(outputs.params)
    for index, param in enumerate(expected.params):
        assert_close(torch.cat([step[index] for step in steps], dim=1), param[:, :10])
    with pytest.raises(ValueError, match="`loc` and `scale` must be given with `cache`"):
        model(rest[:, :1], cache=cache)


@every_distribution
def test_forecasts_are_drawn_from_the_distributions_of_the_model(make_model, distribution):
    model = make_model(distribution_output=distribution, local_window_size=3)
    past, covariates = make_series(), torch.randn(2, 4, 1)
    samples = model.forecast(
        past, num_samples=3000, generator=torch.Generator().manual_seed(0), future_covariates=covariates
    ).sequences
    assert samples.shape == (2, 3000, 4, 2) and samples.isfinite().all()
    with torch.no_grad():
        outputs = model(past, next_covariates=covariates[:, 0])
    expected = model.output_distribution(outputs.params, outputs.loc, outputs.scale)
    levels = torch.tensor([0.25, 0.5, 0.75])
    found = samples[:, :, 0].quantile(levels, dim=1)  # (levels, batch, channels)
    if distribution == "quantiles":
        quantiles = torch.stack([expected.icdf(level)[:, -1] for level in levels])
        assert_close(expected.icdf(torch.tensor(0.3))[:, -1], expected.quantiles[:, -1, :, 2], atol=1e-3)
    else:
        torch.manual_seed(1)
        quantiles = expected.sample((3000,))[:, :, -1].quantile(levels, dim=0)
    assert ((found - quantiles).abs() < 0.15 * (quantiles[2] - quantiles[0])).all()


def test_forecasts_follow_the_generator_and_equal_those_without_a_cache(make_model):
    model = make_model(num_dynamic_real_features=0, distribution_output="normal")
    past = make_series()

    def forecast(seed, rows=slice(None), **arguments):
        generator = torch.Generator().manual_seed(seed)
        return model.forecast(past[rows], horizon=3, num_samples=2, generator=generator, **arguments).sequences

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = forecast(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(forecast(0), first) and not torch.equal(forecast(1), first)

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    values, loc_and_scale = past.repeat_interleave(2, dim=0), {}
    for _ in range(3):
        with torch.no_grad():
            outputs = model(values, **loc_and_scale)
        loc_and_scale = {"loc": outputs.loc, "scale": outputs.scale}
        last = tuple(param[:, -1:] for param in outputs.params)
        values = torch.cat([values, model.output_distribution(last, **loc_and_scale).sample()], dim=1)
    assert_close(first.flatten(0, 1), values[:, 9:], atol=1e-3)

    def seeds(*values):
        return [torch.Generator().manual_seed(seed) for seed in values]

    samples = model.forecast(past, horizon=3, num_samples=2, generator=seeds(3, 4)).sequences
    alone = model.forecast(past[1:], horizon=3, num_samples=2, generator=seeds(4)).sequences
    assert_close(samples[1:], alone, atol=1e-3)
    with pytest.raises(ValueError, match="`generator` must be one or a list of 2, one per series, got 1"):
        model.forecast(past, horizon=3, generator=seeds(3))

    padded = F.pad(past, (0, 0, 3, 0), value=math.nan)
    mask = F.pad(torch.ones(2, 9, dtype=torch.long), (3, 0))
    generator = torch.Generator().manual_seed(0)
    again = model.forecast(padded, horizon=3, num_samples=2, generator=generator, attention_mask=mask).sequences
    assert_close(again, first, atol=1e-3)


def test_quantiles_of_a_normal_distribution_give_it_back():
    levels = torch.tensor([0.1, 0.3, 0.5, 0.9])
    normal = torch.distributions.Normal(3.0, 2.0)
    distribution = QuantileDistribution(normal.icdf(levels), levels)
    for level in (0.01, 0.1, 0.4, 0.7, 0.99):
        assert_close(distribution.icdf(torch.tensor(level)), normal.icdf(torch.tensor(level)), atol=1e-4)


def test_what_makes_no_forecast_is_refused(make_model, tiny_config):
    model, past = make_model(), make_series()
    covariates = torch.zeros(2, 4, 1)
    nothing = past.clone()
    nothing[1, :, 0] = math.nan
    for arguments, message in [
        ({}, r"`future_covariates` must have the shape \(2, 4, 1\).* got None"),
        ({"future_covariates": covariates[:, :3]}, r"`future_covariates` .* got \(2, 3, 1\)"),
        ({"future_covariates": covariates, "horizon": 0}, "`horizon` must be an integer of at least 1, got 0"),
        ({"future_covariates": covariates, "num_samples": 0}, "`num_samples` must be .* got 0"),
        ({"future_covariates": covariates, "past_values": past[0]}, r"`past_values` must have .* got \(9, 3\)"),
        ({"future_covariates": covariates, "past_values": past[:, :0]}, "at least one step"),
        ({"future_covariates": covariates, "past_values": nothing}, r"no observed value .* series \[1\]"),
        ({"future_covariates": covariates, "attention_mask": torch.arange(9, 0, -1).repeat(2, 1) - 1}, "on the left"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.forecast(**{"past_values": past, **arguments})
    with pytest.raises(ValueError, match=r"`config\.prediction_length` is None"):
        make_model(prediction_length=None, num_dynamic_real_features=0).forecast(past)
    with pytest.raises(ValueError, match="`future_values` must have the shape"):
        model(past, future_values=past[..., :2])
    with pytest.raises(ValueError, match="`input_size` must be greater than `num_dynamic_real_features`"):
        RTransformerForTimeSeriesPrediction(tiny_config(input_size=2, num_dynamic_real_features=2))
    for wrong in ({"quantile_levels": [0.5, 0.1]}, {"quantile_levels": [0.0, 0.5]}, {"scaling": "max"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tiny_config(**wrong)


def test_the_auto_class_opens_it_and_music_checkpoints_with_a_notice(make_model, tiny_config, tmp_path):
    model = make_model(quantile_levels=[0.2, 0.8], distribution_output="quantiles", scaling="none")
    model.save_pretrained(tmp_path / "series")
    loaded = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path / "series").eval()
    assert type(loaded) is RTransformerForTimeSeriesPrediction and loaded.config.scaling == "none"
    past = make_series()
    assert torch.equal(loaded(past).params[0], model(past).params[0])

    music = RTransformerForPolyphonicMusic(tiny_config(input_size=5))
    music.save_pretrained(tmp_path / "music")
    with pytest.warns(FutureWarning, match="AutoModelForAudioFrameClassification"):
        opened = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path / "music")
    assert type(opened) is RTransformerForPolyphonicMusic
    assert all(torch.equal(opened.state_dict()[name], weight) for name, weight in music.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(AutoModelForAudioFrameClassification.from_pretrained(tmp_path / "music")) is type(music)


# --- regression ---


@pytest.mark.parametrize("problem_type, num_labels", [(None, 1), ("regression", 1), ("regression", 2)])
def test_each_position_may_predict_numbers(tiny_config, problem_type, num_labels):
    config = tiny_config(input_size=3, num_labels=num_labels, problem_type=problem_type)
    model = RTransformerForTokenClassification(config).eval()
    values, labels = torch.randn(2, 6, 3), torch.randn(2, 6, num_labels)
    mask = torch.ones(2, 6)
    mask[1, 4:] = 0
    labels[0, 2, 0] = math.nan
    outputs = model(input_values=values, attention_mask=mask, labels=labels)
    squares = ((outputs.logits - labels) ** 2)[mask.bool()]
    assert_close(outputs.loss, squares[~squares.isnan()].mean())
    if num_labels == 1:
        assert torch.equal(model(input_values=values, attention_mask=mask, labels=labels[..., 0]).loss, outputs.loss)
    share = model(input_values=values, attention_mask=mask, labels=labels, num_items_in_batch=50).loss
    assert_close(share, squares[~squares.isnan()].sum() / 50)
    outputs.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    assert not model.accepts_loss_kwargs
    with pytest.raises(ValueError, match=r"`labels` must have the shape"):
        model(input_values=values, labels=torch.randn(2, 6, 3))


def test_a_whole_sequence_may_predict_numbers(tiny_config):
    for num_labels in (1, 2):
        config = tiny_config(input_size=3, num_labels=num_labels, problem_type="regression")
        model = RTransformerForSequenceClassification(config).eval()
        values, labels = torch.randn(4, 6, 3), torch.randn(4, num_labels)
        outputs = model(input_values=values, labels=labels)
        assert_close(outputs.loss, F.mse_loss(outputs.logits, labels))
        share = model(input_values=values, labels=labels, num_items_in_batch=50).loss
        assert_close(share, F.mse_loss(outputs.logits, labels, reduction="sum") / 50)
