"""The picture of a training run."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

_LOSS = {"token": "loss (nats per answer token)", "answer": "loss (nats per token, mean of answers)"}
_BLUE, _ORANGE, _GREY = "#0b6e8a", "#c8641c", "#5b6b7b"


def plot_history(record: dict[str, Any]) -> bytes:
    """Return a PNG of loss, validation loss and learning rate over the steps of a training record."""
    history = record["history"]
    steps = np.array([entry["step"] for entry in history])
    losses = np.array([entry["loss"] for entry in history])
    figure = Figure(figsize=(8.0, 5.2), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    window = math.ceil(len(steps) / 25)
    if window > 1:
        above.plot(steps, losses, color=_BLUE, alpha=0.3, linewidth=1)
    label = f"training, mean of {window} steps" if window > 1 else "training, each step"
    above.plot(steps, _running_mean(losses, window), color=_BLUE, linewidth=2, label=label)
    validated = [entry for entry in history if "validation_loss" in entry]
    if validated:
        above.plot(
            [entry["step"] for entry in validated],
            [entry["validation_loss"] for entry in validated],
            "o-",
            color=_ORANGE,
            label="validation",
        )
    above.set_yscale("log")  # the fall goes on for long after it can be seen on a linear scale
    above.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("")
    above.set_ylabel(_LOSS[record["settings"].get("loss", "token")])
    above.legend(frameon=False)
    data, parameters = record["data"], record["parameters"]
    above.set_title(
        f"{data['samples']:,} samples on {data['images']:,} images, {parameters['trained']:,} trained "
        f"parameters ({parameters['share']:.2%}), {record['samples_per_s']:.0f} samples/s",
        fontsize=10,
        color=_GREY,
        loc="left",
    )
    below.plot(steps, [entry["learning_rate"] for entry in history], color=_GREY, linewidth=2)
    below.set_ylabel("learning rate")
    below.set_xlabel("optimiser step")
    below.set_ylim(bottom=0)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and up to `window - 1` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means
