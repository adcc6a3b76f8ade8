"""What stops a run, in words that say what to do."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from radloop.errors import TrainingError

_CPU_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory")
_NAMED_SAMPLES = 20


def peak_memory_mb(device: torch.device) -> float:
    """Return the largest memory so far in MB: PyTorch's on a GPU, the whole process' on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@contextmanager
def explain_out_of_memory(where: str, device: torch.device) -> Iterator[None]:
    """Turn a failed allocation in this block into a TrainingError that names what takes less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"finetune: out of memory {where}, after a peak of {peak_memory_mb(device):,.0f} MB; lower "
            "finetune.tokens_per_pass, set finetune.gradient_checkpointing: true or model.precision: nf4. "
            "Checkpoints written before are kept"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in _CPU_OUT_OF_MEMORY)


def require_finite(name: str, value: float, where: str, sample_ids: Sequence[str]) -> None:
    """Stop a run whose `name` is no finite number any more, before it gets into the weights.

    Raises:
        TrainingError: Names the place and the samples of the step.
    """
    if math.isfinite(value):
        return
    named = ", ".join(sample_ids[:_NAMED_SAMPLES])
    more = len(sample_ids) - _NAMED_SAMPLES
    raise TrainingError(
        f"finetune: {name} is {value} {where}, with the samples {named}{f' and {more} more' * (more > 0)}; "
        "lower finetune.learning_rate or raise finetune.warmup, or look at these samples. The step is not "
        "taken; checkpoints written before are kept"
    )
