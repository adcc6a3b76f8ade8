from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from radloop.data.reading.xml_rows import read_xml_rows
from radloop.errors import DataError

LAUGHS = '<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><r><q><text>&b;</text></q></r>'
OUTSIDE = '<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/hostname">]><r><q><text>&a;</text></q></r>'


def saved(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "rows.xml"
    path.write_bytes(text.encode(encoding))
    return path


def test_each_element_below_the_root_is_a_row(tmp_path: Path) -> None:
    path = saved(tmp_path, "<qs><!-- note -->\n<q><q>Is &lt; it?</q><a/></q><q id='2'><a>5 </a></q></qs>")
    assert list(read_xml_rows(path, ("q", "a"))) == [{"q": "Is < it?", "a": None}, {"a": "5 "}]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8"])
def test_the_encoding_is_the_one_that_the_file_declares(tmp_path: Path, encoding: str) -> None:
    path = saved(tmp_path, f"<?xml version='1.0' encoding='{encoding}'?><r><q><a>Größe</a></q></r>", encoding)
    assert list(read_xml_rows(path)) == [{"a": "Größe"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "defines entities"),
        (OUTSIDE, "defines entities"),
        ("", "is not XML: no element found"),
        ("<r><q><a>cut", "is not XML.*copied completely"),
        ("<r/>", "holds no row"),
        ("<r><q><b>1</b></q></r>", "no row has the keys a; found: b; needed: a"),
        ("<?xml version='1.0' encoding='no-such'?><r/>", "rows.xml: "),
        ("<?xml version='1.0' encoding='cp932'?><r/>", "cannot be decoded.*save it as UTF-8"),
    ],
)
def test_unusable_files_are_one_clear_error(tmp_path: Path, text: str, words: str) -> None:
    path = saved(tmp_path, text)
    with pytest.raises(DataError, match=words) as caught:
        list(read_xml_rows(path, ("a",)))
    assert str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.xml"):
        with pytest.raises(DataError, match="cannot be read"):
            list(read_xml_rows(path))


def test_rows_are_not_gathered_in_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, "<r>" + "<q><a>some words of text</a></q>" * 20_000 + "</r>")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_xml_rows(path, ("a",))) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_deep_nesting_ends_no_process(tmp_path: Path) -> None:
    path = saved(tmp_path, "<r><q>" + "<a>" * 100_000 + "</a>" * 100_000 + "</q></r>")
    assert list(read_xml_rows(path, ("a",))) == [{"a": None}]
