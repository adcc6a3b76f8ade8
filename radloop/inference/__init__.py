"""One engine that answers questions about images, for evaluation and for serving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radloop.inference.engine import Answer, Engine, Request

__all__ = ["Answer", "Engine", "Request"]


def __getattr__(name: str) -> Any:
    """Import torch and transformers, which takes seconds, when the engine is first used."""
    if name in __all__:
        from radloop.inference import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
