"""What real files hold and no format describes: values and damages for every adapter's tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from radloop.data.source import Source
from tests.unit.data.adapters.drive import drive

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 5, 10**400, 2.5, float("nan"), float("inf"), "", " ", "NULL", "nan", "null", "\t\n",
    "/etc/passwd", "../../etc/passwd", "a/../../b.png", "~root/x.png", "C:\\windows\\x.png", "x\0y.png", ".",
    "\N{REPLACEMENT CHARACTER}", "half \ud800 surrogate", "\u202eright to left", "<script>alert(1)</script>",
    "x" * 100_000, "Ä" * 300, [], {}, ["a", None, 3, ["b"]], {"bytes": None}, {"bytes": b"no image"},
    b"\xff\xfe",
)  # fmt: skip


_TEXTS = (
    "id",
    "split",
    "patient",
    "study",
    "question",
    "answer_type",
    "question_type",
    "language",
    "context",
)


def values() -> st.SearchStrategy[Any]:
    """Any of `VALUES`, or random text and JSON."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
    return st.sampled_from(VALUES) | nested


def json_values() -> st.SearchStrategy[Any]:
    """As `values`, what JSON can hold."""
    return values().filter(is_json)


def is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def rows_like(row: dict[str, Any], junk: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """The row with any of its fields missing or replaced by junk, or something that is no row at all."""
    junk = values() if junk is None else junk
    keys = list(row)
    changed = st.dictionaries(st.sampled_from(keys), junk, max_size=len(keys)).map(lambda new: row | new)
    lacking = st.tuples(changed, st.sets(st.sampled_from(keys))).map(
        lambda pair: {key: value for key, value in pair[0].items() if key not in pair[1]}
    )
    return changed | lacking | junk


def survives(source: Source) -> list[dict[str, Any]]:
    """Drive the source: every row becomes well-formed samples or a counted reason, and none raises."""
    samples, refs = drive(source)
    for sample in samples:
        if "left_out" in sample:
            assert sample["left_out"]
            continue
        assert sample["file"]
        assert sample["dataset"]
        assert sample["task"] in ("vqa", "report", "caption", "ehr")
        for name in _TEXTS:
            assert isinstance(sample.get(name, ""), str), name
            sample.get(name, "").encode()  # no half surrogates: Arrow would refuse them
        for name in ("answers", "image_ids", "labels", "notes"):
            assert all(isinstance(text, str) and text.encode() is not None for text in sample.get(name, []))
        assert all(sample.get("answers", [])), "an empty answer is no answer"
        assert set(sample["image_ids"]) <= set(refs)
    return samples


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "only white space": lambda path: path.write_bytes(b" \n\n"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "not UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"e", b"\xe9", 3)),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "byte order mark": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "CRLF": lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
    "null bytes": lambda path: path.write_bytes(path.read_bytes().replace(b"a", b"\0", 2)),
    "another file": lambda path: path.write_bytes(b"%PDF-1.7 not this"),
    "packed twice": lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    "a directory": lambda path: (path.unlink(), path.mkdir())[-1],
}
