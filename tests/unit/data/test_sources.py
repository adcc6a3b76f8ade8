from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from radloop.data.sources import ImageTable, answer_type_of, clean_text, read_json_rows
from radloop.errors import DataError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"qid,question\n1,x\n", "is not JSON: .* line 1, column 1"),
        (b'[{"qid": 1, "question": "x"}', "is not JSON: .*copied completely"),
        ('[{"qid": "ä"}]'.encode("latin-1"), "is not UTF-8 .byte 0xe4 at offset 10"),
        ('[{"qid": 1}]'.encode("utf-16"), "is not UTF-8"),
        (b'{"data": [], "info": 1}', "one JSON object with the keys data, info; needed is an array"),
        (b'"text"', "holds a JSON str"),
        (b"[]", "empty array"),
        (b'[{"id": 1, "q": "x"}]', "no row has the keys qid, question; found: id, q; needed: qid, question"),
        (b"[1, 2]", "found: none"),
        (b"[" * 100_000, "no usable JSON"),
        (b'[{"qid": ' + b"9" * 10_000 + b"}]", "no usable JSON"),
    ],
)
def test_unusable_json_is_one_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_json_rows(path, ("qid", "question"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_json_rows(tmp_path / "rows.json", ())
    with pytest.raises(DataError, match="Is a directory"):
        read_json_rows(tmp_path, ())


def test_byte_order_mark_and_rows_of_uneven_keys_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": 1}, {"b": 2}, 3]), encoding="utf-8-sig")
    assert read_json_rows(path, ("a", "b")) == [{"a": 1}, {"b": 2}, 3]


@pytest.mark.parametrize(
    ("value", "text", "note"),
    [
        ("Is it?", "Is it?", None),
        (" Is\t it?\n", "Is it?", "q: white space tidied"),
        (5, "5", "q: int 5 kept as '5'"),
        (0.5, "0.5", "q: float 0.5 kept as '0.5'"),
        (None, "", "q: null counts as missing"),
        (float("nan"), "", "q: nan counts as missing"),
        (float("inf"), "", "q: inf counts as missing"),
        ("NULL", "", "q: 'NULL' counts as missing"),
        ("", "", "q: '' counts as missing"),
        ("None", "None", None),  # an answer in VQA-RAD
        (True, "", "q: bool True is no text, counts as missing"),
        (["a"], "", "q: list ['a'] is no text, counts as missing"),
        ("a\ud800b", "a?b", "q: half of a surrogate pair replaced by '?'"),
    ],
)
def test_clean_text(value: Any, text: str, note: str | None) -> None:
    notes: list[str] = []
    assert clean_text(value, "q", notes) == text
    assert notes == ([note] if note else [])


@pytest.mark.parametrize(
    ("answer", "kind"), [("Yes", "closed"), ("no.", "closed"), ("yes, left", "open"), ("", "open")]
)
def test_answer_type_is_inferred(answer: str, kind: str) -> None:
    assert answer_type_of(answer) == kind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "a.png").write_bytes(b"a")
    (root / "sub" / "copy.png").write_bytes(b"a")
    return root


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "sub/../../secret.png",
        "{root}/../secret.png",
        "/etc/hostname",
        "link.png",
        "links/secret.png",
    ],
)
def test_names_are_never_followed_out_of_the_folder(folder: Path, name: str) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "links").symlink_to(folder.parent)
    name = name.format(root=folder)
    notes: list[str] = []
    table = ImageTable()
    assert table.add_file(folder, name, notes) == f"missing:{name}"
    assert "leads out of 'images', not followed" in notes[0]
    assert "uri" not in table.rows[0]


@pytest.mark.parametrize("name", ["none.png", "sub", "", "x" * 5000, "a\0b", "loop"])
def test_names_of_no_file_are_missing(folder: Path, name: str) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    assert ImageTable().add_file(folder, name, []) == f"missing:{name}"


def test_same_content_is_one_image_and_a_link_inside_is_followed(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "a.png")
    table = ImageTable()
    notes: list[str] = []
    ids = {table.add_file(folder, name, notes) for name in ("a.png", "sub/copy.png", "link.png", "a.png")}
    ids.add(table.add_bytes(b"a", "embedded"))
    assert len(ids) == 1
    assert [(row["name"], row["uri"]) for row in table.rows] == [("a.png", str(folder / "a.png"))]
    assert notes == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_image_is_missing_with_a_note(folder: Path) -> None:
    (folder / "a.png").chmod(0)
    notes: list[str] = []
    assert ImageTable().add_file(folder, "a.png", notes) == "missing:a.png"
    assert "Permission denied" in notes[0]
