"""The suites as data: what each task's rows have to meet, shipped as YAML that a user extends in YAML.

`expectations/*.yaml` hold what ships; `common.yaml` explains the keys. A user's file has the same form:

    task: report
    without: [report has fewer than 3 words]
    expectations:
      - expect: ExpectColumnValuesToNotMatchRegex
        column: answer
        regex: (?i)dictated but not read
        reason: report was never signed
        remedy: ask for the signed version
        severity: error
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radloop.data.quality import gx
from radloop.errors import ConfigError, unknown

Severity = Literal["error", "warning"]
SuiteName = Literal["common", "vqa", "report", "caption", "ehr", "images"]
Scalar = str | int | float | bool

FOLDER = Path(__file__).with_name("expectations")
TASKS: tuple[SuiteName, ...] = ("vqa", "report", "caption", "ehr")
SUITES: tuple[SuiteName, ...] = ("common", *TASKS, "images")
_TEXT = "text"
_SHOWN_LENGTH = 60  # characters of a wrong value in a message
_SAMPLE_TEXTS = (
    *("id", "dataset", "split", "patient", "study", "task", "question", "answer", "answer_type"),
    *("question_type", "language", "context", "image", "file"),
)
_SAMPLE_FLAGS = (
    *("repeated_id", "without_image", "unknown_image", "repeated", "contested", "damaged_text"),
    *("leaks_patient", "leaks_study", "leaks_image", "leaks_near_image", "leaks_text"),
)
_IMAGE_FLAGS = ("missing", "blank", "same_pixels", "near_duplicate", "burnt_in_text")
# Each column with a value of its type. Texts of samples are never null but for `notes`; an image that
# is missing or unreadable lacks (None) what could not be seen.
SAMPLE_COLUMNS: Mapping[str, Scalar] = {
    "row": 0,
    **dict.fromkeys(_SAMPLE_TEXTS, _TEXT),
    "notes": _TEXT,
    **dict.fromkeys(("num_answers", "question_words", "answer_words"), 1),
    **dict.fromkeys(_SAMPLE_FLAGS, False),
}
IMAGE_COLUMNS: Mapping[str, Scalar] = {
    "row": 0,
    **dict.fromkeys(("id", "image", "dataset", "error", "size", "mode", "format"), _TEXT),
    **dict.fromkeys(("modality", "body_part", "view"), _TEXT),
    **dict.fromkeys(("shortest_side", "frames"), 1),
    **dict.fromkeys(_IMAGE_FLAGS, False),
}


@dataclass(frozen=True)
class Check:
    """One expectation, in the report's words.

    Attributes:
        reason: What is wrong with a row that fails, such as "question is empty"; names the check.
        remedy: What to do about it.
        severity: "error" quarantines the row, "warning" only reports it.
        expectation: Class name in `great_expectations.expectations`.
        arguments: The expectation's own arguments, its columns among them.
        where: Rows that the check looks at: column to the value, or values, that it must have.
        show: The column whose value the report shows.
    """

    reason: str
    remedy: str
    severity: Severity
    expectation: str
    arguments: dict[str, Any]
    where: dict[str, Scalar | list[Scalar]]
    show: str

    @property
    def columns(self) -> set[str]:
        return {*_columns(self.arguments), *self.where, self.show}


@dataclass(frozen=True)
class Suite:
    """The checks of one task, of `images`, or of samples whose task is not known (`common`)."""

    name: SuiteName
    checks: tuple[Check, ...]


_Words = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    """One expectation of a file; its further keys are the expectation's own arguments."""

    model_config = ConfigDict(extra="allow", strict=True)

    expect: _Words
    reason: _Words
    remedy: _Words
    severity: Severity
    show: str | None = None
    where: dict[str, Scalar | list[Scalar]] = {}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    task: SuiteName
    without: list[str] = []
    expectations: list[Any] = []


def load_suites(extra: Sequence[Path] = ()) -> dict[SuiteName, Suite]:
    """Read the shipped suites and extend them by the user's files, in their order.

    A file on `common` extends the suites of all tasks. A file's `without` switches expectations off
    before its own are added, so that it can also replace one under the same reason.

    Raises:
        ConfigError: Files cannot be read or hold faults; all faults of all files, with file and entry.
    """
    checks = {name: list(suite.checks) for name, suite in _shipped().items()}
    return _extended(checks, map(Path, extra))


@functools.cache
def _shipped() -> dict[SuiteName, Suite]:
    return _extended({name: [] for name in SUITES}, (FOLDER / f"{name}.yaml" for name in SUITES))


