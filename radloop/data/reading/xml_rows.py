"""XML tables of any length, one row at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from radloop.data.reading.files import refuse_pipe
from radloop.data.reading.json_rows import with_keys
from radloop.errors import DataError


def read_xml_rows(path: Path, needed: Collection[str] = ()) -> Iterator[Any]:
    """Yield the elements below the root as dictionaries from their children's names to their texts.

    Entities are refused: a few lines of them unfold to gigabytes, or fetch other files.

    Args:
        path: A file in any encoding that it declares.
        needed: Names of which each must occur in one of the first 100 rows.

    Raises:
        DataError: Not readable, not XML, entities, no row, or without the needed names.
    """
    return with_keys(path, _rows(path), needed)


def _rows(path: Path) -> Iterator[dict[str, str | None]]:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    refuse_pipe(path)
    try:
        root: Element | None = None
        depth = 0
        with path.open("rb") as file:
            for event, element in iterparse(file, ("start", "end")):
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                if event == "end" and depth == 1:
                    yield {field.tag: field.text for field in element}
                    root.clear()  # else the whole file gathers in memory
    except DefusedXmlException as error:
        raise DataError(
            f"{path}: defines entities or refers to other files ({error}), which is not safe to read; "
            "save it without a document type"
        ) from None
    except ParseError as error:
        raise DataError(f"{path}: is not XML: {error}; was it copied completely?") from None
    except (LookupError, ValueError) as error:  # the encoding that it declares
        raise DataError(f"{path}: cannot be decoded ({error}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
