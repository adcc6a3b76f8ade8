"""Puts rows in the place of those that a source would read, and damages files that it will read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from radloop.data.source import Source, Unit
from radloop.errors import DataError
from tests.unit.data.adapters.hostile import DAMAGES, survives


def given(source: Source, file: str, *rows: Any) -> Source:
    """Return the source with these raw rows as its only unit."""

    class Given(type(source)):  # type: ignore[misc]
        def units(self) -> Iterator[Unit]:
            yield Unit(file, 1, rows)

    fields = dataclasses.fields(source)  # type: ignore[arg-type]
    return Given(**{field.name: getattr(source, field.name) for field in fields})


def damage_and_read(path: Path, damage: str, opened: Callable[[], Source]) -> None:
    """Damage a file: its rows survive, or one error names the file."""
    try:
        DAMAGES[damage](path)
    except UnicodeDecodeError:
        pytest.skip("this damage is one of text files")
    try:
        assert survives(opened())
        message = path.name
    except DataError as error:
        message = str(error)
    assert path.name in message
