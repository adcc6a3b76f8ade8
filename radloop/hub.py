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
    """Return the local copy of a repository, made by the first call; the one there is without a network.

    Args:
        name: "owner/name".
        kind: What it holds.
        revision: Commit, branch or tag; None for the newest.
        patterns: Of the files to fetch; None for all.

    Raises:
        HubError: There is no such repository, no access to it, or no network and no copy; also where
            fetching a data set was broken off, of which nobody would notice what is missing.
    """
    from huggingface_hub import constants, snapshot_download

    away = _why_away(constants.ENDPOINT)
    try:
        folder = Path(
            snapshot_download(
                name,
                repo_type=kind,
                revision=revision,
                allow_patterns=None if patterns is None else list(patterns),
                etag_timeout=_PATIENCE,
                local_files_only=away is not None,
            )
        )
    except Exception as error:  # the library raises its own, the network's and the file system's errors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise HubError(reason if away is None else f"{away}, and there is no whole copy here") from error
    if away is not None and kind == "dataset" and list(folder.parents[1].glob("blobs/*.incomplete")):
        raise HubError(f"{away}, and fetching the copy here ({folder}) was broken off")
    return folder


def _why_away(endpoint: str) -> str | None:
    """Say why the hub is out of reach, if it is: the library by itself tries again for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(endpoint, timeout=_PATIENCE)
    except Exception as error:  # of whichever HTTP client the library uses
        return f"{endpoint} cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"
    return None
