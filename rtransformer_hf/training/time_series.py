# SPDX-License-Identifier: Apache-2.0
"""Time series from files: tables in long or wide layout, lists in cells, or arrays, checked cell by cell."""

import glob
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from .data_files import DataFileArguments, check_kinds, kind_of, load_data_set, load_files, suffix
from .errors import UsageError, listed
from .flags import number, positive_integer
from .labels import LABEL_KINDS, names_of, without_fractions

logger = logging.getLogger(__name__)

TASKS = ("forecast", "classify", "label_each_step")
LAYOUTS = ("long", "wide")
MAX_UNEVENNESS = 1e-3  # of the distance between steps
FORECAST_LENGTHS = (
    *("horizon", "context_length", "season_length"),
    *("validation_length", "test_length", "window_stride"),
)  # in steps, of no other task
LARGEST = 1e18  # size of a value: the squares of many such values are still numbers in float32
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")  # cells without a value, in any case
SEASONS = {"second": 3600, "business day": 5, "day": 7, "week": 52}
NANOSECONDS = {"second": 10**9, "hour": 3600 * 10**9, "day": 24 * 3600 * 10**9, "week": 7 * 24 * 3600 * 10**9}


@dataclass
class TimeSeriesArguments(DataFileArguments):
    file_kinds = "CSV, TSV, JSON, Parquet or NPZ"
    step_columns = None  # names of the steps that --layout wide has in its columns to classify, once they are known
    spacing = None  # of the time stamps that a model was trained on, as a dict, where it is known

    task: str = field(
        default="forecast",
        metadata={"help": "forecast what comes next, classify whole series, or label_each_step of them."},
    )
    layout: str = field(
        default="long",
        metadata={
            "help": "long: a row a step, and --id_column tells the series apart. wide: to forecast, a column a "
            "series; to classify, a row a series and a column a step. A list in a cell, and an array of a .npz file, "
            "is a whole series in either."
        },
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column that names the series of a row. Unset: each file is one series."}
    )
    time_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the time stamps, dates or numbers, by which rows are sorted. Unset: rows are evenly "
            "spaced, in the order of the file."
        },
    )
    target_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the values to forecast, or to classify by; each is a channel. Unset: all that no "
            "other flag names. An empty cell is a missing value."
        },
    )
    covariate_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns of values that are known ahead of time, to forecast with. Static ones repeat."},
    )
    label_column: str = field(
        default="label", metadata={"help": "Column of the labels, to classify series or to label each step."}
    )
    regression: bool = field(
        default=False, metadata={"help": "Labels are numbers to predict, in place of classes. Not to forecast."}
    )
    horizon: int | None = field(
        default=None,
        metadata={"help": "Steps to forecast. Unset: one season, from 8 to 96.", "type": positive_integer},
    )
    context_length: int | None = field(
        default=None,
        metadata={
            "help": "Steps that a forecast reads. Unset: three horizons or two seasons, at most 512.",
            "type": positive_integer,
        },
    )
    season_length: int | None = field(
        default=None,
        metadata={
            "help": "Steps of a season, for MASE, the seasonal naive baseline and --time_features. Unset: by "
            "the spacing of --time_column: 12 for months, 7 for days, 24 for hours; else 1.",
            "type": positive_integer,
        },
    )
    time_features: bool = field(
        default=True,
        metadata={
            "help": "Forecast with the place of each step in its season, as two covariates. With --time_column."
        },
    )
    validation_length: int | None = field(
        default=None,
        metadata={
            "help": "Steps at the end of each series, ahead of the test steps, to validate on. Unset: --horizon.",
            "type": positive_integer,
        },
    )
    test_length: int | None = field(
        default=None,
        metadata={
            "help": "Steps at the very end of each series to test on; 0: none. Unset: --horizon.",
            "type": number(int, at_least=0),
        },
    )
    window_stride: int | None = field(
        default=None,
        metadata={
            "help": "Steps from the start of one training window to the next one's. Unset: 1.",
            "type": positive_integer,
        },
    )
    padding_side: str | None = field(
        default=None, metadata={"help": "Side on which series to classify are padded: right or left. Unset: right."}
    )

    def __post_init__(self):
        if self.task == "forecast" and self.validation_fraction is not None:
            raise UsageError(
                f"--validation_fraction: {self.validation_fraction}: forecasts are validated on later steps of the "
                "training series (expected --validation_length)"
            )
        super().__post_init__()
        for name, accepted in (("task", TASKS), ("layout", LAYOUTS), ("padding_side", ("right", "left"))):
            if (value := getattr(self, name)) is not None and value not in accepted:
                raise UsageError(f"--{name}: {value!r} (expected {', '.join(accepted)})")
        if self.task == "forecast":
            for name in ("validation_file", "test_file", "validation_split", "test_split"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name}: forecasts are validated and tested on later steps of the training series "
                        "(expected --validation_length and --test_length)"
                    )
            if self.regression:
                raise UsageError("--regression goes with --task classify and label_each_step (got forecast)")
            if self.padding_side is not None:
                raise UsageError(
                    f"--padding_side: {self.padding_side} goes with --task classify and label_each_step (got "
                    "forecast, whose windows have one length)"
                )
            if self.window_stride is None:
                self.window_stride = 1
        else:
            if self.covariate_columns is not None:
                raise UsageError(
                    f"--covariate_columns go with --task forecast (got {self.task}); name them as targets"
                )
            for name in FORECAST_LENGTHS:
                if (value := getattr(self, name)) is not None:
                    raise UsageError(f"--{name}: {value} goes with --task forecast (got {self.task})")
        if self.task == "label_each_step" and self.layout == "wide":
            raise UsageError("--layout wide has no place for a label at each step (expected long)")
        if self.layout == "wide" and self.task == "classify" and self.time_column is not None:
            raise UsageError("--time_column: a row of --layout wide is a whole series to classify (expected none)")
        if self.layout == "wide" and self.task == "forecast" and self.id_column is not None:
            raise UsageError("--id_column: a column of --layout wide is a series to forecast (expected none)")
        if self.is_npz:
            for name in ("id_column", "time_column", "target_columns", "covariate_columns"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name}: a .npz file has arrays in place of columns (expected none; values, labels and "
                        "lengths are read)"
                    )

    @property
    def is_npz(self) -> bool:
        return any(suffix(file) == ".npz" for file in self.train_file or [])

    @property
    def evaluation_data(self) -> list[str] | None:
        """As of `DataFileArguments`; forecasts are tested on the last steps of the training series."""
        if self.task != "forecast":
            return super().evaluation_data
        if self.train_file:
            return ["--data", self.train_file[0]] if len(self.train_file) == 1 else None
        return None if self.dataset_config_name else ["--data", self.dataset_name, "--split", self.train_split]

    @property
    def needs_labels(self) -> bool:
        return self.task != "forecast"

    @property
    def unread_columns(self) -> set[str]:
        """Columns that are no channels although no flag names them."""
        return set()

    def named_columns(self) -> dict[str, str]:
        """Flags with the columns that they name, but for those of the targets and covariates."""
        flags = {"--id_column": self.id_column, "--time_column": self.time_column}
        flags |= {"--label_column": self.label_column} if self.needs_labels else {}
        return {flag: column for flag, column in flags.items() if column is not None}


