"""Telling a full device from other errors."""

from __future__ import annotations

import torch

_ON_CPU = ("not enough memory", "can't allocate memory", "cannot allocate memory", "unable to mmap")


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error is about too little memory: PyTorch has a type for it on GPUs only."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in _ON_CPU)
