from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radloop.data.reading import read_delimited
from radloop.errors import DataError

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(st.tuples(text.filter(bool), text), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_csv_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, str]], end: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator=end).writerows([("a", "b"), *rows])
    path = write(tmp_path / "t.csv", buffer.getvalue().encode("utf-8-sig"))
    assert [(row["a"], row["b"]) for row in read_delimited(path, ("a", "b"))] == rows


def test_uneven_rows_keep_what_they_have(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", b"a,b\n1\n1,2,3,4\n\n5,6\n")
    assert list(read_delimited(path)) == [
        {"a": "1"},
        {"a": "1", "b": "2", None: ["3", "4"]},
        {"a": "5", "b": "6"},
    ]


def test_damaged_bytes_become_the_replacement_character(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", b"a,b\n\xff\xfe,x\0y\n")
    assert list(read_delimited(path)) == [
        {"a": "\N{REPLACEMENT CHARACTER}" * 2, "b": "x\N{REPLACEMENT CHARACTER}y"}
    ]


def test_tabs_without_header_or_quotes_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt.gz", gzip.compress(b'1\t"half\n2\tx\ty\n'))
    rows = list(read_delimited(path, delimiter="\t", header=("id", "text"), quoted=False))
    assert rows == [{"id": "1", "text": '"half'}, {"id": "2", "text": "x", None: ["y"]}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"x;y\n1;2\n", "header lacks a; found: x;y; needed: a"),
        (b'a\n"' + b"x" * (17 << 20), "cannot be read from line 2 on.*quote"),
    ],
)
def test_unusable_tables_are_one_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = write(tmp_path / "t.csv", content)
    with pytest.raises(DataError, match=words) as caught:
        list(read_delimited(path, ("a",)))
    assert str(path) in str(caught.value)
