"""Keeping off the terminal what Transformers and PEFT have to tell, where it is no news to a user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers


@contextmanager
def without_future_warnings() -> Iterator[None]:
    """Keep to ourselves what PEFT and Transformers have to tell each other about their next versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep Transformers' bars about loading and writing weights off the terminal."""
    bars: Any = transformers.utils.logging
    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()
