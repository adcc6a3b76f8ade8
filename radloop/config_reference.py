"""The reference of all config keys, from the schema itself.

Examples:
    python -m radloop.config_reference > docs/config.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from radloop.config import DEFAULT_CONFIG, RunConfig

_HEAD = f"""# Every key of a run config

Written by `python -m radloop.config_reference`. A config file has them below `parameters: config:`, as
[{DEFAULT_CONFIG}](../{DEFAULT_CONFIG}) does; `radloop check FILE` names every fault of one. Options of data
sets are in [data.md](data.md); [training.md](training.md) tells more about fine-tuning.
"""
_NAMES = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
}
_BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


def reference() -> str:
    """Return the page, as Markdown."""
    return "\n".join([_HEAD, *_tables(RunConfig, "")])


def _tables(section: type[BaseModel], place: str) -> Iterator[str]:
    """Yield the table of a section's keys, then those of the sections within."""
    rows, inner = [], []
    for key, field in section.model_fields.items():
        if found := _section(field.annotation):
            inner.append((f"{place}{key}", found))
            continue
        default = "needed" if field.is_required() else f"`{json.dumps(to_jsonable_python(field.default))}`"
        values = _values(field.annotation, field.metadata)
        rows.append(f"| `{key}` | {values} | {default} | {field.description or ''} |")
    if place:
        yield f"## {place.removesuffix('.')}\n\n{(section.__doc__ or '').splitlines()[0]}\n"
    if rows:
        yield "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
    for name, found in inner:
        yield from _tables(found, f"{name}.")


def _section(kind: Any) -> type[BaseModel] | None:
    """Return the section that a field holds: alone, in a list, or optionally."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next(filter(None, map(_section, get_args(kind))), None)


def _values(kind: Any, constraints: Iterable[Any] = ()) -> str:
    if get_origin(kind) is Annotated:
        return _values(kind.__origin__, kind.__metadata__)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_values, get_args(kind)))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_values(get_args(kind)[0])}s"
    if get_origin(kind) is dict:
        return "mapping"
    bounds = " and ".join(_bounds(constraints))
    return f"{_NAMES[kind]} {bounds}".strip()


def _bounds(constraints: Iterable[Any]) -> Iterator[str]:
    for item in constraints:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
        elif type(item) in _BOUNDS:
            name, words = _BOUNDS[type(item)]
            yield f"{words} {getattr(item, name):,}"
        elif pattern := getattr(item, "pattern", None):
            yield f"like `{pattern}`"


if __name__ == "__main__":
    print(reference(), end="")
