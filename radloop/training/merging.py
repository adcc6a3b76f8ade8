"""Whether base and adapter still say the same when they are merged: the comparison of their logits.

A 4- or 8-bit base is merged as what its weights stand for, in the precision that it computes in: they,
not the weights it was quantised from, are what the adapter was trained on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from peft.tuners.lora.layer import LoraLayer
from PIL import Image
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from radloop.errors import ModelError
from radloop.models.loading import Loaded
from radloop.models.packing import Batch, Row, groups
from radloop.models.precision import name_of
from radloop.training.adapter import Adapter

_FLOOR = 1e-4  # difference of logits that means nothing in any precision
_ROUNDINGS = 4.0  # how many times what one more rounding of each adapted layer changes is still rounding
_CARRIED = (0.85, 1.15)  # of the effect; rounding to bf16 leaves 0.92 to 1.05 of that of a run of four steps
_QUANTIZED = ("Linear4bit", "Linear8bitLt")
_QUESTIONS = ("Is there a pleural effusion?", "What abnormality is seen in the left lung?", "Which side?")


@dataclass(frozen=True)
class Agreement:
    """How far the merged model is from base and adapter.

    Attributes:
        precision: Of the merged weights.
        max_difference: Largest difference of two logits.
        tolerance: What rounding to this precision explains.
        carried: Share of what the adapter changes that the merged model shows, 1 being all; it tells a
            merge that lost the adapter even where the adapter changes little.
    """

    precision: str
    max_difference: float
    tolerance: float
    carried: float

    @property
    def agrees(self) -> bool:
        low, high = _CARRIED
        return self.max_difference <= self.tolerance and low <= self.carried <= high

    def facts(self) -> dict[str, str | float | bool]:
        """Return all of it for a record."""
        return dataclasses.asdict(self) | {"agrees": self.agrees}


@dataclass(frozen=True)
class Probe:
    """Questions about images, to compare models by what they say next.

    Attributes:
        rows: The questions, with or without answers.
        images: By id, RGB.
    """

    rows: list[Row]
    images: Mapping[str, Image.Image]

    def logits(self, loaded: Loaded) -> torch.Tensor:
        """Return the logits after each question and at each answer token, float32, on the CPU."""
        shown = [image_id for row in self.rows for group in row for image_id in group.image_ids]
        with torch.no_grad():
            features = loaded.encode([self.images[image_id] for image_id in shown])
            batch = Batch.of(self.rows, loaded.device)
            return loaded.family.logits(loaded.model, batch, features).float().cpu()


def verify_merge(loaded: Loaded, probe: Probe) -> Agreement:
    """Compare base and adapter with the two merged, in memory and one layer at a time; nothing is changed.

    Args:
        loaded: A base with an adapter.
        probe: What to compare them on.
    """
    training = loaded.model.training
    loaded.model.eval()
    with _dequantized(loaded.model):
        expected = Expected.of(loaded, probe)
        with _as_if_merged(loaded.model):
            merged = probe.logits(loaded)
    loaded.model.train(training)
    return expected.compare(merged, loaded.base_model.dtype)


def require_agreement(adapter: Adapter) -> None:
    """Refuse an adapter that does not say the same when it is merged.

    Raises:
        ModelError: Its record says so, or does not say anything.
    """
    found = adapter.record.get("merge")
    if found is None:
        raise ModelError(
            f"adapter {adapter.folder}: its record does not say whether it can be merged into its base, as "
            "those of earlier versions of radloop; fine-tune again"
        )
    if not found["agrees"]:
        raise ModelError(
            f"adapter {adapter.folder}: merged into its base in {found['precision']}, it says something "
            f"else: logits differ by {found['max_difference']:.2g}, rounding explains "
            f"{found['tolerance']:.2g}, and {found['carried']:.0%} of what it changes is left; fine-tune "
            "again in another model.precision or with a higher finetune.learning_rate"
        )


@dataclass(frozen=True)
class Expected:
    """What a merged model has to say, and how exactly.

    Attributes:
        tuned: Logits of base and adapter.
        base: Logits of the base alone.
        noise: Largest change of a logit by one more rounding of each adapted layer's output.
    """

    tuned: torch.Tensor
    base: torch.Tensor
    noise: float

    @classmethod
    def of(cls, loaded: Loaded, probe: Probe) -> Expected:
        """Ask base and adapter, in plain layers."""
        tuned = probe.logits(loaded)
        with loaded.model.disable_adapter():
            base = probe.logits(loaded)
        with _rounded_once_more(loaded.model, loaded.base_model.dtype):
            noise = (probe.logits(loaded) - tuned).abs().max().item()
        return cls(tuned, base, noise)

    def compare(self, merged: torch.Tensor, dtype: torch.dtype) -> Agreement:
        """Compare a merged model's logits, its weights being of this dtype, with those expected."""
        effect = self.tuned - self.base
        size = effect.square().sum().item()
        # The share by least squares, in which rounding cancels over thousands of logits.
        carried = ((merged - self.base) * effect).sum().item() / size if size else 1.0
        difference = (merged - self.tuned).abs().max().item()
        # What is not a number agrees with nothing, and JSON has no word for it.
        if not (math.isfinite(difference) and math.isfinite(carried)):
            difference, carried = torch.finfo(torch.float32).max, 0.0
        return Agreement(name_of(dtype), difference, max(_FLOOR, _ROUNDINGS * self.noise), carried)


