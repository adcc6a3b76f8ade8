"""What code and which commit made a result."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent
_SUFFIXES = {".py", ".yaml", ".json", ".sql", ".csv"}


@cache
def code_hash(*parts: str) -> str:
    """Hash the sources of parts of radloop, data files included; of all and its deployment if none is named.

    Args:
        parts: Names of sub-packages or modules, such as "data" or "promotion".

    Returns:
        12 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts or ("", "../deployment"):
        base = ROOT / part
        files = sorted(_sources(base)) if base.is_dir() else [base.with_suffix(".py")]
        for file in files:
            digest.update(file.relative_to(base.parent).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _sources(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.suffix in _SUFFIXES]


def versions_of(*libraries: str) -> dict[str, str | None]:
    """Return the versions of installed libraries by name; None for one that is not installed."""
    return {name: _version(name) for name in libraries}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str:
    """The commit of the project checkout, with '-dirty' when files differ, or 'unknown'."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
