"""Rotary position embedding in a third of the stock passes over memory, forward and backward."""

from __future__ import annotations

from functools import cache
from types import FunctionType, MethodType
from typing import Any

import torch
from transformers.models.llama import modeling_llama

from radloop.training.fused.stock import is_copy

_NAME = "apply_rotary_pos_emb"  # of the function that layers of attention with positions call
_stock = modeling_llama.apply_rotary_pos_emb


def fuse_rotations(decoder: Any) -> None:
    """Let the attention layers of a language model rotate with fewer tensors of their own."""
    for module in decoder.modules():
        kind: Any = type(module)
        forward = _with_ours(kind)
        if forward is not None and "forward" not in vars(module):
            module.forward = MethodType(forward, module)


@cache
def _with_ours(kind: type[Any]) -> FunctionType | None:
    """Return the forward of a kind of attention with our rotation in the place of the stock one."""
    forward = kind.forward
    if not isinstance(forward, FunctionType) or _NAME not in forward.__code__.co_names:
        return None
    rotate: Any = forward.__globals__.get(_NAME)
    halve = getattr(rotate, "__globals__", {}).get("rotate_half")
    if not is_copy(rotate, _stock) or not is_copy(halve, modeling_llama.rotate_half):
        return None
    names = forward.__globals__ | {_NAME: _rotated}
    ours = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    ours.__kwdefaults__ = forward.__kwdefaults__
    return ours


def _rotated(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    if {tensor.dtype for tensor in (q, k, cos, sin)} != {torch.float32}:
        found: tuple[torch.Tensor, torch.Tensor] = _stock(q, k, cos, sin, unsqueeze_dim)
        return found
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)


class _Rotation(torch.autograd.Function):
    """`(a, b)` becomes `(a cos - b sin, b cos + a sin)` for the halves of the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        (a, b), (of_a, of_b) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
        out = x * cos
        first, second = out.chunk(2, dim=-1)
        first.addcmul_(b, of_a, value=-1)
        second.addcmul_(a, of_b)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        (a, b), (of_a, of_b) = gradient.chunk(2, dim=-1), sin.chunk(2, dim=-1)
        of_x = gradient * cos
        first, second = of_x.chunk(2, dim=-1)
        first.addcmul_(b, of_b)
        second.addcmul_(a, of_a, value=-1)
        return of_x, None, None
