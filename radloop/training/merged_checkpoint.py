"""Writing base and adapter as one stock checkpoint, which appears only when it has been checked.

What is checked, on the files as stock Transformers loads them: each tensor against base and adapter, the
processor against that of the base with the run's settings, and the answers' logits.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import __version__ as peft_version

from radloop import models
from radloop.answering import AnswerConfig
from radloop.errors import ConfigError, ModelError, unknown
from radloop.models.checkpoint_files import listed, read_json, require_bytes, written_whole
from radloop.models.family import Family
from radloop.models.loading import BaseReference, Loaded, with_adapter
from radloop.models.packing import Tokens
from radloop.models.precision import DTYPES, QUANTIZED
from radloop.models.prompts import Prompts
from radloop.models.quiet import without_progress_bars
from radloop.training.adapter import Adapter
from radloop.training.merged_weights import MergedWeights, merge_layers
from radloop.training.merging import Agreement, Expected, standard_probe

logger = logging.getLogger(__name__)

RECORD = "merge.json"
_PROCESSOR_FILES = (".json", ".jinja", ".model", ".txt")
_WEIGHT_FILES = (".safetensors", ".index.json")
_SIZES = ((96, 96), (2000, 1500))  # of images in pixels; the second is scaled down by most limits
_QUESTION = "Is there a pleural effusion?"


def merge(
    adapter: Adapter, folder: Path, precision: str | None = None, answering: AnswerConfig | None = None
) -> Agreement:
    """Write base and adapter as one stock checkpoint that Transformers loads without radloop or PEFT.

    One model is in memory at a time.

    Args:
        adapter: What to merge into its base.
        folder: New; gets the weights (safetensors), the processor and merge.json, all at once.
        precision: A name of `DTYPES`; None is the one that the base computes in.
        answering: How the adapter is to be asked, for merge.json.

    Raises:
        ConfigError: There is something at `folder`, or the precision is unknown or not for this family.
        ModelError: The base or the adapter cannot be loaded, the checkpoint cannot be written, or what
            was written does not hold and say what base and adapter do; nothing is left then.
    """
    _require_precision(adapter, precision)
    if folder.exists():
        raise ConfigError(f"merge: {folder} exists; name a new folder")
    with written_whole(folder) as written:
        promise = _write(adapter, precision, written)
        gc.collect()  # else two models would be in memory
        agreement = _verify(adapter, promise, written)
        record = {
            "adapter_sha256": adapter.sha256,
            "base": dataclasses.asdict(promise.reference) | {"max_pixels": adapter.base.max_pixels},
            "answering": answering and answering.model_dump(mode="json"),
            "weights": {"adapted": len(promise.weights.adapted), "kept": len(promise.weights.kept)},
        }
        (written / RECORD).write_text(json.dumps(record | agreement.facts(), indent=2) + "\n")
    return agreement


@dataclass(frozen=True)
class _Reading:
    """How images and questions reach a model.

    Attributes:
        images: The image processor's settings.
        prompts: A question about an image of each of `_SIZES`.
    """

    images: dict[str, Any]
    prompts: list[Tokens]

    @classmethod
    def of(cls, processor: Any, prompts: Prompts) -> _Reading:
        questions = prompts.questions([_QUESTION] * len(_SIZES), [[size] for size in _SIZES])
        return cls(processor.image_processor.to_dict(), questions)

    def agrees(self, other: _Reading) -> bool:
        ids, others = ([tokens.ids for tokens in reading.prompts] for reading in (self, other))
        return self.images == other.images and ids == others


@dataclass(frozen=True)
class _Promise:
    """What the written checkpoint has to hold and say; no model is kept by it."""

    family: Family
    reference: BaseReference
    device: torch.device
    dtype: torch.dtype
    weights: MergedWeights
    reading: _Reading
    expected: Expected


def _require_precision(adapter: Adapter, precision: str | None) -> None:
    if precision is not None and precision not in DTYPES:
        raise ConfigError(f"merge: {unknown('precision', precision, DTYPES)}")
    allowed = [name for name in models.get_family(adapter.base.family).precisions if name in DTYPES]
    if precision is not None and precision not in allowed:
        raise ConfigError(
            f"merge: got precision {precision!r}, but family {adapter.base.family} allows "
            f"{', '.join(allowed)}"
        )


def _write(adapter: Adapter, precision: str | None, folder: Path) -> _Promise:
    """Write the merged checkpoint with the base's processor, and return what it has to be found to be."""
    loaded = _apart(adapter, precision)
    require_bytes(folder, sum(tensor.nbytes for tensor in loaded.base_model.state_dict().values()))
    reading = _Reading.of(loaded.processor, loaded.prompts)
    expected = Expected.of(loaded, standard_probe(loaded))
    weights = merge_layers(loaded.model)
    with _quiet():
        loaded.model.unload().save_pretrained(folder)
    _write_processor(loaded, models.find(adapter.base)[0], folder)
    return _Promise(
        loaded.family,
        loaded.reference,
        loaded.device,
        loaded.base_model.dtype,
        weights,
        reading,
        expected,
    )