@dataclass
class Series:
    """
    Args:
        name: of the series, in messages and pictures.
        values: (time, channels) float64: targets, then covariates; NaN is a missing value.
        where: the file or split, for messages.
        rows: (time,) the rows that the steps come from; of a whole series in one row, that row.
        channels: names of the columns, for messages.
        labels: a name or number for the whole series, or one for each step.
        steps: (time,) numbers of the steps in time, the same for all series; None without time stamps.
        spacing: how far apart the steps are.
        times: (time,) the time stamps, as of `parse_times`.
        step_columns: names of the columns that the steps come from, where each has its own; missing values at the
            end make the series shorter.
    """

    name: str
    values: np.ndarray
    where: str
    rows: np.ndarray
    channels: list[str]
    labels: str | float | list[str] | list[float] | None = None
    steps: np.ndarray | None = None
    spacing: "Spacing | None" = None
    times: np.ndarray | None = None
    step_columns: list[str] | None = None


# From files to series


def load_series(args: TimeSeriesArguments, split: str = "train") -> list[Series] | None:
    """
    The series of a split, None where the arguments ask for none.

    Raises:
        UsageError: files, columns or cells can't be used; the message names file, row and column.
    """
    files = getattr(args, f"{split}_file")
    if files and any(suffix(file) == ".npz" for file in files):
        if not all(suffix(file) == ".npz" for file in files):
            raise UsageError(f"{args.source(split)} mixes .npz with other files (expected one format)")
        found = [read_npz(args, args.source(split, [file]), file) for file in files]
    else:
        load = load_files if files else load_data_set
        parts = load(args, split, streaming=False)
        if parts is None:
            return None
        found = [
            read_rows(args, where, with_dates_as_written(args, split, rows, index))
            for index, (where, rows) in enumerate(parts)
        ]
    check_names(args, found)
    series = [part for parts in found for part in parts]
    match_channels(args, series, series[0].channels, series[0].where)
    order_steps(args, series)
    check_channels(series)
    if args.needs_labels and not args.regression:
        name_labels(args, series)
    return series


def with_dates_as_written(
    args: TimeSeriesArguments, split: str, rows: datasets.Dataset, index: int
) -> datasets.Dataset:
    """
    Rows whose time stamps are text, as in CSV files, where they come from JSON: the reader takes dates in strings for
    time stamps, and leaves out their time zone.

    Args:
        rows: of the file of this `index` among those of the split, or of the data set.
    """
    column = args.time_column
    if rows.info.builder_name != "json" or not kind_of(rows.features.get(column)).startswith("timestamp"):
        return rows
    files = getattr(args, f"{split}_file")
    if files:
        source = {"path": "json", "data_files": {"train": [glob.escape(files[index])]}, "split": "train"}
    else:
        name = getattr(args, f"{split}_split") or split
        source = {"path": args.dataset_name, "name": args.dataset_config_name, "split": name}
    features = datasets.Features({**rows.features, column: datasets.Json()})  # which is left as it is
    written = datasets.load_dataset(**source, features=features)
    return written.remove_columns(column).add_column(column, written[column][:])


def check_names(args: TimeSeriesArguments, files: Sequence[Sequence[Series]]):
    """
    Raises:
        UsageError: a series to forecast goes on in another file: its end there would be no end to test on.
    """
    if args.task != "forecast" or (args.id_column is None and args.layout == "long"):
        return
    places = {}
    for index, parts in enumerate(files):
        for part in parts:
            other, where = places.setdefault(part.name, (index, part.where))
            if other != index:
                flag = "--layout wide" if args.id_column is None else f"--id_column {args.id_column!r}"
                raise UsageError(
                    f"{flag}: the series {part.name!r} is in {where} and in {part.where} (expected the whole series, "
                    "whose end is forecast, in one file)"
                )


def name_labels(args: TimeSeriesArguments, series: Sequence[Series]):
    """Gives the labels their names, which depend on all labels there are, as of `without_fractions`."""
    is_whole = isinstance(series[0].labels, str)
    names = without_fractions(
        [[part.labels] if is_whole else part.labels for part in series],
        lambda index, step: (
            f"{series[index].where}: column {args.label_column!r}, row {series[index].rows[step]} (from 0)"
        ),
    )
    for part, found in zip(series, names, strict=True):
        part.labels = found[0] if is_whole else found


