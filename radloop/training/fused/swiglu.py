"""The MLP of Llama and its kin, whose three products have LoRA layers, as one step.

Source: Shazeer, GLU Variants Improve Transformer, 2020, arXiv:2002.05202.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP

from radloop.training.fused.lora_linear import Factors, LoraLinear, gradients, product
from radloop.training.fused.stock import is_copy

_silu_backward = torch.ops.aten.silu_backward.grad_input


def fuse_mlps(decoder: Any) -> None:
    """Let the gated MLPs of a language model change tensors in place between their products."""
    for module in decoder.modules():
        is_swiglu = is_copy(type(module).forward, LlamaMLP.forward) and isinstance(
            module.act_fn, SiLUActivation
        )
        if is_swiglu and "forward" not in vars(module):
            module.forward = MethodType(forward, module)


def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Replace that of a stock MLP; of its name, so that a pickled MLP is a stock one."""
    gate, up, down = (_factors_of(layer, x) for layer in (module.gate_proj, module.up_proj, module.down_proj))
    if gate is None or up is None or down is None:
        found: torch.Tensor = type(module).forward(module, x)
        return found
    scales = gate.scale, up.scale, down.scale
    fused: torch.Tensor = _SwiGlu.apply(x, scales, *_tensors(gate), *_tensors(up), *_tensors(down))
    return fused


def _factors_of(layer: nn.Module, x: torch.Tensor) -> Factors | None:
    """Return those of a layer that is plain LoRA without a bias; else None."""
    found = layer.factors(x) if isinstance(layer, LoraLinear) else None
    return None if found is None or found.bias is not None else found


def _tensors(factors: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return factors.weight, factors.a, factors.b


class _SwiGlu(torch.autograd.Function):
    """`(silu(x G) * (x U)) D`, where G, U and D are each a frozen weight with its low-rank part."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: tuple[float, ...], *tensors: torch.Tensor) -> torch.Tensor:
        of_gate, of_up, of_down = _factors(tensors, scales)
        rows = x.reshape(-1, x.shape[-1])
        gate, low_gate = product(rows, of_gate)
        up, low_up = product(rows, of_up)
        hidden = nn.functional.silu(gate).mul_(up)
        out, low_down = product(hidden, of_down)
        ctx.save_for_backward(rows, gate, up, hidden, low_gate, low_up, low_down, *tensors)
        ctx.scales = scales
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, gate, up, hidden, low_gate, low_up, low_down, *tensors = ctx.saved_tensors
        of_gate, of_up, of_down = _factors(tensors, ctx.scales)
        d_out = gradient.reshape(-1, gradient.shape[-1])
        d_low, *d_down = gradients(d_out, hidden, low_down, of_down)
        d_hidden = (d_out @ of_down.weight).addmm_(d_low, of_down.a)
        d_up = nn.functional.silu(gate).mul_(d_hidden)
        d_hidden.mul_(up)
        d_gate = _silu_backward(d_hidden, gate, grad_input=d_hidden)  # element by element: in place
        d_low_gate, *d_gate_factors = gradients(d_gate, rows, low_gate, of_gate)
        d_low_up, *d_up_factors = gradients(d_up, rows, low_up, of_up)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (d_gate @ of_gate.weight).addmm_(d_low_gate, of_gate.a)
            d_x.addmm_(d_up, of_up.weight).addmm_(d_low_up, of_up.a)
            d_x = d_x.view(*gradient.shape[:-1], d_x.shape[-1])
        return d_x, None, None, *d_gate_factors, None, *d_up_factors, None, *d_down


def _factors(tensors: Any, scales: tuple[float, ...]) -> list[Factors]:
    """Undo `_tensors` of several layers."""
    of_layers = zip(tensors[::3], tensors[1::3], tensors[2::3], scales, strict=True)
    return [Factors(weight, None, a, b, scale) for weight, a, b, scale in of_layers]
