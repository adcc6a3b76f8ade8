"""LoRA on a linear layer in half of PEFT's passes over memory: the low-rank part is added in place."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.distributed.tensor import DTensor


class LoraLinear(Linear):
    """PEFT's own layer, which it stays in all but the speed of what is the usual case in full precision.

    PEFT multiplies the low-rank part by the scale and adds it in tensors of their own, forward and
    backward. On a CPU, whose memory is slow, that takes a quarter of a step. Here both are part of the
    matrix products; the result differs in the last digits.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapter = self._only_adapter()
        if adapter is None or args or kwargs or autocasts(x.device.type):
            found: torch.Tensor = super().forward(x, *args, **kwargs)
            return found
        base, down, up = self.base_layer, self.lora_A[adapter].weight, self.lora_B[adapter].weight
        if isinstance(down, DTensor) or not x.dtype == base.weight.dtype == down.dtype:
            return super().forward(x)
        out: torch.Tensor = _Product.apply(x, base.weight, base.bias, down, up, self.scaling[adapter])
        return out

    def _only_adapter(self) -> str | None:
        """Return the adapter in use, if there is one and it is plain LoRA without dropout."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        is_plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        return name if is_plain and isinstance(self.lora_dropout[name], nn.Identity) else None


def autocasts(device_type: str) -> bool:
    """Tell whether autocast is on for devices of this type."""
    # The meta device, on which memory is estimated, has no autocast to be asked about.
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


class _Product(torch.autograd.Function):
    """`x W^T + b + s (x A^T) B^T` for a frozen W and b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        out = nn.functional.linear(x, weight, bias)
        low = nn.functional.linear(x, down).mul_(scale)
        out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up.t())
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        of_out = gradient.reshape(-1, gradient.shape[-1])
        of_low = (of_out @ up).mul_(ctx.scale)
        of_up = of_out.t() @ low.view(-1, low.shape[-1])
        of_down = of_low.t() @ x.reshape(-1, x.shape[-1])
        if not ctx.needs_input_grad[0]:  # the first layer reads what nothing is trained before
            return None, None, None, of_down, of_up, None
        of_x = (of_out @ weight).addmm_(of_low, down)
        return of_x.view_as(x), None, None, of_down, of_up, None
