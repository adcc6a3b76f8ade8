"""What a run knows beside the weights and the optimiser's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch

from radloop.config import FinetuneConfig
from radloop.training.processes import divided_as, whole

Facts = dict[str, float]


@dataclass
class Best:
    """The best weights so far.

    Attributes:
        step: After which they were.
        score: Larger is better.
        weights: The trained parameters by name, on the CPU; None where the last are kept.
    """

    step: int
    score: float
    weights: dict[str, torch.Tensor] | None


@dataclass
class State:
    """Where a run is. Random numbers have no state: each step draws its own from seed and step.

    Attributes:
        step: Optimiser steps taken.
        history: Facts of each.
        best: By the config's measure; None before the first validation.
        num_stale: Validations since the best.
        num_samples: Trained on, repetitions included.
        seconds: That all of it took.
    """

    step: int = 0
    history: list[Facts] = field(default_factory=list)
    best: Best | None = None
    num_stale: int = 0
    num_samples: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """Undo `content`."""
        best = content["best"]
        return cls(**content | {"best": None if best is None else Best(**best)})

    def content(self) -> dict[str, Any]:
        """Return all of it as a nest of plain values and tensors, which are not copied."""
        return vars(self) | {"best": None if self.best is None else vars(self.best)}

    def judge(self, facts: Facts, model: torch.nn.Module, config: FinetuneConfig) -> None:
        """Take the validation of the step just taken into account."""
        by_match = config.best_by == "exact_match"
        score = facts["exact_match"] if by_match else -facts["validation_loss"]
        if self.best is not None and score <= self.best.score:
            self.num_stale += 1
            return
        weights = None if config.best_by == "last" else trained_weights(model)
        self.best, self.num_stale = Best(self.step, score, weights), 0

    def is_out_of_patience(self, config: FinetuneConfig) -> bool:
        return config.patience is not None and self.num_stale >= config.patience


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the parameters that are trained, on the CPU, by name."""
    return {
        name: whole(parameter.detach()).to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def restore_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put back what `trained_weights` returned."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(divided_as(parameter, weights[name]))


def restore_optimizer(optimizer: Any, content: dict[str, Any]) -> None:
    """Put back the state of an optimiser, whole tensors included, of which it keeps a part here."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {
            name: divided_as(parameters[number], value) if isinstance(value, torch.Tensor) else value
            for name, value in of_parameter.items()
        }
        for number, of_parameter in content["state"].items()
    }
    optimizer.load_state_dict(content | {"state": state})
    stock = getattr(optimizer, "optimizer", optimizer)  # within accelerate's
    if getattr(stock, "is_paged", False):
        _page(stock)


def _page(optimizer: Any) -> None:
    """Move the state of a paged optimiser to memory that can be paged; bitsandbytes loads it to the GPU's."""
    for parameter, state in optimizer.state.items():
        for name in {"state1", "state2"} & state.keys():
            loaded = state[name]
            state[name] = optimizer.get_state_buffer(parameter, loaded.dtype)
            if loaded.device.type == "cuda":
                torch.cuda.synchronize()  # the GPU fills the buffer, into which the CPU writes next
            state[name].copy_(loaded)
