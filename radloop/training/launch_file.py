"""The file of accelerate that says which processes train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from radloop.errors import ConfigError

_OWN = "name one of configs/accelerate, or write your own with `accelerate config --config_file FILE`"


def read_launch_file(path: Path) -> dict[str, Any]:
    """Return what the file of `finetune.launch` holds.

    Raises:
        ConfigError: It is no file, not one of accelerate's, or wants a GPU where there is none.
    """
    if not path.is_file():
        raise ConfigError(f"finetune.launch: {path} is no file; {_OWN}")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"finetune.launch: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise ConfigError(f"finetune.launch: {path} has no distributed_type; {_OWN}")
    # Accelerate would train on the CPU without a word.
    if content.get("use_cpu") is False and not torch.cuda.is_available():
        raise ConfigError(
            f"finetune.launch: {path} asks for a GPU (use_cpu: false), and there is none here; take "
            "configs/accelerate/two_processes_cpu.yaml, or leave finetune.launch out"
        )
    return content
