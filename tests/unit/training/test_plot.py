"""The picture of a run says what its loss is."""

from typing import Any

import pytest
from matplotlib.axes import Axes

from radloop.training.plot import plot_history


def record(**settings: Any) -> dict[str, Any]:
    return {
        "history": [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in (1, 2, 3)],
        "settings": settings,
        "data": {"samples": 3, "images": 1},
        "parameters": {"trained": 1, "share": 0.1},
        "samples_per_s": 1.0,
    }


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"loss": "token"}, "loss (nats per answer token)"),
        ({"loss": "answer"}, "loss (nats per token, mean of answers)"),
        ({}, "loss (nats per answer token)"),  # of versions that knew no other
    ],
)
def test_the_axis_names_what_the_loss_is(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], label: str
) -> None:
    labels: list[str] = []
    stock = Axes.set_ylabel

    def spy(axes: Axes, text: str) -> Any:
        labels.append(text)
        return stock(axes, text)

    monkeypatch.setattr(Axes, "set_ylabel", spy)
    assert plot_history(record(**settings)).startswith(b"\x89PNG")
    assert labels == [label, "learning rate"]
