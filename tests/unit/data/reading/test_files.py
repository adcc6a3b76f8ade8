from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import pytest

from radloop.data.reading import ParquetFolder, find_inside, read_inside, read_workbook, read_xml_rows
from radloop.data.reading.files import lines_of, open_text
from radloop.data.reading.tables import read_rows
from radloop.errors import DataError


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.csv.gz"])
def test_a_pipe_is_refused_and_does_not_hang(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: is a pipe"):
        list(read_rows(tmp_path / name))


def test_a_pipe_is_no_workbook_no_xml_and_no_parquet(tmp_path: Path) -> None:
    for name in ("a.xlsx", "a.xml", "a.parquet"):
        os.mkfifo(tmp_path / name)
    for read in (
        lambda: list(read_workbook(tmp_path / "a.xlsx")),
        lambda: list(read_xml_rows(tmp_path / "a.xml")),
        lambda: list(ParquetFolder(tmp_path, ()).units()),
    ):
        with pytest.raises(DataError, match="is a pipe"):
            read()


def test_a_device_is_refused_and_a_directory_says_so(tmp_path: Path) -> None:
    for path, words in ((Path("/dev/zero"), "a device"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=words), open_text(path):
            pass


def test_packed_files_may_have_any_case(tmp_path: Path) -> None:
    (tmp_path / "A.CSV.GZ").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert list(read_rows(tmp_path / "A.CSV.GZ")) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("before", [b"", b"x" * (3 << 20)])
def test_what_is_not_utf8_is_named_with_its_line(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"1\n" + before + b"\n3 \xff\n", 1))
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 0xff in line 3\)"), open_text(path) as file:
        file.read()


def test_lines_have_a_limit_and_keep_their_ends(tmp_path: Path) -> None:
    assert list(lines_of(tmp_path, io.StringIO("ab\r\nc", newline=""), 4)) == ["ab\r\n", "c"]
    with pytest.raises(DataError, match="line 2 has more than 3 characters"):
        list(lines_of(tmp_path, io.StringIO("ab\nabcd"), 3))


def test_files_below_the_root_are_read_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.txt").write_bytes(b"text")
    (root / "link.txt").symlink_to("sub/a.txt")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (root / "out.txt").symlink_to("../secret.txt")
    (root / "folder").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe.txt")
    (tmp_path / "alias").symlink_to("root")
    assert (
        read_inside(root, "sub/a.txt", 4) == read_inside(tmp_path / "alias", "link.txt", 4) == (b"text", "")
    )
    assert find_inside(root, "link.txt") == (root.resolve() / "sub" / "a.txt", "")
    outside = "leads out of 'root', not followed"
    for name, reason in {
        "sub/a.txt": "has more than 3 bytes",
        "out.txt": outside,
        "../secret.txt": outside,
        "folder/secret.txt": outside,
        "/etc/passwd": outside,
        "nowhere.txt": "is missing",
        "pipe.txt": "is no file",
        "sub": "is no file",
        "": "is no file",
    }.items():
        assert read_inside(root, name, 3) == (b"", reason), name
    for name in ("a\0b", "x" * 300, "loop"):
        assert read_inside(root, name, 3)[1].startswith("cannot be read"), name
