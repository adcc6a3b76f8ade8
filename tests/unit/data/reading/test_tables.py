from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from radloop.data.reading.tables import kind_of, read_rows
from radloop.errors import DataError

TEXTS = {
    "a.csv": "x,y\n1,2\n",
    "a.tsv": "x\ty\n1\t2\n",
    "a.json": '\n [{"x": "1", "y": "2"}]',
    "lines.json": '\n{"x": "1", "y": "2"}\n',
    "a.jsonl": '{"x": "1", "y": "2"}\n',
    "array.jsonl": '[{"x": "1", "y": "2"}]',
    "a.NDJSON": '{"x": "1", "y": "2"}',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_name_tells_the_format_and_the_first_character_the_kind_of_json(
    tmp_path: Path, name: str, packed: bool
) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    text = TEXTS[name].encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    assert list(read_rows(path)) == [{"x": "1", "y": "2"}]


@pytest.mark.parametrize(
    ("name", "kind"), [("a.CSV", ".csv"), ("a.b.json.gz", ".json"), ("a", ""), ("a.gz", "")]
)
def test_kind_is_the_suffix_without_the_packing(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


def test_an_archive_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(TEXTS["a.jsonl"].encode() * 100))
    data[10] = 7  # the first byte after the header: a kind of block that does not exist
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: is a damaged archive"):
        list(read_rows(tmp_path / "a.jsonl.gz"))
