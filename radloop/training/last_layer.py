"""The last layer, computed for no more tokens than those whose output is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TOKEN_BY_TOKEN = ("mlp", "self_attn.o_proj", "self_attn.q_proj")  # keys and values need all tokens


@contextmanager
def only_at(model: Any, predicts: torch.Tensor) -> Iterator[None]:
    """Let the last layer compute all but keys and values at some tokens alone, in this block.

    Answers are short, so that is most of what the layer costs. Elsewhere its output is wrong, where
    nothing reads it: the loss and its gradients are the same. Not done with gradient checkpointing,
    which computes layers again after the block.

    Args:
        model: The Transformers model itself.
        predicts: Bool, shape (rows, tokens), where the output is read.
    """
    parts = _parts(model)
    places = predicts.flatten().nonzero().squeeze(1) if parts else predicts

    shapes: dict[torch.nn.Module, torch.Size] = {}  # a family may lay all tokens out in one row

    def gather(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        shapes[module] = inputs[0].shape[:-1]
        return inputs[0].flatten(0, 1).index_select(0, places)[None], *inputs[1:]

    def scatter(module: Any, _inputs: Any, found: torch.Tensor) -> torch.Tensor:
        whole = found.new_zeros(predicts.numel(), found.shape[-1]).index_copy(0, places, found.squeeze(0))
        return whole.view(*shapes[module], -1)

    hooks = [part.register_forward_pre_hook(gather) for part in parts]
    hooks += [part.register_forward_hook(scatter) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(model: Any) -> list[torch.nn.Module]:
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None or getattr(layers[-1], "gradient_checkpointing", False):
        return []
    return [part for name, part in layers[-1].named_modules() if name in _TOKEN_BY_TOKEN]
