"""Loading a base model from a folder or the hub, and an adapter onto it. Nothing is executed or unpickled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError, safe_open

from radloop.config import ModelConfig
from radloop.errors import ModelError, OutOfMemory
from radloop.models.base_files import (
    check_files,
    config_sha256,
    is_from_hub,
    locate,
    name_of,
    weights_sha256,
)
from radloop.models.checkpoint_files import listed, read_json
from radloop.models.family import Family, Features, Inputs, base_of
from radloop.models.memory import is_out_of_memory
from radloop.models.precision import QUANTIZED, choose_precision, keep_trainable, precision_options
from radloop.models.prompts import Prompts
from radloop.models.quiet import without_future_warnings, without_progress_bars

LOADING_FAULTS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
    *(ArithmeticError, SafetensorError, StrictDataclassError),
)
# What an adapter's settings may say. By others PEFT imports modules, fetches files or changes base weights.
_LORA_SETTINGS = frozenset(
    {
        *("peft_type", "peft_version", "auto_mapping", "task_type", "inference_mode"),
        *("base_model_name_or_path", "revision", "target_modules"),
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
    }
)


@dataclass(frozen=True)
class BaseReference:
    """Which base model an adapter belongs to: two of equal hashes answer alike.

    Attributes:
        name: 'tiny', 'tiny-FAMILY', the hub id, or the last part of the folder's name.
        revision: Commit of the hub repository; None where it is not from the hub.
        sha256: Over the safetensors files.
        config_sha256: Over config.json; None of a model made in memory.
    """

    name: str
    revision: str | None
    sha256: str
    config_sha256: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A model with all that is needed to run it."""

    model: Any  # a Transformers model, or a PeftModel around it
    processor: Any
    family: Family
    prompts: Prompts
    reference: BaseReference
    precision: str = "fp32"  # of the frozen weights, see `ModelConfig.precision`

    @property
    def is_exact(self) -> bool:
        """Whether an adapter can be merged into the weights without their rounding it away."""
        return self.precision == "fp32"

    @property
    def mixed_precision(self) -> str:
        """In which precision training computes beside the weights' own, as accelerate names it."""
        if self.device.type == "cpu" or self.precision == "fp32":
            return "no"
        return "fp16" if self.precision == "fp16" else "bf16"

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def base_model(self) -> Any:
        """The Transformers model itself, with or without LoRA layers in it."""
        return base_of(self.model)

    def read(self, images: Sequence[Image.Image]) -> list[Inputs]:
        """Return what the processor makes of RGB images, on the model's device and in its dtype."""
        return [
            {name: self._moved(tensor) for name, tensor in self.family.read(self.processor, image).items()}
            for image in images
        ]

    def encode(self, images: Sequence[Image.Image], inputs: Sequence[Inputs] | None = None) -> list[Features]:
        """Return the features of RGB images, in the model's dtype, computed without gradient.

        Args:
            images: The images.
            inputs: Of them, where they are read already.

        Raises:
            ModelError: The processor announces another number of image tokens than there are.
        """
        with self.frozen():
            return self.encode_in_graph(images, inputs)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Compute without gradient and without randomness in this block, whatever the model is doing."""
        training = [module for module in self.model.modules() if module.training]
        # Set directly: PyTorch's way to set an attribute takes longer for all layers than a small image does.
        for module in training:
            vars(module)["training"] = False
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                vars(module)["training"] = True

    def encode_in_graph(
        self, images: Sequence[Image.Image], inputs: Sequence[Inputs] | None = None
    ) -> list[Features]:
        """Return the features as `encode`, for layers before them that are trained: with gradient."""
        if inputs is None:
            inputs = self.read(images)
        features = self.family.encode(self.base_model, inputs) if inputs else []
        for image, found in zip(images, features, strict=True):
            announced = sum(self.prompts.placement(image.size).runs)
            made = self.family.num_image_tokens(found)
            if made is not None and made != announced:
                raise ModelError(
                    f"base model {self.reference.name}: the processor makes {announced} tokens of an image "
                    f"of {image.width} x {image.height} pixels, the model {made}; mend its "
                    "processor_config.json (of a LLaVA: num_additional_image_tokens, patch_size or "
                    "vision_feature_select_strategy)"
                )
        return features

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.base_model.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype)


def load(config: ModelConfig, adapter: Path | None) -> Loaded:
    """See `radloop.models.load`."""
    from radloop.models import get_family

    family = get_family(config.family)
    precision = choose_precision(config, family)
    folder, reference = find(config)
    classes: Any = transformers.AutoModelForImageTextToText
    stock: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _explained_out_of_memory(reference, precision), without_progress_bars():
            model, found = classes.from_pretrained(
                folder,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
                attn_implementation=family.attention,
                **precision_options(precision, family),
                **stock,
            )
            processor = family.load_processor(folder)
            keep_trainable(model)
    except LOADING_FAULTS as error:
        raise ModelError(
            f"base model {reference.name}: cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    _require_same(
        f"base model {reference.name}: its weights are not those of its config.json",
        missing=found["missing_keys"],
        unknown=found["unexpected_keys"],
        misshapen={name for name, *_ in found["mismatched_keys"]},
        hint="mend config.json, or fetch the files again",
    )
    if config.max_pixels is not None:
        family.limit_pixels(processor, config.max_pixels)
    if adapter is not None:
        model = with_adapter(model, adapter, reference)
    if precision not in QUANTIZED:  # those are loaded where they are to stay
        with _explained_out_of_memory(reference, precision):
            model.to("cuda" if torch.cuda.is_available() else "cpu")
    prompts = Prompts.of(family, processor, model.eval())
    return Loaded(model, processor, family, prompts, reference, precision)


@contextmanager
def _explained_out_of_memory(reference: BaseReference, precision: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = "" if precision == "nf4" else "set model.precision: nf4, or "
        raise OutOfMemory(
            f"base model {reference.name}: out of memory while it was loaded; {smaller}free some "
            f"({' '.join(str(error).split()) or type(error).__name__})"
        ) from error


def find(config: ModelConfig) -> tuple[Path, BaseReference]:
    """See `radloop.models.find`."""
    from radloop.models import get_family

    family = get_family(config.family)
    folder = locate(config, family)
    check_files(folder, family, config)
    # The commit is the name of the folder that the hub's client keeps a snapshot in.
    revision = folder.name if is_from_hub(config) else None
    return folder, BaseReference(
        name_of(config), revision, weights_sha256(folder, config), config_sha256(folder)
    )


def with_adapter(model: Any, folder: Path, reference: BaseReference) -> Any:
    """Return `model`, the base that `reference` names, with the LoRA layers of `folder` in it.

    Raises:
        ModelError: Files are missing or damaged, the adapter is anything but LoRA layers, was trained on
            another base, or its weights are not those of its settings.
    """
    from peft import PeftModel, get_peft_model_state_dict

    missing = [
        name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()
    ]
    if missing:
        raise ModelError(
            f"adapter {folder}: lacks {' and '.join(missing)}; give a folder that finetune has written"
        )
    _require_lora(folder)
    if (folder / "base.json").is_file():
        _require_base(folder, reference)
    try:
        with without_future_warnings():
            model = PeftModel.from_pretrained(model, folder, use_safetensors=True)
            expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            written = set(file.keys())
    except LOADING_FAULTS as error:
        raise ModelError(f"adapter {folder}: cannot be loaded: {' '.join(str(error).split())}") from error
    _require_same(
        f"adapter {folder}: its weights are not those of its settings on base {reference.name}",
        missing=expected - written,
        unknown=written - expected,
        hint="give the folder as finetune has written it, or fine-tune again",
    )
    return model


def _require_same(fault: str, hint: str, **found: Set[str]) -> None:
    """Raise a ModelError, `fault` with the names of weights by what is wrong with them and `hint`, if any."""
    if differences := [f"{what} {listed(sorted(names))}" for what, names in found.items() if names]:
        raise ModelError(f"{fault}: {'; '.join(differences)}; {hint}")


def _require_lora(folder: Path) -> None:
    """Raise a ModelError if an adapter is anything but LoRA layers."""
    from peft import LoraConfig

    settings = read_json(folder / "adapter_config.json")
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"adapter {folder}: its adapter_config.json has peft_type {settings.get('peft_type')!r}, but "
            "radloop loads 'LORA' only; fine-tune again"
        )
    stock = LoraConfig()
    others = [
        name
        for name, value in settings.items()
        if name not in _LORA_SETTINGS and value and value != getattr(stock, name, None)
    ]
    if others:
        raise ModelError(
            f"adapter {folder}: its adapter_config.json sets {listed(others)}, which radloop does not "
            "support; fine-tune again without"
        )


def _require_base(folder: Path, reference: BaseReference) -> None:
    """Raise a ModelError if an adapter's base.json tells of another base."""
    trained_on = read_json(folder / "base.json")
    name, weights = trained_on.get("name"), trained_on.get("sha256")
    config = trained_on.get("config_sha256")  # not in those of earlier versions
    if not isinstance(name, str) or not isinstance(weights, str) or not isinstance(config, str | None):
        raise ModelError(
            f"adapter {folder}: its base.json has no name, sha256 or config_sha256 as text; give the folder "
            "as finetune has written it"
        )
    if weights != reference.sha256:
        raise ModelError(
            f"adapter {folder}: was trained on base {name} with weights {weights[:16]}, but this is "
            f"{reference.name} with weights {reference.sha256[:16]}; load the base it was trained on, or "
            "fine-tune again"
        )
    if config not in (None, reference.config_sha256):
        raise ModelError(
            f"adapter {folder}: was trained on base {name} with another config.json than {reference.name} "
            "has now, though with the same weights; restore that, or fine-tune again"
        )
