"""An adapter merged into its base: a stock checkpoint that is checked to say what the two say together.

A 4- or 8-bit base is merged as what its weights stand for, in the precision that it computes in: they,
not the weights it was quantised from, are what the adapter was trained on.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from PIL import Image
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from radloop import models
from radloop.errors import ConfigError, ModelError
from radloop.models.loading import Loaded, without_future_warnings
from radloop.models.packing import Batch, Row, groups
from radloop.training.adapter import Adapter

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FLOOR = 1e-4  # difference of logits that means nothing in any precision
_ROUNDINGS = 4.0  # how many times what one more rounding of each adapted layer changes is still rounding
_CARRIED = (0.5, 1.5)
_PROCESSOR_FILES = (".json", ".jinja", ".model", ".txt")
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
        expected = _Expected.of(loaded, probe)
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


def merge(adapter: Adapter, folder: Path, precision: str | None = None) -> Agreement:
    """Write base and adapter as one stock checkpoint that Transformers loads without radloop or PEFT.

    Args:
        adapter: What to merge into its base.
        folder: New; gets the weights (safetensors), the processor and merge.json, all at once.
        precision: A name of `PRECISIONS`; None is the one that the base computes in.

    Raises:
        ConfigError: There is something at `folder`, or the precision is unknown.
        ModelError: The base cannot be loaded, the checkpoint cannot be written, or what was written
            does not say what base and adapter say; nothing is left then.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ConfigError(f"merge: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if folder.exists():
        raise ConfigError(f"merge: {folder} exists; name a new folder")
    loaded = _apart(adapter, precision)
    probe = standard_probe(loaded)
    expected = _Expected.of(loaded, probe)
    dtype = loaded.base_model.dtype
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            written = Path(scratch) / "merged"
            loaded = _save_merged(loaded, adapter, written)
            agreement = expected.compare(probe.logits(loaded), dtype)
            _require(agreement, adapter)
            facts = {"adapter_sha256": adapter.sha256, "base": dataclasses.asdict(loaded.reference)}
            (written / "merge.json").write_text(json.dumps(facts | agreement.facts(), indent=2) + "\n")
            written.rename(folder)
    except OSError as error:
        raise ModelError(
            f"merge: {folder} cannot be written ({error.strerror or error}); nothing is left there, make "
            "room or name another folder"
        ) from error
    return agreement


@dataclass(frozen=True)
class _Expected:
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
    def of(cls, loaded: Loaded, probe: Probe) -> _Expected:
        tuned = probe.logits(loaded)
        with loaded.model.disable_adapter():
            base = probe.logits(loaded)
        with _rounded_once_more(loaded.model, loaded.base_model.dtype):
            noise = (probe.logits(loaded) - tuned).abs().max().item()
        return cls(tuned, base, noise)

    def compare(self, merged: torch.Tensor, dtype: torch.dtype) -> Agreement:
        effect = self.tuned - self.base
        size = effect.square().sum().item()
        # The share by least squares, in which rounding cancels over thousands of logits.
        carried = ((merged - self.base) * effect).sum().item() / size if size else 1.0
        difference = (merged - self.tuned).abs().max().item()
        precision = next(name for name, known in PRECISIONS.items() if known == dtype)
        # What is not a number agrees with nothing, and JSON has no word for it.
        if not (math.isfinite(difference) and math.isfinite(carried)):
            difference, carried = torch.finfo(torch.float32).max, 0.0
        return Agreement(precision, difference, max(_FLOOR, _ROUNDINGS * self.noise), carried)


def _require(agreement: Agreement, adapter: Adapter) -> None:
    if not agreement.agrees:
        raise ModelError(
            f"merge: the merged checkpoint of adapter {adapter.folder} does not say what base and adapter "
            f"say (in {agreement.precision}, logits differ by {agreement.max_difference:.2g}, rounding "
            f"explains {agreement.tolerance:.2g}; {agreement.carried:.0%} of what the adapter changes is "
            "left); nothing has been written, try precision fp32"
        )


def _apart(adapter: Adapter, precision: str | None) -> Loaded:
    """Load base and adapter in plain layers of one precision."""
    base = adapter.base
    if base.precision in ("nf4", "int8"):
        loaded = models.load(base)
        dtype = loaded.base_model.dtype if precision is None else PRECISIONS[precision]
        logger.warning(
            "merge: the base is of %s; its weights are merged as what they stand for", base.precision
        )
        with _quiet():
            model = loaded.model.dequantize(dtype=dtype).to(dtype)
        with without_future_warnings():
            model = PeftModel.from_pretrained(model, adapter.folder, use_safetensors=True)
        return dataclasses.replace(loaded, model=model.eval())
    wanted = base if precision is None else base.model_copy(update={"precision": precision})
    return models.load(wanted, adapter.folder)


def _save_merged(loaded: Loaded, adapter: Adapter, folder: Path) -> Loaded:
    """Write the merged checkpoint with the base's processor, and return it as stock Transformers loads it."""
    device, dtype = loaded.device, loaded.base_model.dtype
    loaded.model.merge_and_unload().save_pretrained(folder)
    source, _ = models.find(adapter.base)
    for file in sorted(source.iterdir()):
        is_weights = file.name.endswith((".safetensors", ".safetensors.index.json"))
        if file.suffix in _PROCESSOR_FILES and not is_weights and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    loaded = dataclasses.replace(loaded, model=None)
    gc.collect()  # else two models would be in memory
    with _quiet():
        stock: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=loaded.family.attention,
            local_files_only=True,
            trust_remote_code=False,
        )
    return dataclasses.replace(loaded, model=stock.to(device).eval())


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
    """Compute with the layer's merged weight, which PEFT makes as for a merge that stays."""
    base = layer.get_base_layer()
    (name,) = layer.active_adapters
    weight = _weight(base).to(inputs.dtype)
    if name in layer.lora_variant:  # DoRA
        merged = layer.lora_variant[name].merge_safe(layer, name, weight.clone())
    else:
        merged = weight + layer.get_delta_weight(name)
    return torch.nn.functional.linear(inputs, merged.to(inputs.dtype), base.bias)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers' bars and its word on dequantising off the terminal."""
    noisy: Any = transformers.utils.logging
    level, bars = noisy.get_verbosity(), noisy.is_progress_bar_enabled()
    noisy.set_verbosity_error()
    noisy.disable_progress_bar()
    try:
        yield
    finally:
        noisy.set_verbosity(level)
        if bars:
            noisy.enable_progress_bar()