def read_rows(args: TimeSeriesArguments, where: str, rows: datasets.Dataset) -> list[Series]:
    """The series of one file or split."""
    columns = args.named_columns()
    covariates = args.covariate_columns or []
    given = [*columns.items(), *(("--target_columns", name) for name in args.target_columns or [])]
    for flag, column in [*given, *(("--covariate_columns", name) for name in covariates)]:
        if column not in rows.column_names:
            raise UsageError(
                f"{flag}: {where} has no column {column!r} (expected one of {', '.join(map(repr, rows.column_names))})"
            )
    check_header(args, where, rows.column_names)
    check_kinds(where, rows, columns)
    taken = {*columns.values(), *covariates, *args.unread_columns}
    targets = args.target_columns or [name for name in rows.column_names if name not in taken]
    for name in targets:
        if name in taken:
            raise UsageError(f"--target_columns: {name!r} is named by another flag as well (expected one of the two)")
    if not targets:
        raise UsageError(f"--target_columns: {where} has no column left for values (expected at least one)")
    if len(rows) == 0:
        raise UsageError(f"{where} holds no rows (expected at least one)")
    table = rows.select_columns([*columns.values(), *targets, *covariates]).with_format("arrow")[:]
    is_list = [type(rows.features[name]).__name__ in ("List", "LargeList", "Sequence") for name in targets]
    label_feature = rows.features[args.label_column] if args.needs_labels else None
    if all(is_list):
        return read_lists(args, where, table.to_pandas(), targets, label_feature)
    if any(is_list):
        name = targets[is_list.index(True)]
        raise UsageError(f"--target_columns: {name!r} of {where} holds lists, others hold numbers (expected one kind)")
    frame = table.to_pandas()
    labels = read_labels(args, frame[args.label_column], label_feature, where) if args.needs_labels else None
    values = np.stack([numbers(frame[name], where, name) for name in [*targets, *covariates]], axis=1)
    if args.layout == "wide" and args.task == "classify":
        return read_wide_rows(args, where, frame, values, targets, labels)
    if args.layout == "wide":
        return read_wide_columns(args, where, frame, values, targets)
    return read_long(args, where, frame, values, [*targets, *covariates], labels)


def check_header(args: TimeSeriesArguments, where: str, columns: Sequence[str]):
    """
    Raises:
        UsageError: the first line of a CSV file is one of numbers, or all columns are read and one has no name.
    """
    unnamed = [name for name in columns if re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name)]
    if unnamed and args.target_columns is None:
        raise UsageError(
            f"--target_columns: {where} has a column without a name, as a table's index is saved by pandas: "
            f"{unnamed[0]!r} (expected the columns to read by --target_columns, or a file without it)"
        )
    found = pd.to_numeric(pd.Series(columns), errors="coerce").to_numpy(dtype=np.float64)
    is_count = (found == found.round()).all() and (len(found) > 1 or found[0] == 0)
    if not np.isnan(found).any() and not is_count:
        raise UsageError(
            f"{where} has numbers for names of columns, {listed(map(repr, columns))} (expected the first line to name "
            "the columns)"
        )


def numbers(cells: pd.Series, where: str, column: str, rows: np.ndarray | None = None) -> np.ndarray:
    """
    Cells as float64, NaN where one is empty.

    Args:
        rows: those of the cells, where they are not counted from 0.

    Raises:
        UsageError: a cell holds something else.
    """
    if cells.dtype.kind in "iuf":
        values = cells.to_numpy(dtype=np.float64)
        is_missing = np.isnan(values)
    else:
        text = cells.astype(str).str.strip()
        is_missing = cells.isna().to_numpy() | text.str.lower().isin(MISSING).to_numpy()
        values = pd.to_numeric(text.where(~is_missing), errors="coerce").to_numpy(dtype=np.float64)
    is_wrong = ~is_missing & ~(np.abs(values) <= LARGEST)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise UsageError(
            f"{where}: column {column!r} holds {str(cells.iloc[index])!r} in row "
            f"{index if rows is None else rows[index]} (from 0), and no usable number in {is_wrong.sum()} cells in "
            f"all (expected numbers such as 1234.5, at most {LARGEST:g}, and empty cells for missing values)"
        )
    return values


def read_long(
    args: TimeSeriesArguments,
    where: str,
    frame: pd.DataFrame,
    values: np.ndarray,
    channels: list[str],
    labels: list[str] | list[float] | None,
) -> list[Series]:
    """A row a step; rows of a series are put in the order of their time stamps."""
    if args.id_column is None:
        names, group = [file_name(where)], np.zeros(len(frame), dtype=int)
    else:
        ids = frame[args.id_column]
        check_filled(ids, where, args.id_column)
        group, names = pd.factorize(ids.astype(str).str.strip())
    times = None if args.time_column is None else parse_times(frame[args.time_column], where, args.time_column)
    series = []
    for index, name in enumerate(names):
        rows = np.flatnonzero(group == index)
        if times is not None:
            rows = rows[np.argsort(times[rows], kind="stable")]
        found = None if labels is None else [labels[row] for row in rows]
        if args.task == "classify" and args.needs_labels:
            for row, label in zip(rows, found, strict=True):
                if label != found[0]:
                    raise UsageError(
                        f"{where}: column {args.label_column!r} holds {label!r} in row {row} (from 0) and "
                        f"{found[0]!r} in row {rows[0]}, both of series {name!r} (expected one label for a series; "
                        "--task label_each_step takes one for each step)"
                    )
            found = found[0]
        series.append(Series(str(name), values[rows], where, rows, channels, found))
    if times is not None:
        spacing = find_spacing(args, times[series[0].rows], series[0])
        for part in series:
            part.times, part.spacing = times[part.rows], spacing
            part.steps = spacing.number(part.times, part, args.time_column)
    return series


