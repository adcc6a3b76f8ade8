"""LoRA on a linear layer in half of PEFT's passes over memory: the low-rank part is added in place."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.distributed.tensor import DTensor


class Factors(NamedTuple):
    """Of `x W^T + bias + s (x A^T) B^T`, where W and the bias are frozen."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor
    scale: float


class LoraLinear(Linear):
    """PEFT's own layer, which it stays in all but the speed of what is the usual case in full precision.

    PEFT multiplies the low-rank part by the scale and adds it in tensors of their own, forward and
    backward, which takes time on a CPU, whose memory is slow. Here both are part of the matrix products;
    the result differs in the last digits.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        factors = None if args or kwargs else self._plain(x)
        if factors is None:
            found: torch.Tensor = super().forward(x, *args, **kwargs)
            return found
        out: torch.Tensor = _Product.apply(x, *factors)
        return out

    def factors(self, x: torch.Tensor) -> Factors | None:
        """Return what `x` is multiplied by, where that is all there is to do; else None.

        Whoever multiplies by them does not call the layer, so nobody may wait for its call.
        """
        return None if "forward" in vars(self) or _has_hooks(self) else self._plain(x)

    def _plain(self, x: torch.Tensor) -> Factors | None:
        """Return the factors if the layer is plain LoRA, in the precision of `x`; else None.

        Its own hooks are run by whoever calls it; the layers in it are not called.
        """
        adapter = self._only_adapter()
        if adapter is None or autocasts(x.device.type):
            return None
        base: Any = self.base_layer
        low: Any = self.lora_A[adapter]
        high: Any = self.lora_B[adapter]
        if any("forward" in vars(layer) or _has_hooks(layer) for layer in (base, low, high)):
            return None
        a, b = low.weight, high.weight
        if isinstance(a, DTensor) or not x.dtype == base.weight.dtype == a.dtype:
            return None
        if base.weight.requires_grad:
            return None
        return Factors(base.weight, base.bias, a, b, self.scaling[adapter])

    def _only_adapter(self) -> str | None:
        """Return the adapter in use, if there is one and it is plain LoRA without dropout."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        is_plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        return name if is_plain and isinstance(self.lora_dropout[name], nn.Identity) else None


def _has_hooks(module: Any) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def autocasts(device_type: str) -> bool:
    """Tell whether autocast is on for devices of this type."""
    # The meta device, on which memory is estimated, has no autocast to be asked about.
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def product(x: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the product of rows, and `s x A^T`, which `gradients` needs again."""
    out = nn.functional.linear(x, factors.weight, factors.bias)
    low = nn.functional.linear(x, factors.a).mul_(factors.scale)
    return out.addmm_(low, factors.b.t()), low


def gradients(
    of_out: torch.Tensor, x: torch.Tensor, low: torch.Tensor, factors: Factors
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of `x A^T`, of A and of B, given that of the product."""
    of_low = (of_out @ factors.b).mul_(factors.scale)
    return of_low, of_low.t() @ x, of_out.t() @ low


class _Product(torch.autograd.Function):
    """See `Factors`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, low = product(rows, Factors(weight, bias, a, b, scale))
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        of_out = gradient.reshape(-1, gradient.shape[-1])
        of_low, of_a, of_b = gradients(of_out, rows, low, Factors(weight, None, a, b, ctx.scale))
        if not ctx.needs_input_grad[0]:  # the first layer reads what nothing is trained before
            return None, None, None, of_a, of_b, None
        of_x = (of_out @ weight).addmm_(of_low, a)
        return of_x.view(*gradient.shape[:-1], of_x.shape[-1]), None, None, of_a, of_b, None
