"""Defects planted in two files, 100,000 rows: validation finds these by file and row, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from radloop.config import DataConfig, ValidationConfig
from radloop.data.ingest import ingest
from radloop.data.quality import validate
from tests.unit.data.small import phantom

ROWS = 50_000  # of each file
STEP = 100  # 1 % of the rows are damaged
IMAGES = 7
DAMAGED = "\N{REPLACEMENT CHARACTER}"
BYTE = "\x7f"  # stands for one that is not UTF-8


def row(kind: str, number: int) -> dict[str, Any]:
    return {
        "id": f"{kind}-{number}",
        "image": f"{number % IMAGES}.png",
        "question": f"Is {kind} finding {number} to be seen?",
        "answer": "yes",
    }


def as_csv(values: dict[str, Any]) -> bytes:
    return ",".join(map(str, values.values())).encode().replace(BYTE.encode(), b"\xff")


def as_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode().replace(BYTE.encode(), b"\xff")


def before(name: str) -> str:
    kind, number = name.split("-")
    return f"{kind}-{int(number) - 1}"


# Kind: how the line of a row looks, and why its row is reported. Both formats share these.
SHARED: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "empty question": (lambda r: r | {"question": ""}, "question is empty"),
    "empty answer": (lambda r: r | {"answer": ""}, "answer is empty"),
    "missing image": (lambda r: r | {"image": "nowhere.png"}, "file is missing"),
    "U+FFFD": (lambda r: r | {"question": r["question"] + DAMAGED}, "damaged character"),
    "not UTF-8": (lambda r: r | {"question": r["question"] + BYTE}, "damaged character"),
    "long question": (lambda r: r | {"question": "Is it? " * 715}, "question has more than 2,000"),
    "the id of the row before": (lambda r: r | {"id": before(r["id"])}, "id occurs more than once"),
}
Lines = dict[str, tuple[Callable[[dict[str, Any]], bytes], str]]
CSV: Lines = {
    "too many fields": (lambda r: as_csv(r) + b",more", "mended while reading"),
    "too few fields": (lambda r: as_csv(r).rpartition(b",")[0], "answer is empty"),
    "no text": (lambda r: as_csv(r | {"answer": "NaN"}), "answer is empty"),
    "a stray quote": (lambda r: as_csv(r | {"question": '"' + r["question"]}), "mended while reading"),
}
JSON_LINES: Lines = {
    "too few fields": (lambda r: as_json({"id": r["id"], "image": r["image"]}), "question is empty"),
    "no text": (lambda r: as_json(r | {"answer": {"is": True}}), "answer is empty"),
    "a number": (lambda r: as_json(r | {"question": int(r["id"].split("-")[1])}), "mended while reading"),
    "no object": (lambda r: as_json(list(r.values())), "mended while reading"),  # type: ignore[arg-type]
    "cut short": (lambda r: as_json(r)[:-9], "question is empty"),
}


def planted(name: str) -> tuple[bytes, dict[tuple[str, int], str]]:
    """Return a file, and by file and row the reason for each row that is to be reported."""
    is_csv = name.endswith(".csv")
    whole, own = (as_csv, CSV) if is_csv else (as_json, JSON_LINES)
    rows = [row("comma" if is_csv else "brace", number) for number in range(1, ROWS + 1)]
    lines = [whole(values) for values in rows]
    reasons = {}
    kinds = [*SHARED.values(), *own.values()]
    for place, number in enumerate(range(STEP // 2, ROWS, STEP)):
        change, reason = kinds[place % len(kinds)]
        line = change(rows[number - 1])
        lines[number - 1] = whole(line) if isinstance(line, dict) else line
        reasons[name, number] = reason
        if reason.startswith("id occurs"):
            reasons[name, number - 1] = reason
    header = [",".join(rows[0]).encode()] if is_csv else []
    return b"\n".join([*header, *lines]), reasons


def test_planted_defects_are_reported_by_file_and_row_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    tables = tmp_path / "tables"
    tables.mkdir()
    reasons: dict[tuple[str, int], str] = {}
    for number in range(IMAGES):
        (tables / f"{number}.png").write_bytes(phantom(number))
    for name in ("rows.csv", "rows.jsonl"):
        content, of_file = planted(name)
        (tables / name).write_bytes(content)
        reasons |= of_file
    corpus = ingest(DataConfig(adapter="table", path=str(tables), workers=1))
    assert corpus.rows == 2 * ROWS == corpus.samples.num_rows + sum(corpus.left_out.values())
    found: dict[tuple[str, int], str] = {}
    for finding in validate(corpus, ValidationConfig(max_quarantined=1)).findings.to_pylist():
        place = finding["file"], finding["row_in_file"]
        found[place] = f"{found.get(place, '')}; {finding['reason']}"
    assert found.keys() == reasons.keys()
    assert {place: found[place] for place, reason in reasons.items() if reason not in found[place]} == {}