def read_wide_columns(
    args: TimeSeriesArguments, where: str, frame: pd.DataFrame, values: np.ndarray, targets: list[str]
) -> list[Series]:
    """A column a series, to forecast, with the covariates of all."""
    order, steps, spacing, times = np.arange(len(frame)), None, None, None
    if args.time_column is not None:
        times = parse_times(frame[args.time_column], where, args.time_column)
        order = np.argsort(times, kind="stable")
        times = times[order]
        whole = Series(file_name(where), values[order], where, order, targets)
        spacing = find_spacing(args, times, whole)
        steps = spacing.number(times, whole, args.time_column)
    covariates = values[order, len(targets) :]
    return [
        Series(
            name,
            np.column_stack([values[order, index], covariates]),
            where,
            order,
            [name, *(args.covariate_columns or [])],
            steps=steps,
            spacing=spacing,
            times=times,
        )
        for index, name in enumerate(targets)
    ]


def read_wide_rows(
    args: TimeSeriesArguments,
    where: str,
    frame: pd.DataFrame,
    values: np.ndarray,
    targets: list[str],
    labels: list[str] | list[float] | None,
) -> list[Series]:
    """A row a series, to classify; missing cells at its end make it shorter."""
    names = frame.index if args.id_column is None else frame[args.id_column]
    series = []
    for row, (name, steps) in enumerate(zip(names, values, strict=True)):
        is_there = ~np.isnan(steps)
        if not is_there.any():
            raise UsageError(
                f"{where}: row {row} (from 0) has no value in the columns {targets[0]!r} to {targets[-1]!r}"
            )
        steps = until_last(steps[:, None])
        label = None if labels is None else labels[row]
        rows = np.full(len(steps), row)
        series.append(Series(str(name), steps, where, rows, ["value"], label, step_columns=targets))
    return series


def until_last(steps: np.ndarray) -> np.ndarray:
    """(time, 1) values without the missing ones at the end."""
    return steps[: np.flatnonzero(~np.isnan(steps[:, 0]))[-1] + 1]


def order_steps(args: TimeSeriesArguments, series: Sequence[Series]):
    """
    Puts the steps of `--layout wide` in the order that is known, or else in that of the first file.

    Raises:
        UsageError: a file has other steps, or the first has them in no order.
    """
    first = next((part for part in series if part.step_columns is not None), None)
    if first is None:
        return
    if args.step_columns is not None:
        match_steps(series, args.step_columns, "the training series")
    else:
        check_order(first.where, first.step_columns)
        match_steps(series, first.step_columns, first.where)


def match_steps(series: Sequence[Series], columns: Sequence[str], where: str):
    """
    Puts the steps of series whose steps have columns of their own in one order, by the names of the columns.

    Args:
        series: changed in place.
        columns: names of the columns, in order.
        where: the file or series that have them, for messages.

    Raises:
        UsageError: a series has other columns.
    """
    for part in series:
        if part.step_columns is None or part.step_columns == columns:
            continue
        missing = [name for name in columns if name not in part.step_columns]
        extra = [name for name in part.step_columns if name not in columns]
        if missing or extra:
            said = f"has no column {missing[0]!r}" if missing else f"has the column {extra[0]!r}"
            raise UsageError(
                f"--layout wide: {part.where} {said} (expected the steps that {where} has, {listed(columns)}, and no "
                "other columns of numbers)"
            )
        values = np.full((len(columns), 1), np.nan)
        values[: len(part.values)] = part.values
        part.values = until_last(values[[part.step_columns.index(name) for name in columns]])
        part.rows = np.full(len(part.values), part.rows[0])
        part.step_columns = list(columns)


def check_order(where: str, columns: Sequence[str]):
    """
    Raises:
        UsageError: columns are numbered, but neither upwards nor downwards, as where a tool has sorted their names.
    """
    numbered = [re.fullmatch(r"(.*?)(\d+)", column) for column in columns]
    if None in numbered or len({found[1] for found in numbered}) > 1:
        return
    gaps = np.diff([int(found[2]) for found in numbered])
    if (gaps > 0).any() and (gaps < 0).any():
        index = int(((gaps > 0) != (gaps[0] > 0)).argmax())
        raise UsageError(
            f"--layout wide: {where} has the column {columns[index + 1]!r} after {columns[index]!r} (expected the "
            "steps in order)"
        )


def read_lists(
    args: TimeSeriesArguments,
    where: str,
    frame: pd.DataFrame,
    targets: list[str],
    label_feature: datasets.ClassLabel | datasets.Value | datasets.List | None,
) -> list[Series]:
    """A row a series, with a list for each channel."""
    channels = [*targets, *(args.covariate_columns or [])]
    if args.time_column is not None:
        raise UsageError(f"--time_column: a row of {where} is a whole series, evenly spaced (expected none)")
    lists = {name: [np.atleast_1d(() if cells is None else cells) for cells in frame[name]] for name in channels}
    for row in range(len(frame)):
        lengths = {name: len(cells[row]) for name, cells in lists.items()}
        if len(set(lengths.values())) > 1 or min(lengths.values()) == 0:
            raise UsageError(
                f"{where}: the lists of row {row} (from 0) have the lengths {lengths} (expected one, not 0)"
            )
    lengths = [len(cells) for cells in lists[channels[0]]]
    rows = np.repeat(np.arange(len(frame)), lengths)
    ends = np.cumsum(lengths)[:-1]
    columns = [numbers(pd.Series(flat(cells)), where, name, rows) for name, cells in lists.items()]
    labels = [None] * len(frame)
    if args.needs_labels and args.task == "classify":
        labels = read_labels(args, frame[args.label_column], label_feature, where)
    elif args.needs_labels:
        labels = read_label_lists(args, frame[args.label_column], label_feature, where, lengths)
    names = frame.index if args.id_column is None else frame[args.id_column]
    parts = zip(names, np.split(np.stack(columns, axis=1), ends), np.split(rows, ends), labels, strict=True)
    return [Series(str(name), values, where, found, channels, label) for name, values, found, label in parts]


