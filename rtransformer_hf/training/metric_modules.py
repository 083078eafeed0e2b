# SPDX-License-Identifier: Apache-2.0
"""The metrics in metrics/, loaded when the first value is computed: `evaluate` takes seconds to import."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

METRICS = Path(__file__).parent / "metrics"

if find_spec("evaluate") is None:  # now, rather than at the first evaluation of a training
    raise ModuleNotFoundError("evaluate is not installed (expected: pip install -e '.[train]')")


@cache
def load_metric(name: str):
    """The `evaluate.EvaluationModule` in the folder `name`."""
    import evaluate

    return evaluate.load(str(METRICS / name), keep_in_memory=True)


def compute_metric(name: str, predictions: Any, references: Any) -> dict[str, float]:
    """The metric's values by their names."""
    return load_metric(name).compute(predictions=predictions, references=references)
