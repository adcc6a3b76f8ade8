"""Conversations about images as LLaVA and ShareGPT write them, in JSON or JSON lines.

LLaVA: "image" and "conversations", [{"from": "human", "value": "<image> Q"}, {"from": "gpt", "value": "A"}].
ShareGPT and its relatives: "messages" with "role" and "content", a list "images", and content that may
be a list of parts, [{"type": "image"}, {"type": "text", "text": "Q"}].

Source: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from radloop.data.adapters import need_path, no_such_layout
from radloop.data.reading import answer_type_of, as_object, clean_text, clip, file_name, split_of
from radloop.data.reading.tables import JSON_SUFFIXES, kind_of, read_rows
from radloop.data.source import ROW, Images, Source, Unit, in_units
from radloop.errors import DataError

_LAYOUTS = f"a file of conversations ({', '.join(JSON_SUFFIXES)}), or a folder of such files"
_TURNS = ("conversations", "messages")
_IMAGES = ("image", "images")
_ROLES = {"human": "Q", "user": "Q", "gpt": "A", "assistant": "A", "model": "A", "system": "System"}
_MARKER = re.compile("<image>")
_PEEKED = 100  # rows of which one must hold a conversation


class Conversations:
    """Adapter of conversation files.

    Decisions: each pair of a question and its answer is a sample; what was said before it, system prompt
    included, is its context. A pair has the images that were marked up to it, or all of the conversation
    if the marks do not agree with the images. Neighbouring turns of one speaker are one turn.
    """

    class Options(BaseModel):
        """Where the images are, and what the conversations are about."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        images: str = Field(".", description="folder or zip archive of the images, relative to the file")
        task: Literal["vqa", "report", "caption", "ehr"] = Field("vqa", description="what the pairs are")
        language: str = Field("en", description="ISO 639-1")

    def open(self, path: str | None, options: Options) -> Source:
        """Recognise a file of conversations, or a folder of them; their names then tell the split.

        Raises:
            DataError: No such file, none with conversations, or no folder of images.
        """
        place = need_path(path, "conversations", _LAYOUTS)
        folder = place if place.is_dir() else place.parent
        found = sorted(place.iterdir()) if place.is_dir() else [place]
        files = tuple(file for file in found if kind_of(file) in JSON_SUFFIXES)
        if not files:
            raise no_such_layout(place, "conversations", _LAYOUTS)
        images = folder / options.images
        if not images.exists():
            raise DataError(
                f"{images}: no such folder of images; data.options.images is relative to {folder}"
            )
        return _Conversations(files, images, place.is_dir(), options)


class _Turn(NamedTuple):
    speaker: str  # one of the values of _ROLES
    text: str
    num_markers: int


class _Pair(NamedTuple):
    context: str
    question: str
    answer: str
    num_markers: int  # in the conversation up to here


@dataclass(frozen=True)
class _Conversations(Source):
    files: tuple[Path, ...]
    images: Path
    split_by_file: bool
    options: Conversations.Options

    def units(self) -> Iterator[Unit]:
        for file in self.files:
            yield from in_units(file.name, _with_turns(file))

    def rows(self, unit: Unit) -> Iterator[Any]:
        split = split_of(Path(unit.file)) if self.split_by_file else ""
        for row in unit.rows:
            yield f"{unit.file}-{ROW}", split, row

    def samples(self, row: Any, images: Images) -> Iterable[dict[str, Any]]:
        place, split, row = row
        notes: list[str] = []
        row = as_object(row, notes)
        turns, embedded = _turns(row, notes)
        keys = [images.file(self.images, name) for name in _image_names(row, embedded, notes)]
        num_markers = sum(turn.num_markers for turn in turns)
        if num_markers != len(keys):
            notes.append(f"conversation: {num_markers} image markers, {len(keys)} images")
        name = clean_text(row.get("id"), "id", []) or place
        for number, pair in enumerate(_pairs(turns)):
            yield {
                "id": f"conversations-{name}-{number}",
                "dataset": "conversations",
                "split": split,
                "image_ids": keys[: pair.num_markers] if num_markers == len(keys) else keys,
                "task": self.options.task,
                "question": pair.question,
                "answers": [pair.answer] if pair.answer else [],
                "answer_type": answer_type_of(pair.answer) if self.options.task == "vqa" else "open",
                "language": self.options.language,
                "context": pair.context,
                "notes": [*notes, *_missing(pair)],
            }