def read_label_lists(
    args: TimeSeriesArguments,
    cells: pd.Series,
    feature: datasets.ClassLabel | datasets.Value | datasets.List,
    where: str,
    lengths: Sequence[int],
) -> list[list[str]] | list[list[float]]:
    """A label for each step of each series, whose `lengths` are known."""
    for row, (labels, length) in enumerate(zip(cells, lengths, strict=True)):
        if not isinstance(labels, (list, np.ndarray)):
            raise UsageError(
                f"{where}: column {args.label_column!r} holds {labels!r} in row {row} (from 0) (expected a list, "
                "with a label for each step)"
            )
        if len(labels) != length:
            raise UsageError(
                f"{where}: row {row} (from 0) has {len(labels)} labels for {length} steps (expected as many)"
            )
    rows = np.repeat(np.arange(len(cells)), lengths)
    found = iter(read_labels(args, pd.Series(flat(cells)), feature.feature, where, rows))
    return [list(itertools.islice(found, length)) for length in lengths]


def flat(lists: Sequence[Sequence]) -> np.ndarray | list:
    """The cells of all lists, one after the other."""
    if all(getattr(cells, "dtype", np.dtype(object)).kind in "iuf" for cells in lists):
        return np.concatenate(lists)
    return list(itertools.chain.from_iterable(lists))


def read_npz(args: TimeSeriesArguments, where: str, file: str) -> list[Series]:
    """
    Arrays `values` (series, time, channels) or (series, time), `labels` (series,) or (series, time), and optionally
    `lengths` (series,), for series that end before the array does.
    """
    try:
        with np.load(file) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"{where} can't be read (expected a .npz file of plain arrays): {error}") from error
    wanted = ["values", *(["labels"] if args.needs_labels else [])]
    for name in wanted:
        if name not in found:
            raise UsageError(
                f"{where} has no array {name!r} (expected {' and '.join(wanted)}; it has {sorted(found)})"
            )
    values = found["values"]
    if values.ndim not in (2, 3) or values.dtype.kind not in "biuf" or 0 in values.shape:
        raise UsageError(
            f"{where}: `values` are {values.dtype} of the shape {values.shape} (expected numbers of the shape "
            "(series, time) or (series, time, channels))"
        )
    values = values.reshape(*values.shape[:2], -1).astype(np.float64)
    lengths = found.get("lengths", np.full(len(values), values.shape[1]))
    if (
        lengths.shape != (len(values),)
        or lengths.dtype.kind not in "iu"
        or not ((lengths >= 1) & (lengths <= values.shape[1])).all()
    ):
        raise UsageError(f"{where}: `lengths` must be a number from 1 to {values.shape[1]} for each series")
    if (np.abs(values) > LARGEST).any():
        index = np.argwhere(np.abs(values) > LARGEST)[0].tolist()
        raise UsageError(
            f"{where}: `values` hold {values[tuple(index)]:g} at {index} (series, step, channel) (expected numbers of "
            f"at most {LARGEST:g}, and NaN for missing values)"
        )
    labels = [None] * len(values)
    if args.needs_labels:
        labels = read_label_array(args, found["labels"], where, values.shape[:2], lengths)
    channels = [f"channel {index}" for index in range(values.shape[2])]
    return [
        Series(str(index), steps[:length], where, np.full(length, index), channels, label)
        for index, (steps, length, label) in enumerate(zip(values, lengths, labels, strict=True))
    ]


