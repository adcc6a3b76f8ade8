from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from radloop.data.reading import read_delimited
from radloop.data.reading.text import SURPLUS
from radloop.errors import DataError

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8).filter(
    lambda text: not ("\n" in text and "," in text)  # a line of such a text may read as a row
)


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
        (b"a\n1\n" + b"x" * (17 << 20), "line 3 has more than 16,777,216 characters"),
        (b'a,b\n1,2\n3,"cut short,\nin the middle', "ends within the quotes that begin in line 3"),
        (b'a,b\n1,2\n3,"cut', "ends within the quotes that begin in line 3"),
        (b"a,b,c,b\n1,2,3,4\n", "its header has b more than once"),
        (b'a,"b\n1,2\n3,4\n5,6\n7",8\n', "a quote is out of place in its header"),
        (b'a,"b\n1,2\n3,4\n', "ends within the quotes that begin in line 1"),
    ],
)
def test_unusable_tables_are_one_clear_error(tmp_path: Path, content: bytes, words: str) -> None:
    path = write(tmp_path / "t.csv", content)
    with pytest.raises(DataError, match=words) as caught:
        list(read_delimited(path, ("a",)))
    assert str(path) in str(caught.value)


def plain(number: int = 1000) -> list[str]:
    return ["id,image,question,answer", *(f"{n},i.png,q {n}?,yes" for n in range(1, number + 1))]


def read_lines(path: Path, lines: list[str]) -> list[dict[str | None, Any]]:
    return list(read_delimited(write(path, "\n".join(lines).encode() + b"\n")))


@pytest.mark.parametrize(
    "damaged",
    [
        {2: '2,i.png,"q 2?,yes'},
        {2: '2,i.png,"q 2?,yes', 899: '899,i.png,"q 899?,yes'},
        {2: '2,i.png,"q 2?,yes', 899: '899,i.png,q 899?",yes'},
        {2: '2,i.png,"q 2?,yes', 3: '3,i.png,q 3?",yes'},
        {2: '2,i.png,"q 2?,yes', 999: '999,"i.png,q 999?,yes'},
        {2: '"2,i.png,q 2?,yes', 5: '5,i.png,"a real\nquestion, of two lines",yes'},
        {n: f'{n},i.png,"q {n}?,yes' for n in range(100, 1000, 100)},
    ],
)
def test_a_stray_quote_costs_no_other_row(tmp_path: Path, damaged: dict[int, str]) -> None:
    lines = plain()
    for number, line in damaged.items():
        lines[number] = line
    rows = read_lines(tmp_path / "t.csv", lines)
    assert [str(row["id"]).strip('"') for row in rows] == [str(n) for n in range(1, 1001)]
    opened = [number for number, line in damaged.items() if line.count('"') == 1 and '?"' not in line]
    assert [n for n, row in enumerate(rows, 1) if row.get(SURPLUS)] == opened
    assert rows[opened[0] - 1][SURPLUS] == "a quote is out of place"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(cells=st.lists(st.text('",\n a', max_size=6), min_size=1, max_size=8))
@example(cells=['"\n\n', '\n\n"'])
def test_whatever_quotes_a_line_holds_the_rows_around_it_are_read(tmp_path: Path, cells: list[str]) -> None:
    lines = plain(60)
    for place, cell in enumerate(cells):
        lines[7 * place + 2] = cell
    rows = read_lines(tmp_path / "t.csv", lines)
    expected = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in plain(60)[1:]]
    touched = {7 * place + 2 for place in range(len(cells))}
    for number, row in enumerate(expected, 1):
        assert number in touched or row in rows


def test_reports_of_many_lines_with_commas_and_quotes_are_one_field(tmp_path: Path) -> None:
    decimals = ["1", "Zyste der Leber\n3,5 cm im Durchmesser"]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["a", "b"], decimals])
    path = write(tmp_path / "decimals.csv", buffer.getvalue().encode())
    assert [list(row.values()) for row in read_delimited(path)] == [decimals]
    report = 'FINDINGS: Heart, lungs, and bones are normal.\n\nNo effusion, no "mass", no nodule, clear.\n'
    rows = [[str(n), report * (1 + n % 60), "x,y"] for n in range(200)]
    for width in (2, 3):
        buffer = io.StringIO()
        csv.writer(buffer).writerows([["a", "b", "c"][:width], *(row[:width] for row in rows)])
        path = write(tmp_path / "t.csv", buffer.getvalue().encode())
        assert [list(row.values()) for row in read_delimited(path)] == [row[:width] for row in rows]


def test_quotes_within_quotes_damage_their_own_row_only(tmp_path: Path) -> None:
    lines = ["a,b,c", '1,"no "acute" finding, clear",yes', '2,"x, y","said "so" today"', "3,x,y"]
    assert read_lines(tmp_path / "t.csv", lines) == [
        {"a": "1", "b": '"no "acute" finding', "c": ' clear"', None: ["yes"]},
        {"a": "2", "b": "x, y", "c": 'said so" today"', None: "a quote is out of place"},
        {"a": "3", "b": "x", "c": "y"},
    ]


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "t.csv", ["a,,", "1,,"])[0]["a"] == "1"


def test_a_bomb_of_one_line_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"a,b\n")
        for _ in range(200):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 2 has more than"):
            list(read_delimited(path))
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()
