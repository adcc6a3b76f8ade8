"""The MLP of Llama and its kin, whose three products have LoRA layers, as one step.

Source: Shazeer, GLU Variants Improve Transformer, 2020, arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _layers(module: Any) -> tuple[Any, Any, Any]:
    return module.gate_proj, module.up_proj, module.down_proj


def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Replace that of a stock MLP; of its name, so that a pickled MLP is a stock one."""
    gate, up, down = map(_biasless(x), _layers(module))
    if gate is None or up is None or down is None:
        found: torch.Tensor = type(module).forward(module, x)
        return found
    scales = gate.scale, up.scale, down.scale
    fused: torch.Tensor = _SwiGlu.apply(x, scales, *_tensors(gate), *_tensors(up), *_tensors(down))
    return fused


def _biasless(x: torch.Tensor) -> Callable[[nn.Module], Factors | None]:
    def factors(layer: nn.Module) -> Factors | None:
        found = layer.factors(x) if isinstance(layer, LoraLinear) else None
        return None if found is None or found.bias is not None else found

    return factors


def _tensors(factors: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return factors.weight, factors.down, factors.up


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
        gate_factors, up_factors, down_factors = _factors(tensors, ctx.scales)
        of_out = gradient.reshape(-1, gradient.shape[-1])
        of_low, *trained_down = gradients(of_out, hidden, low_down, down_factors)
        of_hidden = (of_out @ down_factors.weight).addmm_(of_low, down_factors.down)
        of_up = nn.functional.silu(gate).mul_(of_hidden)
        of_hidden.mul_(up)
        of_gate = _silu_backward(of_hidden, gate, grad_input=of_hidden)  # element by element: in place
        of_low_gate, *trained_gate = gradients(of_gate, rows, low_gate, gate_factors)
        of_low_up, *trained_up = gradients(of_up, rows, low_up, up_factors)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_gate @ gate_factors.weight).addmm_(of_low_gate, gate_factors.down)
            of_x.addmm_(of_up, up_factors.weight).addmm_(of_low_up, up_factors.down)
            of_x = of_x.view(*gradient.shape[:-1], of_x.shape[-1])
        return of_x, None, None, *trained_gate, None, *trained_up, None, *trained_down


def _factors(tensors: Any, scales: tuple[float, ...]) -> list[Factors]:
    """Undo `_tensors` of several layers."""
    of_layers = zip(tensors[::3], tensors[1::3], tensors[2::3], scales, strict=True)
    return [Factors(weight, None, down, up, scale) for weight, down, up, scale in of_layers]
