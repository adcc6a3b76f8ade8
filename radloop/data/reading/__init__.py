"""Reading files of uncertain quality, row by row, without losing track of what was mended."""

from radloop.data.reading.delimited import read_delimited
from radloop.data.reading.files import find_inside, read_inside
from radloop.data.reading.json_rows import read_json, read_json_lines, read_json_parts, with_keys
from radloop.data.reading.parquet import ParquetFolder, columns_of, encoded_image, split_of
from radloop.data.reading.text import (
    answer_type,
    answer_type_of,
    as_object,
    clean_text,
    clip,
    file_name,
    parse_answers,
    some,
)
from radloop.data.reading.workbook import read_workbook
from radloop.data.reading.xml_rows import read_xml_rows

__all__ = [
    "ParquetFolder",
    "answer_type",
    "answer_type_of",
    "as_object",
    "clean_text",
    "clip",
    "columns_of",
    "encoded_image",
    "file_name",
    "find_inside",
    "parse_answers",
    "read_delimited",
    "read_inside",
    "read_json",
    "read_json_lines",
    "read_json_parts",
    "read_workbook",
    "read_xml_rows",
    "some",
    "split_of",
    "with_keys",
]
