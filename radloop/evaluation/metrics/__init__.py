"""One metric a file here, and one line in `REGISTRY`: (prediction, answers) -> 0 to 1."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from radloop.errors import unknown

Metric = Callable[[str, Sequence[str]], float]

REGISTRY = {
    "exact_match": "radloop.evaluation.metrics.exact_match:exact_match",
    "token_f1": "radloop.evaluation.metrics.token_f1:token_f1",
}


def get_metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        ValueError: No metric has this name; the message lists the known ones.
    """
    if name not in REGISTRY:
        raise ValueError(unknown("metric", name, REGISTRY))
    module, attribute = REGISTRY[name].split(":")
    metric: Metric = getattr(importlib.import_module(module), attribute)
    return metric
