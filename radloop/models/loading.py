"""Loading a base model from a folder or the hub, and an adapter onto it. Nothing is executed or unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError

from radloop.config import ModelConfig
from radloop.errors import ModelError
from radloop.models.prompts import Prompts

# Says on import, which PEFT does, that it lacks a kernel for 4-bit weights.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_LOADING_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


class Family(Protocol):
    """What training and inference need to know about a kind of model, beyond stock Transformers."""

    model_type: str  # as in the model's config.json
    targets: Mapping[str, str]  # group of layers -> regular expression over full module names

    def pixels(self, processor: Any, images: list[Image.Image]) -> torch.Tensor:
        """Return the processor's `pixel_values` of RGB images, float, shape (images, ...)."""

    def encode(self, model: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the frozen vision layers make of `pixels`, shape (images, tokens, channels)."""

    def image_inputs(self, model: Any, features: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of the model's forward that put `encode`'s features in the text."""


@dataclass(frozen=True)
class BaseReference:
    """Which base model an adapter belongs to.

    Attributes:
        name: 'tiny', the hub id, or the last part of the folder's name.
        revision: Commit of the hub repository; None for 'tiny' and folders.
        sha256: Over the safetensors files: what decides whether two bases are the same.
    """

    name: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """A model with all that is needed to run it."""

    model: Any  # a Transformers model, or a PeftModel around it
    processor: Any
    family: Family
    prompts: Prompts
    reference: BaseReference

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def base_model(self) -> Any:
        """The Transformers model itself, with or without LoRA layers in it."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    def encode(self, images: list[Image.Image]) -> torch.Tensor:
        """Return the vision features of RGB images, shape (images, tokens, channels), model's dtype.

        Raises:
            ModelError: The processor announces another number of image tokens than there are.
        """
        pixels = self.family.pixels(self.processor, images).to(self.device, self.base_model.dtype)
        training = self.model.training
        self.model.eval()  # frozen layers have no randomness, whatever the rest is doing
        with torch.no_grad():
            features = self.family.encode(self.base_model, pixels)
        self.model.train(training)
        if features.shape[1] != self.prompts.num_image_tokens:
            announced = self.prompts.num_image_tokens
            raise ModelError(
                f"base model {self.reference.name}: the processor makes {announced} tokens of an image, the "
                f"model {features.shape[1]}; mend num_additional_image_tokens, patch_size or "
                "vision_feature_select_strategy in its processor_config.json"
            )
        return features


def load(config: ModelConfig, adapter: Path | None) -> Loaded:
    """See `radloop.models.load`."""
    from radloop.models import get_family

    family = get_family(config.family)
    folder, reference = find(config)
    on_gpu = torch.cuda.is_available()
    processors: Any = transformers.AutoProcessor
    stock: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _without_progress_bars():
            model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.bfloat16 if on_gpu else torch.float32,
                attn_implementation="sdpa",  # takes the 4-D masks of shared prefixes
                **stock,
            )
            processor = processors.from_pretrained(folder, **stock)
    except _LOADING_FAULTS as error:
        raise ModelError(
            f"base model {config.base}: cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    if adapter is not None:
        model = _with_adapter(model, adapter, reference)
    model.to("cuda" if on_gpu else "cpu").eval()
    return Loaded(model, processor, family, Prompts.of(processor, model), reference)


def find(config: ModelConfig) -> tuple[Path, BaseReference]:
    """See `radloop.models.find`."""
    from radloop.models import get_family

    folder = _locate(config)
    _check(folder, get_family(config.family), config)
    # The commit is the name of the folder that the hub's client keeps a snapshot in.
    from_hub = config.base != "tiny" and not Path(config.base).is_dir()
    name = config.base if from_hub or config.base == "tiny" else Path(config.base).resolve().name
    return folder, BaseReference(name, folder.name if from_hub else None, _weights_sha256(folder))


def _locate(config: ModelConfig) -> Path:
    """Return the folder that holds the base, fetched from the hub if it has to be."""
    if config.base == "tiny":
        from radloop.models.tiny_base import tiny_base_folder

        return tiny_base_folder()
    folder = Path(config.base)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or config.base.startswith(".") or config.base.count("/") != 1:
        raise ModelError(
            f"base model {config.base}: there is no such folder; give 'tiny', a folder, or a hub id such as "
            "'llava-hf/llava-1.5-7b-hf'"
        )
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.base, revision=config.revision, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ModelError(
            f"base model {config.base}: is no folder here and cannot be fetched from the hub "
            f"({type(error).__name__}); give a local folder with its config.json and safetensors files"
        ) from error


def _check(folder: Path, family: Family, config: ModelConfig) -> None:
    """Refuse what cannot or must not be loaded, in words of files rather than of Transformers."""
    try:
        content = json.loads((folder / "config.json").read_text())
        model_type = content.get("model_type") if isinstance(content, dict) else None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"base model {config.base}: {folder / 'config.json'} cannot be read ({error})"
        ) from None
    if model_type != family.model_type:
        raise ModelError(
            f"base model {config.base}: is of type {model_type!r}, but model.family {config.family!r} needs "
            f"{family.model_type!r}"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = (
            f"only pickled weights ({', '.join(pickled)}), which can run code" if pickled else "no weights"
        )
        raise ModelError(
            f"base model {config.base}: has {found}; radloop loads *.safetensors only, save it with "
            "save_pretrained once"
        )


def _weights_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _with_adapter(model: Any, folder: Path, reference: BaseReference) -> Any:
    """Return `model` with the LoRA layers of `folder` in it."""
    from peft import PeftModel

    missing = [
        name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()
    ]
    if missing:
        raise ModelError(
            f"adapter {folder}: lacks {' and '.join(missing)}; give a folder that finetune has written"
        )
    if (folder / "base.json").is_file():
        trained_on = json.loads((folder / "base.json").read_text())
        if trained_on["sha256"] != reference.sha256:
            raise ModelError(
                f"adapter {folder}: was trained on base {trained_on['name']} with weights "
                f"{trained_on['sha256'][:16]}, but this is {reference.name} with weights "
                f"{reference.sha256[:16]}; load the base it was trained on, or fine-tune again"
            )
    try:
        with without_future_warnings():
            return PeftModel.from_pretrained(model, folder, use_safetensors=True)
    except _LOADING_FAULTS as error:
        raise ModelError(f"adapter {folder}: cannot be loaded: {' '.join(str(error).split())}") from error


@contextmanager
def without_future_warnings() -> Iterator[None]:
    """Keep to ourselves what PEFT and Transformers have to tell each other about their next versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep Transformers' "Loading weights" bar off the terminal."""
    bars: Any = transformers.utils.logging
    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()
