from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook, load_workbook

from radloop.data.reading.text import SURPLUS
from radloop.data.reading.workbook import read_workbook
from radloop.errors import DataError

SHEET = "xl/worksheets/sheet1.xml"


def saved(folder: Path, *rows: list[Any]) -> Path:
    book = Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("notes").append(["not", "read"])
    book.save(folder / "rows.xlsx")
    return folder / "rows.xlsx"


def with_part(path: Path, part: str, change: Callable[[bytes], bytes]) -> Path:
    """Change one file in the workbook's archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, change(data) if name == part else data)
    return path


def test_rows_come_with_the_names_of_the_header(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        [" id ", "text", None],
        [1, "a", None],
        [],
        [2.5, None, "more"],
        [True, datetime(2020, 1, 2)],
    )
    assert list(read_workbook(path, ("id", "text"))) == [
        {"id": 1, "text": "a"},
        {"id": 2.5, "text": None, SURPLUS: ["more"]},
        {"id": True, "text": datetime(2020, 1, 2)},
    ]


def test_percentages_are_what_the_sheet_shows_and_error_values_are_missing(tmp_path: Path) -> None:
    path = saved(tmp_path, ["a", "b"], [0.05, "#N/A"], [0.07, "fine"], [1, "100%"])
    book = load_workbook(path)
    for cell in book.worksheets[0]["A"][1:3]:
        cell.number_format = "0%"
    book.save(path)
    assert list(read_workbook(path)) == [
        {"a": "5%", "b": None},
        {"a": "7%", "b": "fine"},
        {"a": 1, "b": "100%"},
    ]


def test_a_formula_gives_its_last_result(tmp_path: Path) -> None:
    path = saved(tmp_path, ["a"], ["=1+1"])
    with_part(path, SHEET, lambda data: data.replace(b"<v />", b"<v>2</v>").replace(b"<v></v>", b"<v>2</v>"))
    assert list(read_workbook(path)) == [{"a": 2}]


def test_no_row_is_lost_to_a_wrong_statement_of_the_sheets_size(tmp_path: Path) -> None:
    path = saved(tmp_path, ["a", "b"], *([n, "x"] for n in range(600)))
    with_part(path, SHEET, lambda data: data.replace(b'ref="A1:B601"', b'ref="A1:A2"'))
    assert [row["a"] for row in read_workbook(path, ("a", "b"))] == list(range(600))


LAUGHS = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("part", [SHEET, "xl/sharedStrings.xml", "xl/workbook.xml", "xl/styles.xml"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff\xfe junk",
        lambda data: LAUGHS + data.partition(b"?>")[2].replace(b"<v>", b"<v>&b;").replace(b"<t>", b"<t>&b;"),
        lambda data: data.replace(b"1", b"x"),
        lambda data: data.replace(b"0", b"-9"),
        lambda data: data.replace(b"1", b"9999999999999999999"),
    ],
)
def test_a_damaged_part_is_one_error_or_does_not_matter(
    tmp_path: Path, part: str, change: Callable[[bytes], bytes]
) -> None:
    path = with_part(saved(tmp_path, ["a", "b"], ["x", 1], ["y", 2]), part, change)
    try:
        rows = list(read_workbook(path))
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert len(rows) <= 2
        assert "haha" not in repr(rows)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = saved(tmp_path, ["a"], [1])
    block = bytes(1 << 20)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("xl/media/image1.png", "w") as member,
    ):
        for _ in range(513):
            member.write(block)
    with pytest.raises(DataError, match=r"rows.xlsx: unpacks to 513 MiB; allowed are 512"):
        list(read_workbook(path))


def test_a_row_number_beyond_all_rows_is_no_endless_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radloop.data.reading.workbook._MOST_ROWS", 1000)
    path = saved(tmp_path, ["a"], [1])
    with_part(path, SHEET, lambda data: data.replace(b'r="2"', b'r="99999999999"'))
    with pytest.raises(DataError, match="has more than 1,000 rows"):
        list(read_workbook(path))


@pytest.mark.parametrize("data", [b"", b"no archive", b"\xd0\xcf\x11\xe0" + bytes(600)])
def test_a_file_that_is_no_workbook_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rows.xlsx: is no readable .xlsx workbook .*without a password"):
        list(read_workbook(path))


def test_an_archive_of_something_else_is_an_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "no workbook")
    path = tmp_path / "rows.xlsx"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"is no readable .xlsx workbook"):
        list(read_workbook(path))


def test_needed_columns_must_be_in_the_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks b; found: a, 1; needed: a, b\. Is this another file"):
        list(read_workbook(saved(tmp_path, ["a", 1], ["x", "y"]), ("a", "b")))
    with pytest.raises(DataError, match="lacks a; found: nothing"):
        list(read_workbook(saved(tmp_path), ("a",)))


def test_a_column_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path, ["id", "text", None, None, " text"], [1, "a", None, None, "b"])
    with pytest.raises(DataError, match="header has text more than once"):
        list(read_workbook(path))


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.xlsx"):
        with pytest.raises(DataError, match="cannot be read"):
            list(read_workbook(path))