def standard_probe(loaded: Loaded) -> Probe:
    """Ask the same questions about two pictures of noise, where no data are at hand."""
    generator = np.random.default_rng(0)
    images = {
        name: Image.fromarray(generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for name in ("a", "b")
    }
    prompts = loaded.prompts.questions(_QUESTIONS, [[(96, 96)]] * len(_QUESTIONS))
    return Probe([(group,) for name in images for group in groups([name], prompts, False)], images)


@contextmanager
def _dequantized(model: Any) -> Iterator[None]:
    """Let 4- and 8-bit layers compute with what their weights stand for, as the merged ones will."""
    layers = [
        layer
        for layer in model.modules()
        if type(layer).__name__ in _QUANTIZED and not isinstance(layer, LoraLayer)  # which PEFT names alike
    ]
    with _computing(layers, _dequantized_forward):
        yield


def _dequantized_forward(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(inputs, _weight(layer).to(inputs.dtype), layer.bias)


@contextmanager
def _as_if_merged(model: Any) -> Iterator[None]:
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    with _computing(layers, _merged_forward):
        yield


def _merged_forward(layer: Any, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Compute with the layer's merged weight."""
    weight = merged_weight(layer, inputs.dtype)
    return torch.nn.functional.linear(inputs, weight, layer.get_base_layer().bias)


def merged_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return what PEFT's `merge` makes of a layer's weight, bit for bit, and leave the layer as it is."""
    (name,) = layer.active_adapters
    weight = _weight(layer.get_base_layer()).to(dtype)
    with torch.autocast(weight.device.type, enabled=False):  # it would round the product on its own
        if name in layer.lora_variant:  # DoRA
            merged: torch.Tensor = layer.lora_variant[name].merge_safe(layer, name, weight.clone())
        else:
            merged = weight + layer.get_delta_weight(name)
    return merged.to(dtype)


def _weight(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    return weight


@contextmanager
def _computing(layers: list[Any], forward: Any) -> Iterator[None]:
    before = [vars(layer).get("forward") for layer in layers]  # accelerate puts its own there
    for layer in layers:
        layer.forward = partial(forward, layer)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own


@contextmanager
def _rounded_once_more(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Add to the output of each adapted layer what rounding it to `dtype` may have taken away."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.finfo(dtype).eps / 2

    def add(_layer: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        exact = output.float()
        return (exact + unit * exact.square().mean().sqrt() * noise).to(output.dtype)

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(add).remove)
        yield
