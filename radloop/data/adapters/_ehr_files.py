"""Where EHRXQA's questions and databases lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from radloop.data.ehr import Record
from radloop.data.ehr.database import is_database
from radloop.data.reading import some, split_of
from radloop.data.source import signature
from radloop.errors import DataError

QUESTIONS = (".json", ".csv")
_SPLITS = ("train", "valid", "validation", "val", "test")  # names of question files
_DATABASES = {"validation": ("validation", "train", "")}  # splits whose database serves; else its own, or ""


@dataclass(frozen=True)
class File:
    """A file of questions with the database that they are about."""

    name: str
    path: Path
    split: str
    database: Path
    database_signature: tuple[int, int]

    def record(self) -> Record:
        return _record(self.database, self.database_signature)


def look(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Return the question files below a folder, and its databases by split."""
    questions: list[Path] = []
    databases: dict[str, Path] = {}
    for name, folders, names in os.walk(folder):
        # Hundreds of thousands of images lie in "files".
        folders[:] = sorted(inner for inner in folders if inner != "files" and not inner.startswith("."))
        for path in (Path(name, file) for file in sorted(names)):
            if path.suffix in QUESTIONS and path.stem.removeprefix("_") in _SPLITS:
                questions.append(path)
            elif path.suffix == ".db" or (path.suffix == ".sqlite" and is_database(path)):
                databases.setdefault(split_of(path.relative_to(folder)), path)
    # "_train.json" is "train.json" before its answers were computed.
    return [path for path in questions if path.with_name(path.name[1:]) not in questions], databases


def with_database(path: Path, folder: Path, databases: dict[str, Path]) -> File:
    name = path.relative_to(folder)
    split = split_of(name)
    suitable = [databases[one] for one in _DATABASES.get(split, (split, "")) if one in databases]
    if not split and len(databases) == 1:
        suitable = list(databases.values())
    if not suitable:
        listed = some([str(found.relative_to(folder)) for found in databases.values()]) or "none"
        raise DataError(
            f"{path}: no database goes with it; found below {folder}: {listed}; needed: mimic_iv_cxr.db in a "
            "folder train or test, as EHRXQA's build_dataset.sh makes it; or one for all as option `database`"
        )
    return File(str(name), path, split, suitable[0], signature(suitable[0]))


@lru_cache(maxsize=2)  # questions of one file follow each other; a connection holds lists of row numbers
def _record(database: Path, _signature: tuple[int, int]) -> Record:
    return Record(database)
