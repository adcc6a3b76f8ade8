"""What is wrong with a run config, in words: the place, what was got, and what is allowed."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from radloop.errors import unknown

_SHOWN = 80  # characters of a value
_NEEDED = {"tuple_type": "a list, such as [a, b]", "path_type": "a path as text"}  # as YAML calls them


def find_faults(values: Any, schema: type[BaseModel], error: ValidationError | None) -> list[str]:
    """Return all faults of a run config as it was written, each in one line.

    Args:
        values: The config, as YAML gave it.
        schema: Of the whole config.
        error: What checking `values` against the schema raised, if it did.
    """
    faults = [_describe(_as_written(item, values), schema) for item in error.errors()] if error else []
    if isinstance(values, dict):
        faults += _registry_faults(values)
        if faults:
            # Their names need the family itself, whose import takes seconds; a run without other faults
            # asks for them in its preflight.
            faults += _target_faults(values)
    return faults


def _registry_faults(values: dict[str, Any]) -> list[str]:
    """Check what only the registries know: names of adapters and families, an adapter's options."""
    from radloop import models
    from radloop.data import adapters

    faults = []
    for place, data in _sources(values.get("data")):
        if isinstance(data, dict) and isinstance(name := data.get("adapter"), str):
            if name not in adapters.REGISTRY:
                faults.append(f"{place}.adapter: {unknown('name', name, adapters.REGISTRY)}")
            elif isinstance(options := data.get("options", {}), dict):
                schema = adapters.get_adapter(name).Options
                try:
                    schema.model_validate(options)
                except ValidationError as error:
                    faults += [_describe(item, schema, f"{place}.options") for item in error.errors()]
    family = _in(values, "model", "family")
    if isinstance(family, str) and family not in models.REGISTRY:
        faults.append(f"model.family: {unknown('name', family, models.REGISTRY)}")
    return faults


def _target_faults(values: dict[str, Any]) -> list[str]:
    from radloop import models
    from radloop.config import ModelConfig
    from radloop.training.plan import target_faults

    family = _in(values, "model", "family") or ModelConfig.model_fields["family"].default
    targets = _in(values, "finetune", "targets")
    if not isinstance(family, str) or family not in models.REGISTRY:
        return []
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        return []  # the schema has said so
    return target_faults(models.get_family(family), targets)


def _in(values: dict[str, Any], section: str, key: str) -> Any:
    inner = values.get(section)
    return inner.get(key) if isinstance(inner, dict) else None


def _as_written(item: Any, values: Any) -> Any:
    """Name a single source's field as the config does, without the list that it was put into."""
    data = values.get("data") if isinstance(values, dict) else None
    alone = not isinstance(data, dict) or "sources" not in data
    if alone and item["loc"][:3] == ("data", "sources", 0):
        return item | {"loc": ("data", *item["loc"][3:])}
    return item


def _sources(data: Any) -> list[tuple[str, Any]]:
    """Return the sources as the config has them, each with its place in it."""
    if not isinstance(data, dict) or "sources" not in data:
        return [("data", data)]
    listed = data["sources"] if isinstance(data["sources"], list) else []
    return [(f"data.sources.{number}", source) for number, source in enumerate(listed)]


def _describe(item: Any, schema: type[BaseModel], prefix: str = "") -> str:
    place = ".".join([prefix, *map(str, item["loc"])] if prefix else map(str, item["loc"])) or "config"
    if item["type"] == "extra_forbidden":
        return f"{place}: {unknown('key', str(item['loc'][-1]), _known_keys(schema, item['loc'][:-1]))}"
    if item["type"] == "missing":
        return f"{place}: is missing"
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        known = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return f"{place}: {unknown('value', item['input'], known)}"
    if item["type"] in _NEEDED:
        return f"{place}: needs {_NEEDED[item['type']]}; got {_shortened(item['input'])}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" + ("" if "got " in message else f"; got {_shortened(item['input'])}")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _known_keys(schema: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    for name in loc:
        field = schema.model_fields.get(str(name))
        types = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        schema = inner[0]
    short: type[BaseModel] | None = getattr(schema, "short_form", None)
    return [*(short.model_fields if short else ()), *schema.model_fields]
