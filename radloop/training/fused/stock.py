"""Tells Transformers' copies of a function from functions that only have its name."""

from __future__ import annotations

from types import CodeType
from typing import Any


def is_copy(function: Any, original: Any) -> bool:
    """Say whether a function is one of the copies of `original` in the files of Transformers."""
    code: CodeType | None = getattr(function, "__code__", None)
    return code is not None and _meaning(code) == _meaning(original.__code__)


def _meaning(code: CodeType) -> tuple[object, ...]:
    # The first constant is the docstring, which may tell of other models.
    return code.co_code, code.co_names, code.co_varnames, code.co_consts[1:]
