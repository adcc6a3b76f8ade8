"""A folder of DICOM files as an index on disk: what their headers say, and which of them a table names."""

from __future__ import annotations

import os
import posixpath
import sqlite3
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from radloop.data.imaging import MAX_BYTES, MAX_FRAMES, is_dicom
from radloop.data.imaging.dicom import number, read_header, text
from radloop.data.reading import clean_text
from radloop.data.source import signature
from radloop.errors import DataError

_START = 132  # bytes that tell a DICOM file
_REPEATED = "DICOM file with the SOPInstanceUID of another one"
_UNNAMED = "DICOM file that the table does not name"
_TEXTS = {
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "accession": "AccessionNumber",
    "series": "SeriesInstanceUID",
    "instance": "SOPInstanceUID",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
}
_KEYWORDS = (*_TEXTS.values(), "SOPClassUID", "SeriesNumber", "InstanceNumber", "NumberOfFrames", "Rows")


class Tags(NamedTuple):
    """What a header says; "" or the lowest number for what it does not say."""

    patient: str = ""
    study: str = ""
    accession: str = ""
    series: str = ""
    instance: str = ""
    modality: str = ""
    body_part: str = ""
    view: str = ""
    series_number: float = 0.0
    instance_number: float = 0.0
    frames: int = 1


class Found(NamedTuple):
    """A file of the tree.

    Attributes:
        path: Relative to the root.
        tags: None where the header is still to be read.
        signature: Of the file, where it is.
    """

    path: str
    tags: Tags | None
    signature: tuple[int, int] | None = None


def read_tags(path: Path) -> tuple[Tags, str]:
    """Return what the header says, and "" or why the file is no image."""
    try:
        with path.open("rb") as stream:
            if not is_dicom(stream.read(_START)):
                return Tags(), "file is not DICOM"
            header = read_header(stream, _KEYWORDS, MAX_BYTES, pixels=False)
    except OSError:
        return Tags(), "file cannot be read"
    except Exception:  # pydicom raises anything on hostile bytes
        return Tags(), "DICOM file with a damaged header"
    if number(header, "Rows") is None:
        meta = getattr(header, "file_meta", header)
        return Tags(), _without_image(text(header, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID"))
    frames = number(header, "NumberOfFrames") or 1
    tags = Tags(
        **{name: clean_text(text(header, keyword), name, []) for name, keyword in _TEXTS.items()},
        series_number=number(header, "SeriesNumber") or 0.0,
        instance_number=number(header, "InstanceNumber") or 0.0,
        frames=int(frames) if 1 <= frames <= MAX_FRAMES else 1,  # decoding will say what is wrong
    )
    return tags, ""


def _without_image(sop_class: str) -> str:
    from pydicom.uid import UID

    name = UID(sop_class).name
    return f"DICOM file without an image ({name if name != sop_class else 'of unknown class'})"


def has_dicom(root: Path) -> bool:
    """Look for a first DICOM file."""
    return any(not fault and _starts_as_dicom(root / path) for path, fault in _walk(root))


def _starts_as_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_dicom(stream.read(_START))
    except OSError:
        return False


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the path of each file, and "" or why it must not be opened."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            raise DataError(f"{root / folder}: cannot be listed ({error.strerror})") from None
        for entry in entries:
            path = f"{folder}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{path}/")
            else:
                yield path, _fault(root, path, entry)


def _fault(root: Path, path: str, entry: os.DirEntry[str]) -> str:
    if not path.isprintable():  # also names that are not UTF-8, which no table and no corpus can hold
        return "file name with unprintable characters"
    if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root):
        return "link that leads out of the folder"
    try:
        regular = stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return "link to nothing"
    return "" if regular else "device, pipe or link to a folder"


