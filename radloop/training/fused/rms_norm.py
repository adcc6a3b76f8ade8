"""RMS norm in half of the stock passes over memory, forward and backward."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from radloop.training.fused.stock import is_copy


def fuse_norms(decoder: Any) -> None:
    """Let the frozen RMS norms of a language model compute in full precision with fewer tensors of their own.

    Gemma's, which multiplies by 1 + weight, stays as it is.
    """
    for module in decoder.modules():
        if is_copy(type(module).forward, LlamaRMSNorm.forward) and "forward" not in vars(module):
            module.forward = MethodType(forward, module)


def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Replace that of a stock norm; of its name, so that a pickled norm is a stock one."""
    weight = module.weight
    if weight.requires_grad or not x.dtype == weight.dtype == torch.float32:
        found: torch.Tensor = type(module).forward(module, x)
        return found
    fused: torch.Tensor = _RmsNorm.apply(x, weight, module.variance_epsilon)
    return fused


class _RmsNorm(torch.autograd.Function):
    """`w x / sqrt(mean(x²) + ε)` over the last dimension, for a frozen w."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        of_x = gradient * weight
        along = torch.linalg.vecdot(of_x, x).unsqueeze(-1)
        of_x.mul_(scale).addcmul_(x, along.mul_(scale**3).div_(-x.shape[-1]))
        return of_x, None, None
