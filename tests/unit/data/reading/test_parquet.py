from __future__ import annotations

import io
import os
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radloop.data.reading import ParquetFolder, columns_of, encoded_image, parquet, split_of
from radloop.errors import DataError


def write(path: Path, rows: list[dict[str, Any]], group: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def read(folder: Path, *needed: str, optional: tuple[str, ...] = ()) -> list[tuple[str, int, dict[str, Any]]]:
    source = ParquetFolder(folder, needed, optional)
    return [
        (unit.file, unit.first + number, row)
        for unit in source.units()
        for number, row in enumerate(source.rows(unit))
    ]


def test_rows_are_numbered_through_all_row_groups(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test-00000.parquet", [{"a": n, "b": "x"} for n in range(250)])
    write(tmp_path / "data" / "train-00000.parquet", [{"a": 1000}])
    rows = read(tmp_path, "a", optional=("b",))
    assert [number for _, number, _ in rows] == [*range(1, 251), 1]
    assert rows[249] == ("data/test-00000.parquet", 250, {"split": "test", "a": 249, "b": "x"})
    assert rows[250][2] == {"split": "train", "a": 1000}
    assert "a" in columns_of(tmp_path)


@pytest.mark.parametrize("kind", [lambda n: f"{n}.png", lambda n: b"%d" % n, lambda n: {"bytes": b"%d" % n}])
@pytest.mark.parametrize("group", [3000, 130])
def test_a_row_group_of_any_size_is_cut_into_units(tmp_path: Path, kind: Any, group: int) -> None:
    rows = [{"image": kind(n), "a": n} for n in range(3000)]
    write(tmp_path / "all.parquet", rows, group)
    source = ParquetFolder(tmp_path, ("image", "a"))
    units = list(source.units())
    largest = 1024 if isinstance(rows[0]["image"], str) else 100
    assert len(units) >= 3000 // largest
    found = [list(source.rows(unit)) for unit in units]
    assert max(map(len, found)) <= largest
    assert [row for some in found for row in some] == [{"split": ""} | row for row in rows]
    assert [unit.first for unit in units] == list(accumulate(map(len, found[:-1]), initial=1))
    for order in (units[::-1], units[1::2] + units[::2]):  # as other processes may take them
        assert [list(source.rows(unit)) for unit in order] == [found[units.index(unit)] for unit in order]
    for one, two in zip(source.rows(units[1]), source.rows(units[0]), strict=False):  # at the same time
        assert (one["a"] >= units[1].first - 1, two["a"] < units[1].first) == (True, True)


def test_units_of_large_images_have_few_rows(tmp_path: Path) -> None:
    write(tmp_path / "all.parquet", [{"image": os.urandom(3 << 20)} for _ in range(25)])
    source = ParquetFolder(tmp_path, ("image",))
    assert [len(list(source.rows(unit))) for unit in source.units()] == [10, 10, 5]


def test_a_row_group_of_images_is_decoded_once_and_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "all.parquet", [{"image": os.urandom(10_000)} for _ in range(5000)], 5000)
    opened = []
    reader = parquet._GroupReader
    monkeypatch.setattr(parquet, "_GroupReader", lambda *given: opened.append(given) or reader(*given))
    source = ParquetFolder(tmp_path, ("image",))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() for unit in source.units() for _ in source.rows(unit)]
    assert len(held) == 5000
    assert len(opened) == 1
    assert max(held) - before < 35 << 20  # of 50: pages have 1,024 rows


def test_rows_that_are_appended_as_a_group_leave_units_of_text_as_they_are(tmp_path: Path) -> None:
    rows = [{"a": f"text {n}"} for n in range(2000)]
    write(tmp_path / "all.parquet", rows, 500)
    before = list(ParquetFolder(tmp_path, ("a",)).units())
    write(tmp_path / "all.parquet", [*rows, {"a": "more"}], 500)
    after = list(ParquetFolder(tmp_path, ("a",)).units())
    assert len(before) > 2
    assert after[: len(before) - 1] == before[:-1]


def test_equal_metadata_do_not_hide_a_changed_text(tmp_path: Path) -> None:
    units = []
    for text in ("left", "east"):
        write(tmp_path / "all.parquet", [{"a": "aaaa"}, {"a": text}, {"a": "zzzz"}])
        os.utime(tmp_path / "all.parquet", (1, 1))
        units.append(next(ParquetFolder(tmp_path, ("a",)).units()))
    assert units[0] != units[1]


def test_a_column_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2], [3]], names=["a", "b", "b"]), tmp_path / "all.parquet")
    assert [row for _, _, row in read(tmp_path, "a")] == [{"split": "", "a": 1}]
    with pytest.raises(DataError, match="has b more than once"):
        read(tmp_path, "a", "b")


def test_a_changed_file_is_another_unit(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [{"a": 1}])
    before = next(ParquetFolder(tmp_path, ("a",)).units())
    write(tmp_path / "train.parquet", [{"a": 2}, {"a": 3}])
    assert next(ParquetFolder(tmp_path, ("a",)).units()) != before
    assert [row["a"] for _, _, row in read(tmp_path, "a")] == [2, 3]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("validation.json", "validation"),
        ("valid_concepts.csv", "validation"),
        ("dev/0.parquet", "validation"),
        ("test/radiology/captions.txt", "test"),
        ("latest.csv", ""),
        ("training.csv", ""),
    ],
)
def test_names_tell_the_split(name: str, split: str) -> None:
    assert split_of(Path(name)) == split


def test_damaged_and_foreign_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no parquet file"):
        read(tmp_path, "a")
    write(tmp_path / "train.parquet", [{"a": 1}])
    with pytest.raises(DataError, match="lacks the columns b; found: a; needed: a, b"):
        read(tmp_path, "a", "b")
    (tmp_path / "train.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="no readable parquet file"):
        read(tmp_path, "a")


def test_image_cells_of_all_kinds() -> None:
    picture = Image.new("L", (3, 2), 7)
    data, name = encoded_image(picture)
    assert data
    assert Image.open(io.BytesIO(data)).size == (3, 2)
    assert name == ""
    assert encoded_image({"bytes": b"x", "path": "a.png"}) == (b"x", "a.png")
    assert encoded_image(b"x") == (b"x", "")
    for value in (None, 5, "x", {"bytes": None}, {"bytes": "x", "path": 5}, []):
        assert encoded_image(value) == (None, "")