class Index:
    """All files of the tree, too many for a dictionary.

    SQLite keeps them in a nameless file that ends with the connection.
    """

    def __init__(self, root: Path, table: Path, *, headers: bool) -> None:
        """Walk the tree.

        Args:
            root: Its folder, resolved.
            table: A file that is not counted, as it names them.
            headers: Read those of all files, to find them by identifier.

        Raises:
            DataError: A folder cannot be listed.
        """
        self._root, self._headers = root, headers
        self._base = sqlite3.connect("", check_same_thread=False)
        # Without types, so that SQLite changes no value.
        columns = ", ".join(("path", "size", "modified", "fault", *Tags._fields, "named"))
        self._base.execute(f"CREATE TABLE files ({columns})")
        files = (self._row(path, fault) for path, fault in _walk(root) if root / path != table)
        marks = ", ".join("?" * (4 + len(Tags._fields)))
        self._base.executemany(f"INSERT INTO files VALUES ({marks}, 0)", files)  # noqa: S608
        for columns in ("path", "instance, study, patient, path", "study", "accession"):
            self._base.execute(f"CREATE INDEX 'by {columns}' ON files ({columns})")
        self._base.execute(
            f"UPDATE files SET fault = '{_REPEATED}' WHERE fault = '' AND instance <> '' AND EXISTS "  # noqa: S608
            "(SELECT 1 FROM files f WHERE f.instance = files.instance AND f.study = files.study "
            "AND f.patient = files.patient AND f.path < files.path)"
        )
        self.study = lru_cache(maxsize=256)(self._study)  # a study's questions mostly follow each other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._base.close()

    def _row(self, path: str, fault: str) -> tuple[object, ...]:
        tags, size, modified = Tags(), 0, 0
        if not fault:
            try:
                size, modified = signature(self._root / path)
            except OSError:
                fault = "file cannot be read"
        if self._headers and not fault:
            tags, fault = read_tags(self._root / path)
        return path.encode("utf-8", "backslashreplace").decode(), size, modified, fault, *tags

    def file(self, name: str, notes: list[str]) -> Found:
        """Find by path; one that is not there is returned without a signature."""
        path = posixpath.normpath(name)
        self._base.execute("UPDATE files SET named = 1 WHERE path = ?", (path,))
        query = "SELECT size, modified FROM files WHERE path = ? AND fault = ''"
        if found := self._base.execute(query, (path,)).fetchone():
            return Found(name, None, found)
        notes.append("image: names no file of the folder")
        return Found(name, Tags())

    def instance(self, uid: str, notes: list[str]) -> Found | None:
        """Find by SOPInstanceUID: of several files of one patient that have it, the first by path."""
        found = self._images("instance = ? AND fault = '' ORDER BY path", uid)
        self._base.execute("UPDATE files SET named = 1 WHERE instance = ? AND fault = ''", (uid,))
        if not found:
            notes.append("image: no file of the folder has this SOPInstanceUID")
            return None
        if (patients := _num_patients(found)) > 1:
            notes.append(f"image: {patients} patients have this SOPInstanceUID; no file is taken")
            return None
        self._note_repeated(found[:1], notes)
        return found[0]

    def _study(self, identifier: str, limit: int) -> tuple[list[Found], list[str]]:
        """Find by StudyInstanceUID or accession number.

        Returns:
            At most `limit` images, spread evenly over series and instance numbers; and notes.
        """
        condition = "(study = ?1 OR accession = ?1) AND fault = ''"
        found = self._images(
            f"{condition} ORDER BY study, series_number, series, instance_number, path", identifier
        )
        self._base.execute(f"UPDATE files SET named = 1 WHERE {condition}", (identifier,))  # noqa: S608
        if not found:
            return [], ["study: no image of the folder is of this study"]
        if (patients := _num_patients(found)) > 1:
            return [], [f"study: is that of {patients} patients in the folder; none of its images is taken"]
        notes = []
        if (studies := len({image.tags.study for image in found if image.tags})) > 1:
            notes.append(f"study: {studies} studies have this accession number; images of all are taken")
        if len(found) > limit:
            notes.append(f"images: {limit} of {len(found)} in the study are taken")
            found = [found[place] for place in spread(len(found), limit)]
        self._note_repeated(found, notes)
        return found, notes

    def unnamed(self) -> Iterator[tuple[str, tuple[int, int], str]]:
        """Yield path, signature and reason of files that no row names; "" for one still to be looked at."""
        query = "SELECT path, size, modified, fault FROM files WHERE NOT named ORDER BY path"
        for path, size, modified, fault in self._base.execute(query):
            yield path, (size, modified), fault or (_UNNAMED if self._headers else "")

    def _images(self, condition: str, identifier: str) -> list[Found]:
        query = f"SELECT path, {', '.join(Tags._fields)} FROM files WHERE {condition}"  # noqa: S608
        return [Found(path, Tags(*tags)) for path, *tags in self._base.execute(query, (identifier,))]

    def _note_repeated(self, found: list[Found], notes: list[str]) -> None:
        query = f"SELECT 1 FROM files WHERE instance = ? AND fault = '{_REPEATED}'"  # noqa: S608
        repeated = sum(
            self._base.execute(query, (image.tags.instance,)).fetchone() is not None
            for image in found
            if image.tags
        )
        if repeated:
            notes.append(f"images: {repeated} in several files of one SOPInstanceUID; the first by path")


def _num_patients(found: list[Found]) -> int:
    return len({image.tags.patient for image in found if image.tags and image.tags.patient})


def why_unnamed(path: Path) -> str:
    """Return the reason to leave out a file that no row names."""
    return read_tags(path)[1] or _UNNAMED


def spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` places of `count`, evenly spread: the middles of as many equal parts."""
    limit = min(count, limit)
    return [(2 * part + 1) * count // (2 * limit) for part in range(limit)]
