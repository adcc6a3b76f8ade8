"""A model with LoRA layers on a device, and its training step."""

from __future__ import annotations

import copy
import gc
import logging
import platform
import time
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu import attention as attentions
from benchmarks.gpu.shapes import Shape
from radloop.models.family import Features, Inputs
from radloop.models.packing import Batch, Row

# Says on import, which PEFT does, that it lacks a kernel for 4-bit weights on CPUs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

RANK = 16
_ALPHA = 32
_NUM_PICTURES = 8  # that there are; more would tell nothing, as all take the same time
Figures = dict[str, Any]


class Device:
    """What differs between a GPU and the CPU."""

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.is_gpu = self.torch.type == "cuda"

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def reset_peak(self) -> None:
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.torch)

    def peak_bytes(self) -> int | None:
        """Return the most memory that tensors took since `reset_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.torch) if self.is_gpu else None

    def free(self) -> None:
        """Give back what nothing refers to any more."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def facts(self) -> Figures:
        """Return its name and the versions of what runs on it."""
        facts: Figures = {"device": platform.processor() or platform.machine()}
        if self.is_gpu:
            found = torch.cuda.get_device_properties(self.torch)
            facts = {"device": found.name, "memory_bytes": found.total_memory, "cuda": torch.version.cuda}
            facts["capability"] = f"{found.major}.{found.minor}"
        packages = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
        return facts | {"versions": {name: _version(name) for name in packages}}


class Bench:
    """A model with LoRA layers and what it is trained on."""

    def __init__(self, shape: Shape, precision: str, device: Device, attention: str | None = None) -> None:
        """Build the model; `attention` of packed rows is one of `ATTENTIONS`, None: as in training."""
        self.shape, self.precision, self.device = shape, precision, device
        self.model = build(shape, precision, device.torch, attention)
        self.base = self.model.get_base_model()
        self.family = shape.family
        self._packed_attention = self.attention
        # As in training: the frozen vision tower is in eval mode. Checkpointing asks for it layer by layer.
        self.model.eval()
        self.base.model.language_model.train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @cached_property
    def pictures(self) -> list[Inputs]:
        """What a processor makes of some images, in memory that a GPU can copy from."""
        found = [self.shape.inputs(seed, self.base.dtype) for seed in range(_NUM_PICTURES)]
        return [self._pinned(inputs) for inputs in found]

    @cached_property
    def features(self) -> list[Features]:
        """Their features, likewise."""
        return [self._pinned(features) for inputs in self.pictures for features in self._encode([inputs])]

    def encoded(self, image_ids: Sequence[str]) -> list[Features]:
        """Run the vision tower on images."""
        return self._encode([self.pictures[int(name) % _NUM_PICTURES] for name in image_ids])

    def cached(self, image_ids: Sequence[str]) -> list[Features]:
        """Fetch features of images."""
        return [self._moved(self.features[int(name) % _NUM_PICTURES]) for name in image_ids]

    def loss(self, rows: Sequence[Row], cached: bool) -> torch.Tensor:
        """Return the mean cross entropy of the answer tokens of `rows`."""
        image_ids = [name for row in rows for group in row for name in group.image_ids]
        batch = Batch.of(rows, self.device.torch)
        features = self.cached(image_ids) if cached else self.encoded(image_ids)
        with torch.autocast(self.device.torch.type, torch.bfloat16, enabled=self.precision != "fp32"):
            logits = self.family.logits(self.model, batch, features)
            return torch.nn.functional.cross_entropy(logits.float(), batch.targets)

    def step(self, rows: Sequence[Row], cached: bool, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Take an optimiser step; return its loss."""
        loss = self.loss(rows, cached)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def seconds_to_encode(self) -> float:
        """Return how long the vision tower takes for an image, several at once."""
        names = [str(number) for number in range(_NUM_PICTURES)]
        times = []
        for _ in range(3):
            self.device.synchronize()
            start = time.perf_counter()
            self.encoded(names)
            self.device.synchronize()
            times.append(time.perf_counter() - start)
        return min(times) / _NUM_PICTURES

    @property
    def attention(self) -> str:
        """Name of the language model's attention in Transformers."""
        name: str = self.base.config.get_text_config()._attn_implementation
        return name

    def lay_out(self, plain: bool) -> None:
        """Make ready for rows of one sample each, or for packed ones, as it is from the beginning."""
        self.family = attentions.causal(self.shape.family) if plain else self.shape.family
        chosen = attentions.PLAIN if plain else self._packed_attention
        self.base.config.get_text_config()._attn_implementation = chosen

    def checkpoint(self, on: bool) -> None:
        if on:
            self.base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.base.gradient_checkpointing_disable()

    def _encode(self, inputs: Sequence[Inputs]) -> list[Features]:
        with torch.no_grad():
            return self.shape.family.encode(self.base, [self._moved(item) for item in inputs])

    def _moved(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device.torch, non_blocking=True) for name, tensor in tensors.items()}

    def _pinned(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        return (
            {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.device.is_gpu else tensors
        )


def build(shape: Shape, precision: str, device: torch.device, attention: str | None) -> Any:
    """Return a PeftModel of random weights, drawn where they are to stay."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    torch.manual_seed(0)
    with device:
        model = shape.model_class._from_config(
            copy.deepcopy(shape.config), dtype=dtype, attn_implementation=shape.family.attention
        )
    attentions.use(attention, shape.family, model, device)
    if precision == "nf4":
        quantize(model, shape.family.kept_exact)
    patterns = [shape.family.targets[group] for group in ("attention", "mlp")]
    lora = LoraConfig(r=RANK, lora_alpha=_ALPHA, target_modules="|".join(patterns))
    model = get_peft_model(model, lora)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # Else PEFT casts inputs to fp32 and autocast back to bf16, and each layer keeps its own copy.
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]
    return model


def has_nf4() -> bool:
    """Return whether bitsandbytes is here and works; builds for another CUDA fail in several ways."""
    try:
        from bitsandbytes.nn.modules import Linear4bit  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def quantize(model: torch.nn.Module, kept_exact: Sequence[str]) -> None:
    """Turn the linear layers of `model` into NF4, doubly quantised, one by one where they are."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for name in linear:
        if any(part in name for part in kept_exact):
            continue
        module: Any = model.get_submodule(name)
        with torch.device("meta"):
            layer = Linear4bit(
                module.in_features,
                module.out_features,
                module.bias is not None,
                compute_dtype=module.weight.dtype,
                quant_type="nf4",
            )
        weight: Any = Params4bit(module.weight.data, quant_type="nf4", module=layer)
        layer.weight = weight.to(module.weight.device)  # this quantises
        layer.bias = module.bias
        model.set_submodule(name, layer)
    model.is_loaded_in_4bit = True  # type: ignore[assignment] # PEFT asks for it


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
