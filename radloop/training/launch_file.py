"""The file of accelerate that says which processes train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from radloop.config import FinetuneConfig, ModelConfig
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
    if not isinstance(content, dict) or content.get("distributed_type") is None:
        raise ConfigError(f"finetune.launch: {path} has no distributed_type; {_OWN}")
    try:
        load_config_from_file(str(path))
    except Exception as error:  # of another file than its own, of any kind
        raise ConfigError(
            f"finetune.launch: {path} is refused by accelerate: {' '.join(str(error).split())}; {_OWN}"
        ) from None
    _require_processes(path, content)
    # Accelerate would train on the CPU without a word.
    if content.get("use_cpu") is False and not torch.cuda.is_available():
        raise ConfigError(
            f"finetune.launch: {path} asks for a GPU (use_cpu: false), and there is none here; take "
            "configs/accelerate/two_processes_cpu.yaml, or leave finetune.launch out"
        )
    return content


def _require_processes(path: Path, content: dict[str, Any]) -> None:
    # YAML takes a NO without quotes for false, and accelerate that for NO.
    alone, number = content["distributed_type"] in ("NO", False), content.get("num_processes")
    if alone and number not in (None, 1):
        raise ConfigError(
            f"finetune.launch: {path} has num_processes: {number} with distributed_type: NO, which is one "
            "process; take MULTI_GPU (with use_cpu: true for processes on a CPU), or num_processes: 1"
        )
    if not alone and (type(number) is not int or number < 1):
        raise ConfigError(
            f"finetune.launch: {path} has num_processes: {number}; needed is how many processes to start, "
            "at least 1"
        )


def require_launchable(path: Path, model: ModelConfig, config: FinetuneConfig) -> None:
    """Make sure that the processes of a launch file can train as a config says.

    Raises:
        ConfigError: As `read_launch_file`, or FSDP cannot divide what bitsandbytes makes.
    """
    content = read_launch_file(path)
    if content["distributed_type"] != "FSDP":
        return
    faults = []
    settings = content.get("fsdp_config")
    version = settings.get("fsdp_version", 1) if isinstance(settings, dict) else 1  # as accelerate has it
    if str(version) != "2":
        faults.append(f"finetune.launch: {path} has fsdp_version: {version}; set it to 2")
    if model.precision == "int8":
        faults.append("model.precision: got int8, whose weights FSDP cannot divide; take bf16 or nf4")
    if config.optimizer != "adamw":
        faults.append(
            f"finetune.optimizer: got {config.optimizer}, whose state FSDP cannot divide; take adamw, of "
            "which each process keeps its part only"
        )
    if faults:
        other = "or configs/accelerate/multi_gpu.yaml, where each process has a whole copy"
        raise ConfigError("\n".join(f"{fault}, {other}" for fault in faults))


def is_divided(path: Path, model: ModelConfig) -> bool:
    """Tell whether processes share one copy of the base: FSDP leaves weights in 4 bits whole."""
    return read_launch_file(path)["distributed_type"] == "FSDP" and model.precision != "nf4"
