from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radloop.data.reading import ParquetFolder, columns_of, encoded_image, split_of
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


def test_row_groups_are_units_and_rows_are_numbered_through(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test-00000.parquet", [{"a": n, "b": "x"} for n in range(250)])
    write(tmp_path / "data" / "train-00000.parquet", [{"a": 1000}])
    rows = read(tmp_path, "a", optional=("b",))
    assert len(list(ParquetFolder(tmp_path, ("a",)).units())) == 4
    assert [number for _, number, _ in rows] == [*range(1, 251), 1]
    assert rows[249] == ("data/test-00000.parquet", 250, {"split": "test", "a": 249, "b": "x"})
    assert rows[250][2] == {"split": "train", "a": 1000}
    assert "a" in columns_of(tmp_path)


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
