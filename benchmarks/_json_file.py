"""The file that a benchmark writes its figures into."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def json_file(text: str) -> Path:
    """Return the path that `text` names; an argument type, so that a long run cannot fail at its end.

    Raises:
        argparse.ArgumentTypeError: No file can be written there.
    """
    file = Path(text)
    folder = file.absolute().parent
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"got {text}, which is a folder; name a file in it")
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"got {text}, but there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"got {text}, but {folder} cannot be written to; name another")
    return file


def write(file: Path, figures: dict[str, Any]) -> None:
    """Write them so that there is a whole file at any time: the one before, or this one."""
    scratch = file.with_name(f".{file.name}.part")
    scratch.write_text(json.dumps(figures, indent=2) + "\n")
    scratch.replace(file)
