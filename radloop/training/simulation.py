"""What a forward and backward pass holds in memory, found by going through it without computing it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from radloop.config import FinetuneConfig
from radloop.models.packing import Row
from radloop.models.sketch import Sketch
from radloop.training.losses import FeaturesOf, summed_loss
from radloop.training.noise import EmbeddingNoise

_META = torch.device("meta")
_CPU = torch.device("cpu")
_GIVEN_BACK = 2**25  # bytes: glibc has a mapping of its own for each larger block
_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


@dataclass(frozen=True)
class PassMemory:
    """Bytes of the tensors of a forward and backward pass, beside weights and gradients.

    Attributes:
        peak: Of those that are alive at the same time.
        made: Of all that come and go, but for those that the C library's allocator gives back at once.
    """

    peak: int
    made: int


def simulate_pass(
    sketch: Sketch, features: FeaturesOf, rows: Sequence[Row], config: FinetuneConfig
) -> PassMemory:
    """Return what a pass would hold.

    The pass is the real one, code of Transformers and PEFT included, on tensors without contents; so
    what autograd keeps needs no formula for each family. What kernels use inside themselves is not in it.

    Args:
        sketch: With LoRA layers, in train mode; gradient checkpointing as it is to be.
        features: Of images by id, made by `sketch`.
        rows: Of the pass.
        config: Weighting of the loss and noise count.
    """
    for parameter in sketch.model.parameters():
        if parameter.requires_grad:  # gradients of earlier passes are there already
            parameter.grad = torch.empty_like(parameter)
    noise = EmbeddingNoise(sketch.base_model, config.neftune_alpha)
    with _fused_attention(), _LiveBytes() as live:
        with noise.on(rows):
            loss = summed_loss(sketch, features, rows, config.loss)
        torch.autograd.backward(loss)
    return PassMemory(live.peak, live.made)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made in this block that are alive, with contents or without.

    Not those that NumPy made: the places of tokens, some bytes each.

    Floating point tensors are kept on the meta device, all others on the CPU: how many tokens are
    predicted, and which, depends on their contents.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.made = 0
        self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        for tensor in _tensors((args, kwargs)):  # what is there already, such as weights, of which views come
            self._know(tensor.untyped_storage(), 0)
        if any(tensor.device == _META for tensor in _tensors((args, kwargs))):
            args, kwargs = _without_contents(func, args, kwargs)
        elif kwargs.get("device") == _META and not _makes_floats(func, args, kwargs):
            kwargs["device"] = _CPU
        found = func(*args, **kwargs)
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            self._know(storage, storage.nbytes())
        return found

    def _know(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count `size` bytes until the storage is gone, unless it is known."""
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        self.made += size * (size < _GIVEN_BACK)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _without_contents(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments on the meta device, after taking from their contents what decides on shapes."""
    if func in _INDEXING:
        args = (args[0], _as_numbers(args[1]), *args[2:])
    if "device" in kwargs:
        kwargs["device"] = _META
    moved: tuple[Any, dict[str, Any]] = tree_map_only(torch.Tensor, _to_meta, (args, kwargs))
    return moved


def _as_numbers(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Return indices with each mask replaced by the places where it is true."""
    numbers: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and index.device != _META:
            numbers += index.nonzero().unbind(1)
        else:
            numbers.append(index)
    return numbers


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device == _META:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _makes_floats(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether an operation without arguments on the meta device makes floating point numbers there."""
    if (dtype := kwargs.get("dtype")) is not None:
        return dtype.is_floating_point
    if tensors := _tensors(args):
        return tensors[0].is_floating_point()
    is_range = func.overloadpacket is torch.ops.aten.arange
    return not (is_range and all(isinstance(value, int) for value in args))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Let attention on the meta device keep what fused kernels keep, in place of all scores."""
    functional: Any = torch.nn.functional
    stock = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = stock


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # each call makes numbers to add of it
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=_META)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: torch.Tensor = fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out
