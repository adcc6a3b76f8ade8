from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radloop.data.reading import json_rows, read_json, read_json_lines, read_json_parts
from radloop.errors import DataError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
in_tmp = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "ends too early"),
        (b"qid,question\n1,x\n", "is not JSON: .* line 1"),
        (b'[{"qid": 1, "question": "x"}', "is not JSON: the file ends too early.*copied completely"),
        (b'[{"qid": 1, "question": "x"}}', "'}' in place of a comma or ]"),
        (b'[{"qid": 1}] x', "'x' after the end"),
        (b'[1,\n2,\n\n{"a" 5}]', "line 4"),
        ('[{"qid": "ä"}]'.encode("latin-1"), "is not UTF-8 .byte 0xe4"),
        ('[{"qid": 1}]'.encode("utf-16"), "is not UTF-8"),
        (b'{"data": [1], "info": 1}', "one JSON object with the key 'data'; needed is an array"),
        (b'"text"', "holds a JSON str"),
        (b"[]", "holds no row"),
        (b'[{"id": 1, "q": "x"}]', "no row has the keys qid, question; found: id, q; needed: qid, question"),
        (b"[1, 2]", "found: none"),
        (b'[{"qid": 1},\n\n{"qid": "\xff"}]', "is not UTF-8 .byte 0xff in line 3"),
        (b"[" * 100_000, "no usable JSON"),
        (b'[{"qid": ' + b"9" * 10_000 + b"}]", "no usable JSON"),
    ],
)
def test_unusable_json_is_one_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        list(read_json(path, ("qid", "question")))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        list(read_json(tmp_path / "rows.json"))
    with pytest.raises(DataError, match="Is a directory"):
        list(read_json(tmp_path))
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(b"[1, 2]")[:-9])
    with pytest.raises(DataError, match="damaged archive"):
        list(read_json(tmp_path / "rows.json.gz"))


@in_tmp
@given(
    rows=st.lists(json_values, min_size=1, max_size=6),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
)
def test_streaming_gives_what_parsing_at_once_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8-sig")
    assert list(read_json(path)) == rows
    parts = {"train": rows, "    ": [], "info": {"a": 1}, "test": rows}
    path.write_text(json.dumps(parts, indent=indent, ensure_ascii=False).encode("utf-8", "replace").decode())
    assert list(read_json_parts(path)) == [
        *(
            ("train", json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")))
            for row in rows
        ),
        ("info", {"a": 1}),
        *(
            ("test", json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")))
            for row in rows
        ),
    ]


@in_tmp
@given(rows=st.lists(json_values, min_size=1, max_size=4), cut=st.floats(0, 0.999), chunk=st.integers(1, 30))
def test_a_file_cut_short_is_always_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], cut: float, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    whole = json.dumps(rows)
    path.write_text(whole[: int(cut * len(whole))])
    with pytest.raises(DataError):
        list(read_json(path))


def test_numbers_at_the_end_of_a_chunk_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 3)
    path = tmp_path / "rows.json"
    path.write_text("[1234567, 1.5e10, NaN, -Infinity]")
    assert str(list(read_json(path))) == "[1234567, 15000000000.0, nan, -inf]"


def test_lines_that_are_no_json_are_rows_of_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": \r\n[' + b"[" * 100_000 + b'\n"x"')
    rows = list(read_json_lines(path, ("a",)))
    assert rows[:2] == [{"a": 1}, '{"a": ']
    assert (len(rows[2]), rows[3]) == (100_001, "x")


def test_damaged_bytes_in_a_line_damage_its_row_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "x"}\n{"a": "\xff"}\n{"\xfe": 1\n{"a": "y"}\n')
    damaged = "\N{REPLACEMENT CHARACTER}"
    assert list(read_json_lines(path, ("a",))) == [
        {"a": "x"}, {"a": damaged}, f'{{"{damaged}": 1', {"a": "y"},
    ]  # fmt: skip


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_LARGEST_ROW", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 1000)
    with pytest.raises(DataError, match="line 2 has more than 1,000 characters"):
        list(read_json_lines(path))
    monkeypatch.setattr(json_rows, "_CHUNK", 100)
    path.write_text('[{"a": 1},\n{"a": "' + "x" * 10_000)
    with pytest.raises(DataError, match=r"is not JSON: .* line 2"):
        list(read_json(path))


def test_a_row_may_be_much_longer_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": "x" * 5_000_000}, {"a": "y"}]))
    assert [len(row["a"]) for row in read_json(path)] == [5_000_000, 1]