def _apart(adapter: Adapter, precision: str | None) -> Loaded:
    """Load base and adapter in plain layers of one precision."""
    base = adapter.base
    if base.precision not in QUANTIZED and precision is not None:
        # Not all devices are asked to train in fp16, but any can hold it.
        base = base.model_copy(update={"precision": "fp32" if precision == "fp16" else precision})
    loaded = models.load(base)
    model = loaded.model
    dtype = model.dtype if precision is None else DTYPES[precision]
    if base.precision in QUANTIZED:
        logger.warning(
            "merge: the base is of %s; its weights are merged as what they stand for", base.precision
        )
        with _quiet():
            model = model.dequantize(dtype=dtype)
    if base.precision in QUANTIZED or model.dtype != dtype:
        model = model.to(dtype)
    model = with_adapter(model, adapter.folder, loaded.reference)
    return dataclasses.replace(loaded, model=model.eval())


def _write_processor(loaded: Loaded, base: Path, folder: Path) -> None:
    """Copy the base's processor as it is, but for what has been set in it, such as model.max_pixels.

    Saving it anew would write the names of classes that only radloop has.
    """
    for file in sorted(base.iterdir()):
        is_weights = file.name.endswith(_WEIGHT_FILES)
        if file.suffix in _PROCESSOR_FILES and not is_weights and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    stock = loaded.family.load_processor(folder).image_processor.to_dict()
    ours = loaded.processor.image_processor.to_dict()
    if changed := {name: value for name, value in ours.items() if stock.get(name) != value}:
        _set_image_processor(folder, changed)


def _set_image_processor(folder: Path, settings: dict[str, Any]) -> None:
    """Change settings of the image processor where Transformers looks for them first."""
    file = folder / "processor_config.json"
    content = read_json(file) if file.is_file() else {}
    own = content.get("image_processor")
    if own is None:
        file = folder / "preprocessor_config.json"
        content = own = read_json(file)
    own.update(settings)
    for name in ("min_pixels", "max_pixels"):  # by which earlier versions set `size`, and which go before it
        own.pop(name, None)
    file.write_text(json.dumps(content, indent=2) + "\n")


def _verify(adapter: Adapter, promise: _Promise, folder: Path) -> Agreement:
    """Load the checkpoint as stock Transformers does, and compare all that it was to be."""
    fault = f"merge: the merged checkpoint of adapter {adapter.folder}"
    try:
        loaded = _stock(promise, folder)
    except Exception as error:  # what is wrong with a tokenizer's file is no particular kind of error
        raise ModelError(
            f"{fault} cannot be loaded by Transformers {transformers.__version__}: "
            f"{' '.join(str(error).split())}; nothing has been written"
        ) from error
    if faults := promise.weights.faults(loaded.model):
        raise ModelError(
            f"{fault} does not hold the weights of base and adapter: {listed(faults)}; nothing has been "
            f"written; if that happens again, the disk fails, or PEFT {peft_version} or Transformers "
            f"{transformers.__version__} does not write what it has merged"
        )
    if not promise.reading.agrees(_Reading.of(loaded.processor, loaded.prompts)):
        raise ModelError(
            f"{fault} has another processor than the adapter was trained with: other settings for images, "
            "or other tokens for the same question; nothing has been written, mend the processor's files "
            "of the base"
        )
    agreement = promise.expected.compare(standard_probe(loaded).logits(loaded), promise.dtype)
    if not agreement.agrees:
        hint = "fine-tune again" if agreement.precision == "fp32" else "try precision fp32"
        raise ModelError(
            f"{fault} does not say what base and adapter say (in {agreement.precision}, logits differ by "
            f"{agreement.max_difference:.2g}, rounding explains {agreement.tolerance:.2g}; "
            f"{agreement.carried:.0%} of what the adapter changes is left); nothing has been written, {hint}"
        )
    return agreement


def _stock(promise: _Promise, folder: Path) -> Loaded:
    """Return a checkpoint as stock Transformers loads it, with the processor that lies beside it."""
    classes: Any = transformers.AutoModelForImageTextToText
    with _quiet():
        model = classes.from_pretrained(
            folder,
            dtype=promise.dtype,
            use_safetensors=True,
            attn_implementation=promise.family.attention,
            local_files_only=True,
            trust_remote_code=False,
        )
    processor = promise.family.load_processor(folder)
    model = model.to(promise.device).eval()
    prompts = Prompts.of(promise.family, processor, model)
    return Loaded(model, processor, promise.family, prompts, promise.reference)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers' bars and its word on dequantising off the terminal."""
    noisy: Any = transformers.utils.logging
    level = noisy.get_verbosity()
    noisy.set_verbosity_error()
    try:
        with without_progress_bars():
            yield
    finally:
        noisy.set_verbosity(level)
