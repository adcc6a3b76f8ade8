"""A base model without its weights: all that can be known of it at no cost of memory or time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from radloop.config import ModelConfig
from radloop.errors import ModelError
from radloop.models import get_family
from radloop.models.family import Family
from radloop.models.loading import LOADING_FAULTS, Loaded, find
from radloop.models.precision import choose_precision, name_of, precision_options
from radloop.models.prompts import Prompts


class Sketch(Loaded):
    """A model on PyTorch's meta device: its tensors have shapes and dtypes, and no contents.

    Processor and prompts are those of the model itself. Quantised layers stand there in the dtype that
    they compute in, which `precision` names on a GPU.
    """

    @property
    def device(self) -> torch.device:
        """Where token ids, masks and positions are, which do have contents."""
        return torch.device("cpu")


def sketch(config: ModelConfig) -> Sketch:
    """Return a base model, ready to be looked at.

    Raises:
        ConfigError: See `choose_precision`.
        ModelError: There is no such base, or its config or processor cannot be loaded.
    """
    family = get_family(config.family)
    precision = choose_precision(config, family)
    dtype = precision_options(precision, family)["dtype"]
    folder, reference = find(config)
    try:
        model = _without_weights(folder, family, dtype)
        processor = family.load_processor(folder)
    except LOADING_FAULTS as error:
        raise ModelError(
            f"base model {reference.name}: cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    if config.max_pixels is not None:
        family.limit_pixels(processor, config.max_pixels)
    if torch.cuda.is_available():  # `device` is the CPU, which cannot do all that a GPU can with 8 bits
        precision = name_of(dtype)
    return Sketch(model, processor, family, Prompts.of(family, processor, model), reference, precision)


def on_meta() -> torch.device:
    """Return what makes every tensor in a `with` block one without contents, fresh LoRA layers included."""
    return torch.device("meta")


def _without_weights(folder: Path, family: Family, dtype: torch.dtype) -> Any:
    stock: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    settings = transformers.AutoConfig.from_pretrained(folder, **stock)
    classes: Any = transformers.AutoModelForImageTextToText
    with on_meta():
        model = classes.from_config(settings, attn_implementation=family.attention, dtype=dtype)
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()
