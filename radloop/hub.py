"""Repositories of the Hugging Face hub as local folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

_PATIENCE = 5.0  # seconds until the hub counts as out of reach


class HubError(Exception):
    """A repository is not to be had; the message says why, in a part of a sentence."""


def fetch(
    name: str, kind: Literal["model", "dataset"], revision: str | None, patterns: Sequence[str] | None = None
) -> Path:
    """Return the local copy of a repository, made by the first call, and all there is without a network.

    Args:
        name: "owner/name".
        kind: What it holds.
        revision: Commit, branch or tag; None for the newest.
        patterns: Of the files to fetch; None for all.

    Raises:
        HubError: There is no such repository, no access to it, or neither network nor complete copy.
    """
    from huggingface_hub import constants, snapshot_download

    reached = _is_reached(constants.ENDPOINT)
    try:
        return Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision,
                allow_patterns=None if patterns is None else list(patterns),
                etag_timeout=_PATIENCE,
                local_files_only=not reached,
            )
        )
    except Exception as error:  # the library raises its own, the network's and the file system's errors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise HubError(
            reason if reached else f"{constants.ENDPOINT} does not answer, and there is no copy here"
        ) from error


def _is_reached(endpoint: str) -> bool:
    """Tell whether the hub answers at all: without it, the library tries again for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(endpoint, timeout=_PATIENCE)
    except Exception:  # of whichever HTTP client the library uses
        return False
    return True
