"""What code and which commit made a result."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent


@cache
def code_hash(*parts: str) -> str:
    """Hash the Python sources of parts of radloop; of all and its deployment when none is named.

    Args:
        parts: Names of sub-packages or modules, such as "data" or "promotion".

    Returns:
        12 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts or ("", "../deployment"):
        base = ROOT / part
        files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
        for file in files:
            digest.update(file.relative_to(base.parent).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def git_commit() -> str:
    """The commit of the project checkout, with '-dirty' when files differ, or 'unknown'."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
