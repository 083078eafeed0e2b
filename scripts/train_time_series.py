# SPDX-License-Identifier: Apache-2.0
"""
Trains a model of time series on a file of them, evaluates it beside simple baselines, and saves it with its feature
extractor, metrics, card and pictures.

    python scripts/train_time_series.py --train_file sales.csv --id_column shop --time_column month --output_dir out
    python scripts/train_time_series.py --task classify --layout wide --train_file motions.csv --output_dir out
    python scripts/train_time_series.py --task label_each_step --train_file sensors.npz --output_dir out

Forecasts are validated and tested on the last steps of each series. A recipe holds flags, one per line
(`horizon: 12`); flags on the command line override it. The same command again resumes from the last checkpoint. On
several devices: `accelerate launch scripts/train_time_series.py ...`.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rtransformer_hf.training.command_line import run_command

from transformers import (
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
    PreTrainedModel,
    default_data_collator,
)

from rtransformer_hf import (
    RTransformerForSequenceClassification,
    RTransformerForTimeSeriesPrediction,
    RTransformerForTokenClassification,
)
from rtransformer_hf.training.arguments import Defaults, parse_arguments
from rtransformer_hf.training.errors import UsageError, listed
from rtransformer_hf.training.forecasting import (
    FORECAST_METRICS,
    SEASON_CHANNELS,
    ForecastSetting,
    add_time_features,
    baseline_forecasts,
    fit_forecast_extractor,
    has_time_features,
    known_parts,
    make_windows,
    normalised_series,
)
from rtransformer_hf.training.labels import fit_label2id, log_repeats, trained_label2id
from rtransformer_hf.training.loading import has_processor
from rtransformer_hf.training.model_arguments import (
    NEW_MODEL,
    ClassifierModelArguments,
    label_head,
    make_model,
    open_config,
    trained_settings,
    unset_sizes,
)
from rtransformer_hf.training.model_card import CardArguments
from rtransformer_hf.training.output_folder import (
    ResumableTrainingArguments,
    check_labels_differ,
    prepare_output_dir,
)
from rtransformer_hf.training.report import TaskReport
from rtransformer_hf.training.run import evaluation_command, start_training, train_and_evaluate
from rtransformer_hf.training.series_labels import (
    CLASS_METRICS,
    NUMBER_METRICS,
    DataCollatorForInputValues,
    LabeledSeries,
    fit_extractor,
    hold_out,
    label_baselines,
    make_label2id,
    make_label_metrics,
)
from rtransformer_hf.training.series_trainers import ForecastTrainer, LabelTrainer, make_forecast_metrics
from rtransformer_hf.training.time_series import (
    Series,
    TimeSeriesArguments,
    common_spacing,
    load_series,
    match_channels,
    match_steps,
    print_baselines,
)

logger = logging.getLogger(__name__)

FORECAST_FLAGS = ("distribution_output", "quantile_levels", "scaling", "num_parallel_samples")


@dataclass
class TimeSeriesModelArguments(ClassifierModelArguments):
    distribution_output: str | None = field(
        default=None, metadata={"help": "What is predicted of a next value: student_t, normal or quantiles."}
    )
    quantile_levels: list[float] | None = field(
        default=None, metadata={"help": "Levels of the quantiles, more than 0 and less than 1. Unset: 0.1 to 0.9."}
    )
    scaling: str | None = field(
        default=None,
        metadata={"help": "How each series is scaled by its past: std (mean and spread), mean (size) or none."},
    )
    num_parallel_samples: int | None = field(default=None, metadata={"help": "Samples that a forecast draws."})


TRAINING = {"per_device_train_batch_size": 32, "num_train_epochs": 20}
DEFAULTS = Defaults(
    new={**NEW_MODEL, **TRAINING, "hidden_size": 64, "num_hidden_layers": 2, "hidden_dropout": 0.1}
    | {"local_window_size": 7, "learning_rate": 1e-3},
    fine_tuning={**TRAINING, "learning_rate": 3e-4},
    shown=unset_sizes(TimeSeriesModelArguments),
)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, card_args, training_args = parse_arguments(
        (TimeSeriesModelArguments, TimeSeriesArguments, CardArguments, ResumableTrainingArguments),
        argv,
        __doc__,
        DEFAULTS,
    )
    is_forecast = data_args.task == "forecast"
    metrics = FORECAST_METRICS if is_forecast else NUMBER_METRICS if data_args.regression else CLASS_METRICS
    check_flags(model_args, data_args, training_args)
    start_training(training_args, metrics)
    train = train_to_forecast if is_forecast else train_to_label
    train(model_args, data_args, card_args, training_args, argv)


def check_flags(
    model_args: TimeSeriesModelArguments, data_args: TimeSeriesArguments, training_args: ResumableTrainingArguments
):
    """
    Raises:
        UsageError: a flag has no meaning for the task.
    """
    is_forecast = data_args.task == "forecast"
    for name in ("classifier_dropout", "bidirectional") if is_forecast else FORECAST_FLAGS:
        if getattr(model_args, name) is not None:
            raise UsageError(f"--{name}: {getattr(model_args, name)} has no meaning for --task {data_args.task}")
    if training_args.label_smoothing_factor != 0 and (is_forecast or data_args.regression):
        raise UsageError(
            f"--label_smoothing_factor: {training_args.label_smoothing_factor} (expected 0: smoothing is for classes)"
        )


def train_to_forecast(
    model_args: TimeSeriesModelArguments,
    data_args: TimeSeriesArguments,
    card_args: CardArguments,
    training_args: ResumableTrainingArguments,
    argv: list[str],
):
    with training_args.main_process_first(desc="data"):
        series = known_parts(data_args, load_series(data_args))
        remember(data_args, series)
    match_checkpoint(model_args, data_args, series, data_args.covariate_columns or [])
    setting = ForecastSetting.of(data_args, series)
    num_covariates = len(data_args.covariate_columns or [])
    if has_time_features(data_args, series, setting):
        add_time_features(series, setting)
        num_covariates += 2
    extractor = fit_forecast_extractor(series, setting)
    splits = make_windows(data_args, normalised_series(series, extractor), setting)
    model = make_model(
        model_args,
        RTransformerForTimeSeriesPrediction,
        AutoModelForTimeSeriesPrediction,
        architectures=(RTransformerForTimeSeriesPrediction.__name__,),
        input_size=extractor.feature_size,
        num_dynamic_real_features=num_covariates,
    )
    check_channels(model, model_args, extractor.feature_size, num_covariates)
    model.config.context_length, model.config.prediction_length = setting.context_length, setting.horizon
    identity = {
        **asdict(model_args),
        "task": data_args.task,
        "horizon": setting.horizon,
        "context_length": setting.context_length,
        "training windows (sha256)": splits["train"].sha256(),
    }
    checkpoint = prepare_output_dir(training_args, identity)
    baselines = {split: baseline_forecasts(windows) for split, windows in splits.items() if split != "train"}
    trainer = ForecastTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=extractor,
        data_collator=default_data_collator,  # windows have one length
        compute_metrics=make_forecast_metrics(splits["validation"]),
        report=make_report(
            "time-series-forecasting",
            model_args,
            data_args,
            card_args,
            argv,
            example=[extractor.feature_size, num_covariates, setting.context_length, setting.horizon],
            baselines=baselines,
        ),
    )
    if training_args.should_log:
        print_baselines(baselines)
    sizes = ", ".join(f"{split} {len(windows):,}" for split, windows in splits.items())
    train_and_evaluate(
        trainer,
        splits,
        make_forecast_metrics,
        checkpoint,
        evaluation=settings_of(data_args) | {name: getattr(setting, name) for name in setting.FLAGS},
        data=f"{len(series):,} series of {setting.num_targets} channels to forecast and {num_covariates} covariates; "
        f"{sizes} windows of {setting.context_length} and {setting.horizon} steps, seasons of {setting.season_length}",
        commands=[evaluation_command(training_args, data_args.evaluation_data)],
    )


def train_to_label(
    model_args: TimeSeriesModelArguments,
    data_args: TimeSeriesArguments,
    card_args: CardArguments,
    training_args: ResumableTrainingArguments,
    argv: list[str],
):
    with training_args.main_process_first(desc="data"):
        found = {"train": load_series(data_args)}
        match_checkpoint(model_args, data_args, found["train"])
        remember(data_args, found["train"])
        found |= {split: load_series(data_args, split) for split in ("validation", "test")}
    series = {split: parts for split, parts in found.items() if parts is not None}
    for parts in series.values():
        match_channels(data_args, parts, series["train"][0].channels, series["train"][0].where)
    is_whole = data_args.task == "classify"
    model_class = RTransformerForSequenceClassification if is_whole else RTransformerForTokenClassification
    if data_args.regression:
        label2id, problem_type = None, "regression"
    else:
        label2id = make_label2id(series["train"], data_args.source("train"))
        problem_type = "single_label_classification" if is_whole else None
    label2id = labels_of_checkpoint(model_args, model_class.__name__, problem_type, label2id, data_args)
    head = label_head({data_args.label_column: 0} if label2id is None else label2id, problem_type)
    series = hold_out(data_args, series)
    extractor = fit_extractor(data_args, series["train"])
    splits = {
        split: LabeledSeries(parts, extractor, label2id, data_args.label_column) for split, parts in series.items()
    }
    best, where = training_args.metric_for_best_model, data_args.source("validation")
    check_labels_differ(best, ("r2",), splits["validation"].all_labels, where)
    model = make_model(
        model_args,
        model_class,
        AutoModelForSequenceClassification if is_whole else AutoModelForTokenClassification,
        architectures=(model_class.__name__,),
        head=head,
        input_size=extractor.feature_size,
    )
    check_channels(model, model_args, extractor.feature_size)
    digest = splits["train"].sha256()
    identity = {**asdict(model_args), **head, "task": data_args.task, "training series (sha256)": digest}
    checkpoint = prepare_output_dir(training_args, identity)
    num_classes = None if label2id is None else len(label2id)

    def make_metrics(split: LabeledSeries):
        return make_label_metrics(split, num_classes)

    baselines = {
        split: label_baselines(splits["train"], parts, num_classes)
        for split, parts in splits.items()
        if split != "train"
    }
    trainer = LabelTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=extractor,
        data_collator=DataCollatorForInputValues(extractor),
        compute_metrics=make_metrics(splits["validation"]),
        report=make_report(
            f"time-series-{'regression' if data_args.regression else 'classification' if is_whole else 'labelling'}",
            model_args,
            data_args,
            card_args,
            argv,
            example=[extractor.feature_size],
            baselines=baselines,
            baseline_rows={split: splits[split].sha256() for split in baselines},
        ),
    )
    if training_args.should_log:
        print_baselines(baselines)
        log_repeats(
            {split: [values.tobytes() for values in parts.values] for split, parts in splits.items()}, data_args.source
        )
    sizes = ", ".join(f"{split} {len(parts):,}" for split, parts in splits.items())
    kind = "numbers" if label2id is None else f"{num_classes:,} labels"
    train_and_evaluate(
        trainer,
        splits,
        make_metrics,
        checkpoint,
        evaluation=settings_of(data_args),
        data=f"{sizes} series of {extractor.feature_size} channels with {kind}",
        commands=[evaluation_command(training_args, data_args.evaluation_data)],
    )


def match_checkpoint(
    model_args: TimeSeriesModelArguments,
    data_args: TimeSeriesArguments,
    series: list[Series],
    covariates: Sequence[str] = (),
):
    """
    Puts the channels of the series, and steps that have columns of their own, in the order in which a model to train
    further has learnt them, where it knows all of them by name. Other names are taken in the order of the data, with a
    warning.

    Args:
        covariates: the last channels, to forecast with.

    Raises:
        UsageError: the model knows some of the channels, or its feature extractor can't be read.
    """
    path = model_args.model_name_or_path
    if path is None:
        return
    open_config(path)  # names what is no model at all
    steps, learnt = series[0].step_columns, trained_settings(path).get("step_columns")
    if steps and learnt and set(steps) == set(learnt):
        match_steps(series, learnt, path)
    elif steps and learnt:
        logger.warning(
            f"--model_name_or_path {path!r} has learnt other steps, {listed(learnt)}; those of the data are read in "
            f"its order, {listed(steps)}"
        )
    try:
        known = AutoFeatureExtractor.from_pretrained(path).channel_names if has_processor(path) else None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--model_name_or_path {path!r}: its feature extractor can't be read (expected that of series): {error}"
        ) from error
    if known is None or (data_args.layout == "wide" and data_args.task == "forecast"):
        return
    names, own = series[0].channels, [name for name in known if name not in SEASON_CHANNELS]
    if set(names) == set(own):
        learnt = own[len(own) - len(covariates) :]
        if set(learnt) != set(covariates):
            raise UsageError(
                f"--covariate_columns: {' '.join(covariates)} (expected {' '.join(learnt)}, as --model_name_or_path "
                f"{path!r} has learnt)"
            )
        match_channels(data_args, series, own, path)
    elif set(names) & set(own):
        raise UsageError(
            f"--model_name_or_path {path!r} has learnt the channels {listed(own)}, {series[0].where} has "
            f"{listed(names)} (expected the same, or none of them, which are then taken in order)"
        )
    elif len(names) > 1 and len(names) == len(own):
        logger.warning(
            f"--model_name_or_path {path!r} has learnt other channels: "
            + ", ".join(f"{name} is read as {other}" for name, other in zip(names, own, strict=True))
        )


def labels_of_checkpoint(
    model_args: TimeSeriesModelArguments,
    architecture: str,
    problem_type: str | None,
    label2id: dict[str, int] | None,
    data_args: TimeSeriesArguments,
) -> dict[str, int] | None:
    """
    The class indices of a classifier to train further; else those of the data.

    Raises:
        UsageError: it was trained for another kind of labels, or does not know them.
    """
    path = model_args.model_name_or_path
    if path is None:
        return label2id
    config = open_config(path)
    trained = trained_label2id(config, architecture)
    if trained is None:
        return label2id
    if (config.problem_type == "regression") != (problem_type == "regression"):
        raise UsageError(
            f"--model_name_or_path: {path!r} was trained for {config.problem_type or 'classes'}, the data is for "
            f"{problem_type or 'classes'} (expected data of the same kind, or a model of another task)"
        )
    return None if label2id is None else fit_label2id(label2id, trained, data_args.source("train"))


def check_channels(
    model: PreTrainedModel, model_args: TimeSeriesModelArguments, num_channels: int, num_covariates: int = 0
):
    """
    Raises:
        UsageError: the model to train further reads another number of channels.
    """
    config = model.config
    found = (config.input_size, config.num_dynamic_real_features)
    if found != (num_channels, num_covariates):
        raise UsageError(
            f"--model_name_or_path {model_args.model_name_or_path!r} reads {found[0]} channels, {found[1]} of them "
            f"covariates; the data has {num_channels} and {num_covariates} (expected as many)"
        )


def remember(data_args: TimeSeriesArguments, series: Sequence[Series]):
    """
    Puts what the training series tell of their steps into the arguments: series that are read from now on are to have
    the same.

    Raises:
        UsageError: their time stamps are not equally far apart.
    """
    spacing = common_spacing(series)
    data_args.step_columns = series[0].step_columns
    data_args.spacing = None if spacing is None else asdict(spacing)


def settings_of(data_args: TimeSeriesArguments) -> dict:
    """How the data is to be read again."""
    names = ("task", "layout", "id_column", "time_column", "target_columns", "covariate_columns", "label_column")
    learnt = ("step_columns", "spacing")
    return {name: getattr(data_args, name) for name in (*names, "regression", "time_features", *learnt)}


def make_report(
    task: str,
    model_args: TimeSeriesModelArguments,
    data_args: TimeSeriesArguments,
    card_args: CardArguments,
    argv: list[str],
    example: list[int],
    baselines: dict[str, dict[str, dict[str, float]]],
    baseline_rows: dict[str, str] | None = None,
) -> TaskReport:
    return TaskReport(
        task=task,
        command=["scripts/train_time_series.py", *argv],
        card=card_args,
        data_name=data_args.data_name,
        dataset_id=data_args.dataset_id,
        base_model=model_args.model_name_or_path,
        example=example,
        baselines=[
            (split, name, metric, value)
            for split, found in baselines.items()
            for name, metrics in found.items()
            for metric, value in metrics.items()
        ],
        baseline_rows=baseline_rows or {},
    )


if __name__ == "__main__":
    run_command(main)
