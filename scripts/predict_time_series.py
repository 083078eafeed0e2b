# SPDX-License-Identifier: Apache-2.0
"""
Writes to a CSV file what a model of train_time_series.py says of new series.

    python scripts/predict_time_series.py outputs/sales --data sales.csv --output forecasts.csv
    python scripts/predict_time_series.py outputs/sales --data sales.csv --horizon 24 --output forecasts.csv
    python scripts/predict_time_series.py outputs/motions --data new.csv --output classes.csv

Forecasts: a row for each channel and step after the last value of a series, with the quantiles 0.1 to 0.9. A model
with covariates reads those of the steps ahead from rows at the end of the file, whose values are empty. Classes and
labels of each step: the most probable one with its probability, or the number of a regression. The data is read as in
the training; labels in it are not read. Time stamps with a zone are continued in UTC.
"""

import argparse
import sys

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.flags import CommandParser, add_data_arguments, output_file, positive_integer, seed


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    from rtransformer_hf.training.files import atomic_write
    from rtransformer_hf.training.series_predictions import predict

    table = predict(args)
    atomic_write(args.output, table.to_csv(index=False).encode())
    print(f"{args.output}: {len(table):,} rows.", file=sys.stderr)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", help="Folder or Hub id of a model of train_time_series.py.")
    add_data_arguments(parser, "predict from")
    parser.add_argument("--output", required=True, type=output_file(".csv"), help="The table, a .csv file.")
    parser.add_argument("--horizon", type=positive_integer, help="Steps to forecast. (default: as in the training)")
    parser.add_argument("--seed", type=seed, default=0, help="The same seed gives the same forecasts. (default: 0)")
    parser.add_argument("--batch_size", type=positive_integer, default=16, help="Series at a time. (default: 16)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
