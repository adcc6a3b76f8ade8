"""When a cached step result still stands: same inputs by content, same parameters, same code."""

from __future__ import annotations

from collections.abc import Callable

from zenml.config import CachePolicy

from radloop.source import code_hash


def data_code() -> str:
    """Code that makes and checks the corpus."""
    return code_hash("data", "artifact", "html")


def training_code() -> str:
    """Code that makes an adapter; answers and their scores choose its weights where `best_by` says so."""
    return code_hash("models", "training", "data", "inference", "evaluation")


def evaluation_code() -> str:
    """Code that scores, judges and decides."""
    return code_hash("models", "training", "data", "inference", "evaluation", "judging", "promotion", "html")


def registry_code() -> str:
    """Code that registers and packages."""
    return code_hash("registry", "packaging", "answering", "models", "inference", "../deployment")


def reuse_while_same(code: Callable[[], str]) -> CachePolicy:
    """Cache by the content of inputs (not by who made them), parameters, and `code()`."""
    return CachePolicy(include_artifact_ids=False, cache_func=code)