def _extended(checks: dict[SuiteName, list[Check]], paths: Iterable[Path]) -> dict[SuiteName, Suite]:
    faults = [f"{path}: {fault}" for path in paths for fault in _extend(checks, path)]
    if faults:
        raise ConfigError("\n".join(["the expectations hold faults:", *(f"  {fault}" for fault in faults)]))
    return {name: Suite(name, tuple(items)) for name, items in checks.items()}


def _extend(checks: dict[SuiteName, list[Check]], path: Path) -> Iterator[str]:
    """Add a file's checks to the suites in place; yield its faults."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        yield f"cannot be read as YAML: {' '.join(str(error).split())}"
        return
    if not isinstance(content, dict):
        yield f"holds {_shortened(content)}; a mapping with task and expectations is needed"
        return
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        yield from (_described(item, list(_File.model_fields)) for item in error.errors())
        return
    targets = ["common", *TASKS] if file.task == "common" else [file.task]
    known = [check.reason for check in checks[file.task]]
    yield from (unknown("expectation in without", reason, known) for reason in set(file.without) - {*known})
    for name in targets:
        checks[name][:] = [check for check in checks[name] if check.reason not in file.without]
    added: dict[int, Check] = {}
    for number, item in enumerate(file.expectations, start=1):
        check, faults = _check(item, file.task)
        taken = {other.reason for name in targets for other in checks[name]}
        if check and check.reason in taken:
            faults = [f"reason {check.reason!r} is taken; change it, or list it under without"]
        elif check:
            added[number] = check
            for name in targets:
                checks[name].append(check)
        yield from (f"entry {number}: {fault}" for fault in faults)
    tried = gx.try_out(list(added.values()), _known_columns(file.task))
    yield from (f"entry {number}: {fault}" for number, fault in zip(added, tried, strict=True) if fault)


def _known_columns(name: SuiteName) -> Mapping[str, Scalar]:
    return IMAGE_COLUMNS if name == "images" else SAMPLE_COLUMNS


def _check(item: Any, task: SuiteName) -> tuple[Check | None, list[str]]:
    """Return the entry's check, or None and what is wrong with the entry."""
    if not isinstance(item, dict):
        return None, [f"is {_shortened(item)}; a mapping with expect, reason, remedy, severity is needed"]
    try:
        entry = _Entry.model_validate(item)
        faults: list[str] = []
    except ValidationError as error:
        entry = None
        told = (_described(fault, list(_Entry.model_fields)) for fault in error.errors())
        faults = list(dict.fromkeys(told))
    own = {str(key): value for key, value in item.items() if key not in _Entry.model_fields}
    faults += _argument_faults(item.get("expect"), own)
    used = {*_columns(own), *([entry.show] if entry and entry.show else []), *(entry.where if entry else ())}
    known = list(_known_columns(task))
    faults += [unknown("column", name, known) for name in sorted(used - {*known})]
    if faults or entry is None:
        return None, faults
    show = entry.show or _columns(own)[0]
    return Check(entry.reason, entry.remedy, entry.severity, entry.expect, own, entry.where, show), []


def _argument_faults(name: Any, arguments: dict[str, Any]) -> list[str]:
    """Say what is wrong with the expectation's name and the names of its arguments."""
    if not isinstance(name, str):
        return []  # the schema has said so
    kinds = gx.row_wise()
    if name not in kinds:
        hint = gx.refusal(name)
        return (
            [f"{name} is not possible here: {hint}"] if hint else [unknown("expectation", name, list(kinds))]
        )
    allowed = gx.arguments(kinds[name])
    known = [*allowed, *_Entry.model_fields]
    faults = [unknown(f"argument of {name}", key, known) for key in arguments if key not in allowed]
    required = [key for key, is_required in allowed.items() if is_required]
    return faults + [f"argument {key} of {name} is missing" for key in required if key not in arguments]


def _columns(arguments: Mapping[str, Any]) -> list[str]:
    names = [arguments[key] for key in ("column", "column_A", "column_B") if key in arguments]
    several = arguments.get("column_list")
    return [str(name) for name in (*names, *(several if isinstance(several, list) else ()))]


def _described(fault: Any, known: list[str]) -> str:
    if fault["loc"][0] == "where" and len(fault["loc"]) > 1:  # each kind of value is refused by itself
        place, needed = f"where.{fault['loc'][1]}", "a text, a number, true or false, or a list of these"
        return f"{place}: needs {needed}; got {_shortened(fault['input'])}"
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "extra_forbidden":
        return unknown("key", place, known)
    if fault["type"] == "literal_error":
        return unknown(place, str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"{place}: {fault['msg'].lower()}; got {_shortened(fault['input'])}"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."