def read_label_array(
    args: TimeSeriesArguments, labels: np.ndarray, where: str, shape: tuple[int, int], lengths: np.ndarray
) -> list:
    """Labels of a .npz file: one for each series, or lists of one for each step up to its end."""
    is_whole = args.task == "classify"
    expected = shape[:1] if is_whole else shape
    if labels.shape != expected or labels.dtype.kind not in "biufUS":
        raise UsageError(
            f"{where}: `labels` are {labels.dtype} of the shape {labels.shape} (expected names or numbers of the "
            f"shape {expected})"
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    kind = {"b": "bool", "i": "int64", "u": "uint64", "f": "float64"}.get(labels.dtype.kind, "string")
    rows = np.repeat(np.arange(len(labels)), 1 if is_whole else lengths)
    cells = labels if is_whole else labels[np.arange(shape[1]) < lengths[:, None]]
    found = read_labels(args, pd.Series(cells), datasets.Value(kind), where, rows)
    if is_whole:
        return found
    return [found[end - length : end] for end, length in zip(lengths.cumsum(), lengths, strict=True)]


def read_labels(
    args: TimeSeriesArguments,
    cells: pd.Series,
    feature: datasets.ClassLabel | datasets.Value | datasets.List,
    where: str,
    rows: np.ndarray | None = None,
) -> list[str] | list[float]:
    """
    Names as of `names_of`; numbers, for a regression.

    Args:
        feature: what the column holds.
        rows: those of the cells, where they are not counted from 0.

    Raises:
        UsageError: a label is missing, no number, or of another kind than labels are.
    """
    if isinstance(feature, datasets.ClassLabel):
        cells = cells.where(cells != -1)  # as data sets of the Hub have a missing one
    check_filled(cells, where, args.label_column, rows)
    if isinstance(feature, datasets.ClassLabel):
        cells, feature = pd.Series(feature.int2str(cells.astype(int).tolist())), datasets.Value("string")
    if args.regression:
        values = numbers(cells, where, args.label_column, rows)
        check_filled(pd.Series(values), where, args.label_column, rows)
        return values.tolist()
    if not kind_of(feature).startswith(LABEL_KINDS):
        raise UsageError(
            f"{where}: column {args.label_column!r} holds {kind_of(feature)} (expected classes (ClassLabel), names or "
            "integers)"
        )
    return names_of(cells.tolist(), feature)


def check_filled(cells: pd.Series, where: str, column: str, rows: np.ndarray | None = None):
    is_missing = (cells.isna() | (cells.astype(str).str.strip() == "")).to_numpy()
    if is_missing.any():
        row = int(is_missing.argmax())
        raise UsageError(
            f"{where}: column {column!r} is empty in row {row if rows is None else rows[row]} (from 0), and in "
            f"{is_missing.sum()} cells in all (expected a value in each)"
        )


def check_channels(series: Sequence[Series]):
    """
    Raises:
        UsageError: a channel of a series has no value.
    """
    for part in series:
        is_empty = np.isnan(part.values).all(axis=0)
        if is_empty.any():
            raise UsageError(
                f"{place(part)}: column {part.channels[is_empty.argmax()]!r} has no value at all (expected at least "
                "one)"
            )


def match_channels(args: TimeSeriesArguments, series: Sequence[Series], channels: Sequence[str], where: str):
    """
    Puts the channels of each series in one order. Where one side has no names, as in arrays or where a column is a
    series, the order of the file counts.

    Args:
        args: how the series were read.
        series: changed in place.
        channels: names of the channels, in order.
        where: the file or model that has them, for messages.

    Raises:
        UsageError: a series has other channels.
    """
    unnamed = [f"channel {index}" for index in range(len(channels))]
    has_names = list(channels) != unnamed and not (args.layout == "wide" and args.task == "forecast")
    for part in series:
        is_same = len(part.channels) == len(channels)
        if is_same and has_names and part.channels != unnamed:
            is_same = set(part.channels) == set(channels)
            if is_same:
                order = [part.channels.index(name) for name in channels]
                part.values, part.channels = part.values[:, order], list(channels)
        if not is_same:
            raise UsageError(
                f"{part.where} has {len(part.channels)} channels ({listed(part.channels)}), {where} has "
                f"{len(channels)} ({listed(channels)}) (expected the same)"
            )


def place(series: Series, start: int = 0, end: int | None = None) -> str:
    """The file and the rows of a series, or of some of its steps, for messages."""
    rows = series.rows[start:end]
    span = f"row {rows[0]}" if rows.min() == rows.max() else f"rows {rows.min()} to {rows.max()}"
    return f"{series.where}, {span} (from 0), series {series.name!r}"


def file_name(where: str) -> str:
    return Path(where.partition(" ")[2]).name


# Time stamps


def parse_times(cells: pd.Series, where: str, column: str) -> np.ndarray:
    """
    Dates as datetime64[ns], numbers as int64 or float64. Dates with a time zone are put in UTC, where clocks do not
    change; if all are midnights of their zone, they are those days.

    Raises:
        UsageError: a cell is empty, or no date.
    """
    check_filled(cells, where, column)
    if pd.api.types.is_integer_dtype(cells) and cells.between(10**7, 10**8 - 1).all():
        cells = cells.astype(str)  # 20261127 is a date in any file
    if pd.api.types.is_numeric_dtype(cells):
        return as_numbers(cells)
    local, is_compact = None, False
    if pd.api.types.is_datetime64_any_dtype(cells):
        dates = cells
        if cells.dt.tz is not None:
            local, dates = cells.dt.tz_localize(None), cells.dt.tz_convert("UTC")
    else:
        found, text = pd.to_numeric(cells, errors="coerce"), cells.astype(str)
        is_compact = found.notna().all() and text.str.fullmatch(r"\d{8}").all()
        if found.notna().all() and not is_compact:
            return as_numbers(found)
        order = date_order(text, where, column)
        check_zones(text, where, column)
        options = {"errors": "coerce", "format": "mixed", "utc": True, **order}
        dates = pd.to_datetime(cells, **options)
        without_zone = text.str.replace(r"(:\d\d(\.\d+)?) *[+-]\d\d:?\d\d$", r"\1", regex=True)
        if (without_zone != cells).any():
            local = pd.to_datetime(without_zone, **options).dt.tz_localize(None)
    is_wrong = dates.isna().to_numpy()
    if is_compact and is_wrong.all():
        return as_numbers(found)
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise UsageError(
            f"{where}: column {column!r} holds {cells.iloc[row]!r} in row {row} (from 0), which is no date (expected "
            "such as 2026-11-27 or 2026-11-27 14:00, or numbers)"
        )
    if local is not None and (local == local.dt.normalize()).all():
        dates = local
    return pd.DatetimeIndex(dates).tz_localize(None).to_numpy().astype("datetime64[ns]")


def as_numbers(cells: pd.Series) -> np.ndarray:
    """Integers as int64, in which large ones stay as they are; other numbers as float64."""
    return cells.to_numpy(dtype=np.int64 if cells.dtype.kind == "i" else np.float64)


def check_zones(cells: pd.Series, where: str, column: str):
    """
    Raises:
        UsageError: some time stamps have a time zone, others have none.
    """
    has_zone = cells.str.contains(r":\d\d(?:\.\d+)? *(?:[+-]\d\d:?\d\d|Z)\s*$")
    if has_zone.nunique() > 1:
        one, other = sorted((int(has_zone.to_numpy().argmax()), int(has_zone.to_numpy().argmin())))
        raise UsageError(
            f"{where}: column {column!r} holds {cells.iloc[one]!r} in row {one} and {cells.iloc[other]!r} in row "
            f"{other} (from 0): one with a time zone, one without (expected one for all, or for none)"
        )


def date_order(cells: pd.Series, where: str, column: str) -> dict[str, bool]:
    """
    Whether dates such as 03/04/2026 or 03/04/26 begin with the day or the year, as `dayfirst` and `yearfirst` of
    `pandas.to_datetime`. Numbers above 12 tell, and dots, and a day that is the same in all years; for years of two
    digits also the order of the rows.

    Raises:
        UsageError: nothing tells, or dates of one column contradict each other.
    """
    parts = cells.str.extract(r"^\s*(\d{1,2})([./-])(\d{1,2})[./-](\d{4}|\d{2})(?!\d)").dropna()
    if parts.empty:
        return {}
    first, second, last = parts[0].astype(int), parts[2].astype(int), parts[3].astype(int)
    example = f"{where}: column {column!r} holds {cells[parts.index[0]]!r} in row {parts.index[0]} (from 0)"
    if (parts[3].str.len() == 2).all() and second.between(1, 12).all() and last.between(1, 31).all():
        if not first.between(1, 31).all():
            return {"yearfirst": True}
        by_year_first = is_rising(first, second, last)
        by_year_last = is_rising(last, second, first) or is_rising(last, first, second)
        is_late = (first > 12).all()
        if by_year_first and not by_year_last and is_late:
            return {"yearfirst": True}
        says_little = is_late and by_year_first == by_year_last and not (parts[1] == ".").all()
        if says_little or (by_year_first and not by_year_last):
            raise UsageError(f"{example}, which may begin with the day or the year (expected such as 2026-11-27)")
    return {"dayfirst": is_day_first(parts, cells, where, column)}


def is_rising(years: pd.Series, months: pd.Series, days: pd.Series) -> bool:
    return (10_000 * years + 100 * months + days).is_monotonic_increasing


def is_day_first(parts: pd.DataFrame, cells: pd.Series, where: str, column: str) -> bool:
    """
    As of `date_order`, of dates that begin with the day or the month.

    Args:
        parts: the first number of each of these dates, what stands after it, the second number, and the year.
        cells: the column that they are in.
    """
    first, second = parts[0].astype(int), parts[2].astype(int)
    says_day, says_month = first > 12, second > 12
    example = f"{where}: column {column!r} holds {cells[parts.index[0]]!r} in row {parts.index[0]} (from 0)"
    if says_day.any() and says_month.any():
        rows = sorted((says_day.idxmax(), says_month.idxmax()))
        raise UsageError(
            f"{where}: column {column!r} holds {cells[rows[0]]!r} in row {rows[0]} and {cells[rows[1]]!r} in row "
            f"{rows[1]} (from 0): the day first in one, the month in the other (expected such as 2026-11-27)"
        )
    if says_day.any() or says_month.any():
        return bool(says_day.any())
    if (parts[1] == ".").all() or (first == second).all():
        return True
    varies = first.nunique() > 1, second.nunique() > 1
    if parts[3].nunique() > 1 and not all(varies):
        return not varies[0]
    raise UsageError(f"{example}, which may begin with the day or the month (expected such as 2026-11-27)")


@dataclass(frozen=True)
class Spacing:
    """How far apart time stamps are: `size` units, "month", "business day", "nanosecond" or "number"."""

    unit: str
    size: float

    @classmethod
    def of(cls, times: np.ndarray, series: Series, column: str) -> "Spacing":
        """That of most time stamps of a series, which are in order."""
        if len(times) < 2:
            raise UsageError(f"{place(series)}: column {column!r} holds one time stamp alone (expected at least two)")
        if times.dtype.kind != "M":
            return cls("number", common(np.diff(times), decimals_of(times)))
        dates = pd.DatetimeIndex(times)
        gaps = np.diff(dates.asi8)
        if len(set(gaps[gaps > 0])) > 1:
            same_day = len(set(dates - dates.to_period("M").to_timestamp())) == 1 or dates.is_month_end.all()
            months = np.diff(dates.year * 12 + dates.month)
            if same_day and (months > 0).any():
                return cls("month", common(months[months > 0]))
            if are_business_days(dates) and common(gaps) == NANOSECONDS["day"]:
                return cls("business day", 1)
        return cls("nanosecond", common(gaps[gaps > 0]) if (gaps > 0).any() else 1)

    def units(self, times: np.ndarray) -> np.ndarray:
        """(time,) the place of time stamps in months, business days, nanoseconds or their own numbers."""
        if self.unit == "month":
            dates = pd.DatetimeIndex(times)
            return (dates.year * 12 + dates.month - 1).to_numpy().astype(np.int64)
        if self.unit == "business day":
            return np.busday_count("1970-01-01", times.astype("datetime64[D]"))
        return times if self.unit == "number" else times.astype(np.int64)

    def fits(self, times: np.ndarray) -> bool:
        """Whether time stamps follow each other at this distance, on days on which others would follow them."""
        if (times.dtype.kind != "M") != (self.unit == "number"):
            return False
        if not (np.abs(np.diff(self.units(times)) / self.size - 1) <= MAX_UNEVENNESS).all():
            return False
        if self.unit == "month":
            dates = pd.DatetimeIndex(times)
            is_same_day = dates.day == np.minimum(dates.day.max(), dates.days_in_month)
            return bool(is_same_day.all() or dates.is_month_end.all())
        return self.unit != "business day" or are_business_days(pd.DatetimeIndex(times))

    def number(self, times: np.ndarray, series: Series, column: str) -> np.ndarray:
        """
        The numbers of the steps, which go up by one.

        Raises:
            UsageError: a time stamp comes twice, or others follow it than at this distance.
        """
        units = self.units(times)
        gaps = np.diff(units) / self.size  # between integers, as nanoseconds are, they are exact
        is_double = np.diff(times).astype(np.float64) == 0
        if is_double.any():
            step = int(is_double.argmax())
            raise UsageError(
                f"{series.where}: column {column!r} holds {show(times[step])} in row {series.rows[step]} and again in "
                f"row {series.rows[step + 1]} (from 0), both of series {series.name!r} (expected each time stamp "
                "once; --id_column tells several series apart)"
            )
        is_wrong = np.abs(gaps - 1) > MAX_UNEVENNESS
        if is_wrong.any():
            step = int(is_wrong.argmax())
            raise UsageError(
                f"{series.where}: column {column!r} goes from {show(times[step])} in row {series.rows[step]} to "
                f"{show(times[step + 1])} in row {series.rows[step + 1]} (from 0) in series {series.name!r}, where "
                f"steps are {self} apart (expected even steps: a row with empty cells for each missing one, or no "
                "--time_column for rows that are to count as even)"
            )
        if units.dtype.kind == "i" and self.size == int(self.size):
            size = int(self.size)
            first = (int(units[0]) + int(MAX_UNEVENNESS * size)) // size
        else:
            first = int((units[0] + MAX_UNEVENNESS * self.size) // self.size)
        return first + np.arange(len(times))

    def ahead(self, times: np.ndarray, count: int) -> np.ndarray:
        """(count,) the time stamps that follow some, (time,), which are at this distance."""
        steps = np.arange(1, count + 1)
        if self.unit == "number" and times.dtype.kind == "i" and self.size == int(self.size):
            return times[-1] + steps * int(self.size)
        if self.unit == "number":  # 0.3, where the sum of floats is 0.30000000000000004
            return np.array([float(f"{time:.15g}") for time in times[-1] + steps * self.size])
        if self.unit == "business day":
            return np.busday_offset(times[-1].astype("datetime64[D]"), steps).astype(times.dtype)
        if self.unit == "nanosecond":
            return times[-1] + (steps * int(self.size)).astype("timedelta64[ns]")
        dates, size = pd.DatetimeIndex(times), int(self.size)
        months = pd.period_range(dates[-1].to_period("M"), periods=1 + count * size, freq="M")[size::size]
        days = months.days_in_month.to_numpy()
        if not dates.is_month_end.all():
            days = np.minimum(days, dates.day.max())
        starts, time_of_day = months.to_timestamp().to_numpy(), times[-1] - dates[-1].normalize().to_datetime64()
        return (starts + (days - 1).astype("timedelta64[D]") + time_of_day).astype(times.dtype)

    @property
    def season_length(self) -> int:
        """Steps of the season that data of this spacing mostly has; 1 where none is known."""
        if self.unit == "month":
            return max(1, int(12 // self.size)) if 12 % self.size == 0 else 1
        if self.unit == "business day":
            return SEASONS["business day"]
        if self.unit == "number":
            return 1
        if self.size in (NANOSECONDS["day"], NANOSECONDS["week"]):
            return SEASONS["day" if self.size == NANOSECONDS["day"] else "week"]
        per_day = NANOSECONDS["day"] / self.size
        if per_day > 1440:
            return SEASONS["second"] if self.size == NANOSECONDS["second"] else 1
        return int(per_day) if per_day == int(per_day) else 1

    def __str__(self) -> str:
        if self.unit == "nanosecond":
            return str(pd.Timedelta(self.size, unit="ns")).removesuffix(" 00:00:00")
        size = np.format_float_positional(self.size, trim="-")
        return size if self.unit == "number" else f"{size} {self.unit}{'s' if self.size != 1 else ''}"


def are_business_days(dates: pd.DatetimeIndex) -> bool:
    return bool((dates.day_of_week < 5).all() and (dates == dates.normalize()).all())


def find_spacing(args: TimeSeriesArguments, times: np.ndarray, series: Series) -> Spacing:
    """
    That which a model was trained on, where it is known; else that of a series, whose time stamps are in order.

    Raises:
        UsageError: the time stamps are others than those that the model was trained on.
    """
    if args.spacing is None:
        return Spacing.of(times, series, args.time_column)
    learnt, is_number = Spacing(**args.spacing), times.dtype.kind != "M"
    if learnt.fits(times):
        return learnt
    if is_number != (learnt.unit == "number"):
        found = "numbers" if is_number else "dates"
    elif len(times) == 1:
        found = show(times[0])
    else:
        spacing = Spacing.of(times, series, args.time_column)
        if spacing == learnt:
            return learnt  # of which a step or two are missing: `number` says where
        found = f"time stamps {spacing} apart"
    raise UsageError(
        f"{place(series)}: column {args.time_column!r} holds {found} (expected "
        f"{'numbers' if learnt.unit == 'number' else 'dates'} {learnt} apart, as in the training)"
    )


def common_spacing(series: Sequence[Series]) -> Spacing | None:
    """
    Raises:
        UsageError: the steps of some series are further apart than those of others.
    """
    spacing = series[0].spacing
    for part in series:
        if part.spacing != spacing:
            raise UsageError(
                f"--time_column: steps are {spacing} apart in {series[0].where} and {part.spacing} in {part.where} "
                "(expected one distance)"
            )
    return spacing


def decimals_of(times: np.ndarray) -> int:
    """Decimals of the distance between numbers, from 0 to 9; further ones depend on how floats are rounded."""
    resolution = np.spacing(np.abs(times.astype(np.float64)).max())
    return int(np.clip(np.floor(-np.log10(4 * resolution)), 0, 9))


def common(gaps: np.ndarray, decimals: int = 9) -> float:
    """The most frequent of some numbers."""
    values, counts = np.unique(np.round(gaps, decimals), return_counts=True)
    positive = values > 0
    return values[positive][counts[positive].argmax()].item() if positive.any() else 1


def show(time) -> str:
    if isinstance(time, np.datetime64):
        stamp = pd.Timestamp(time)
        return stamp.isoformat(" ") if stamp != stamp.normalize() else stamp.date().isoformat()
    if isinstance(time, np.integer):
        return str(time)
    return np.format_float_positional(time, trim="-")


# Simple answers


def print_baselines(baselines: dict[str, dict[str, dict[str, float]]]):
    """Says what simple answers would get, by split."""
    for split, found in baselines.items():
        for name, metrics in found.items():
            values = ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items())
            print(f"Baseline on {split}: {name}: {values}.", flush=True)
