"""Model families behind one front: `load` gives model, processor and prompts of any of them.

A family is one file and one line in `REGISTRY`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from radloop.errors import ConfigError, unknown

if TYPE_CHECKING:
    from radloop.config import ModelConfig
    from radloop.models.family import Family
    from radloop.models.loading import BaseReference, Loaded

REGISTRY: dict[str, str] = {
    "blip": "radloop.models.blip:Blip",
    "fuyu": "radloop.models.fuyu:Fuyu",
    "gemma3": "radloop.models.gemma3:Gemma3",
    "idefics3": "radloop.models.idefics3:Idefics3",
    "llava": "radloop.models.llava:Llava",
    "llava_next": "radloop.models.llava_next:LlavaNext",
    "mllama": "radloop.models.mllama:Mllama",
    "qwen2_5_vl": "radloop.models.qwen2_5_vl:Qwen25VL",
    "qwen2_vl": "radloop.models.qwen2_vl:Qwen2VL",
    "qwen3_vl": "radloop.models.qwen3_vl:Qwen3VL",
    "smolvlm": "radloop.models.smolvlm:SmolVLM",
}


def get_family(name: str) -> Family:
    """Return the family of this name.

    Raises:
        ConfigError: The name is unknown; the message lists the known ones.
    """
    if name not in REGISTRY:
        raise ConfigError(unknown("model family", name, REGISTRY))
    module, _, attribute = REGISTRY[name].partition(":")
    family: Family = getattr(import_module(module), attribute)()
    return family


def load(config: ModelConfig, adapter: Path | None = None) -> Loaded:
    """Load a base model, ready to answer: eval mode, fp32 on a CPU, bfloat16 on a GPU.

    Args:
        config: Which base; 'tiny' is the one shipped with radloop.
        adapter: Folder of a LoRA adapter trained on this base, to be put on it.

    Raises:
        ModelError: The base or the adapter is missing, is not of this family, keeps its weights
            in another format than safetensors, or the adapter belongs to another base.
    """
    from radloop.models import loading  # torch and transformers take seconds to import

    return loading.load(config, adapter)


def find(config: ModelConfig) -> tuple[Path, BaseReference]:
    """Return the folder of a base model, fetched from the hub if need be, and what identifies it.

    Raises:
        ModelError: As `load`, but for faults that show only in loading.
    """
    from radloop.models import loading

    return loading.find(config)
