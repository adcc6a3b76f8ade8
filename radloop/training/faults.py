"""What stops a run, in words that say what to do."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from radloop.config import FinetuneConfig
from radloop.errors import OutOfMemory, TrainingError
from radloop.models.loading import Loaded
from radloop.models.memory import is_out_of_memory

_NAMED_SAMPLES = 20
_SHOWN = 300  # characters of another library's message


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` count from now on, on a GPU; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Return the largest memory in MB: PyTorch's since the run began on a GPU, the process' on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return _peak_resident_bytes() / 1e6


def _peak_resident_bytes() -> int:
    try:  # what getrusage knows begins with the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # not on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def explain_out_of_memory(
    where: str, device: torch.device, advice: str = "free some, or take a machine with more"
) -> Iterator[None]:
    """Turn a failed allocation in this block into an OutOfMemory with advice, such as `less_memory`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:_SHOWN]
        raise OutOfMemory(
            f"finetune: out of memory {where}, after a peak of {peak_memory_mb(device):,.0f} MB; {advice}. "
            f"Checkpoints written before are kept{words and f'. What PyTorch says: {words}'}"
        ) from error


def less_memory(loaded: Loaded, config: FinetuneConfig) -> str:
    """Say which settings take less memory, of those that are not what they could be yet."""
    verb = "set" if config.tokens_per_pass is None else "lower"
    known = [f"{verb} finetune.tokens_per_pass"]
    if not config.gradient_checkpointing and loaded.base_model.supports_gradient_checkpointing:
        known.append("set finetune.gradient_checkpointing: true")
    if loaded.precision != "nf4" and "nf4" in loaded.family.precisions:
        known.append("set model.precision: nf4")
    return " or ".join(known)


def not_finite(
    name: str, value: float, where: str, sample_ids: Sequence[str], config: FinetuneConfig, *, of_base: bool
) -> TrainingError:
    """Return the error of a run whose `name` is no finite number any more.

    Args:
        name: Of the figure.
        value: What it is.
        where: Step and learning rate.
        sample_ids: Of what it was computed from.
        config: Of the run.
        of_base: Whether nothing has been learnt yet, so that the base is all that it was computed with.
    """
    named = ", ".join(sample_ids[:_NAMED_SAMPLES])
    more = len(sample_ids) - _NAMED_SAMPLES
    warmup = "warmup" if config.warmup_steps is None else "warmup_steps"
    samples = f"{name} is {value} {where}, with the samples {named}{f' and {more} more' * (more > 0)}"
    if of_base:
        return TrainingError(
            f"finetune: {samples}; nothing has been learnt yet, so it is the base's own: look at its weights "
            "(download them again, and have model.sha256 compared), at model.precision and at these samples"
        )
    return TrainingError(
        f"finetune: {samples}; lower finetune.learning_rate or raise finetune.{warmup}, or look at these "
        "samples. Nothing of this step is kept; checkpoints written before are"
    )