def _with_turns(file: Path) -> Iterator[Any]:
    """Yield the file's rows.

    Raises:
        DataError: None of the first rows has turns.
    """
    rows = read_rows(file)
    first = list(islice(rows, _PEEKED))
    if not any(isinstance(row, dict) and any(key in row for key in _TURNS) for row in first):
        raise DataError(
            f"{file}: none of its first {len(first)} rows has {' or '.join(map(repr, _TURNS))}; the first is "
            f"{clip(first[0]) if first else 'missing'}"
        )
    yield from first
    yield from rows


def _turns(row: dict[str, Any], notes: list[str]) -> tuple[list[_Turn], list[Any]]:
    """Return the turns, neighbours of one speaker joined, and the images that lie in their contents."""
    value = next((row[key] for key in _TURNS if row.get(key)), None)
    if not isinstance(value, list):
        notes.append(f"conversation: {clip(value)} is no list of turns")
        return [], []
    turns: list[_Turn] = []
    embedded: list[Any] = []
    for number, item in enumerate(value, 1):
        turn = as_object(item, notes)
        role = clean_text(turn.get("from", turn.get("role")), f"turn {number}", notes).lower()
        if role in _ROLES:
            text, num_markers, found = _content(turn.get("value", turn.get("content")), number, notes)
            turns.append(_Turn(_ROLES[role], text, num_markers))
            embedded += found
        else:
            notes.append(f"turn {number}: left out, its speaker {clip(role)} is none of {', '.join(_ROLES)}")
    return [_joined(list(group)) for _, group in groupby(turns, lambda turn: turn.speaker)], embedded


def _joined(turns: list[_Turn]) -> _Turn:
    text = " ".join(turn.text for turn in turns if turn.text)
    return _Turn(turns[0].speaker, text, sum(turn.num_markers for turn in turns))


def _content(value: Any, number: int, notes: list[str]) -> tuple[str, int, list[Any]]:
    """Return (text without markers, number of markers, images named in the parts) of a turn."""
    parts = value if isinstance(value, list) else [{"type": "text", "text": value}]
    texts, embedded, num_markers = [], [], 0
    for part in parts:
        part = {"type": "text", "text": part} if isinstance(part, str) else as_object(part, notes)
        if "image" in str(part.get("type")):
            num_markers += 1
            embedded += [part[key] for key in ("image", "path", "url", "image_url") if part.get(key)][:1]
        else:
            text = part.get("text")
            num_markers += len(_MARKER.findall(text)) if isinstance(text, str) else 0
            # A marker stands on a line of its own: the white space that it leaves is no defect.
            bare = _MARKER.sub("", text).strip() if isinstance(text, str) else text
            texts.append(clean_text(bare, f"turn {number}", notes) if bare != "" else "")
    return " ".join(text for text in texts if text), num_markers, embedded


def _image_names(row: dict[str, Any], embedded: list[Any], notes: list[str]) -> list[str]:
    value = next((row[key] for key in _IMAGES if row.get(key)), embedded)
    names = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):  # {"path": ...}, {"url": ...}
            item = item.get("path", item.get("url"))
        names.append(file_name(item, "image", notes))
    return [name for name in names if name]


def _pairs(turns: list[_Turn]) -> list[_Pair]:
    """Return a pair for each answer and each question that has none; at least one, if only an empty one."""
    pairs: list[_Pair] = []
    num_markers = 0
    for index, turn in enumerate(turns):
        num_markers += turn.num_markers
        asked = index > 0 and turns[index - 1].speaker == "Q"
        answered = index + 1 < len(turns) and turns[index + 1].speaker == "A"
        if turn.speaker == "A":
            question = turns[index - 1].text if asked else ""
            pairs.append(_Pair(_said(turns[: index - asked]), question, turn.text, num_markers))
        elif turn.speaker == "Q" and not answered:
            pairs.append(_Pair(_said(turns[:index]), turn.text, "", num_markers))
    return pairs or [_Pair(_said(turns), "", "", num_markers)]


def _said(turns: list[_Turn]) -> str:
    return "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns)


def _missing(pair: _Pair) -> list[str]:
    return [f"conversation: no {name}" for name in ("question", "answer") if not getattr(pair, name)]
