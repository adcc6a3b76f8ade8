"""A mark in every field and all metadata: with `deidentify` it is nowhere in what radloop writes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from radloop.config import DataConfig, SourceConfig, ValidationConfig
from radloop.data.adapters.table import TARGETS
from radloop.data.corpus import Corpus
from radloop.data.ingest import ingest
from radloop.data.quality import validate
from tests.unit.data.ingest.planting import dicom, planted

# As a name, a word of file names, and a number: each must go by itself.
WORD, NUMBER = "Zebedeus", "9081726354"
MARK = f"{WORD}_{NUMBER}"
TEXTS = (
    f"Seen by Dr. {WORD} on 01/02/2020, MRN {NUMBER}.",
    f"Has patient {MARK.lower()} a nodule?",
    f"Call {NUMBER} or mail {WORD}@{WORD}.org",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def told(folder: Path) -> list[str]:
    """Places below the folder that hold the mark, in names or contents, in any case or encoding."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes().lower() if path.is_file() else b""
        for mark in (WORD.lower(), NUMBER):
            forms = (mark.encode(), mark.encode("utf-16-le"), mark.encode("utf-16-be"))
            if mark in path.name.lower() or any(form in content for form in forms):
                found.append(f"{path.relative_to(folder)}: {mark}")
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    """Each image once with the mark in one column, and once with it in all."""
    made = planted(MARK.encode())
    files = {f"{MARK}-{name}": made[name](3 * seed) for seed, name in enumerate(made)}
    files |= {f"{MARK}.dcm": dicom(MARK), f"{MARK}-c.dcm": dicom(MARK, compressed=True)}
    files |= {f"{MARK}-damaged.png": b"\x89PNG" + MARK.encode(), f"{MARK}-damaged.dcm": dicom(MARK)[:900]}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    names = [*files, f"{MARK}-missing.png", f"../{MARK}.png", f"{MARK}\0.png", f"/{MARK}/{MARK}.png"]
    free = {"question", "answer", "context", "labels", "question_type"}
    plain = {"question": "Is it?", "answer": "yes", "patient": MARK}
    values = {column: TEXTS[0] if column in free else MARK for column in TARGETS if column != "image"}
    rows: list[dict[str, Any]] = [plain | {"image": name} for name in names]
    rows += [plain | {"image": names[0], column: value} for column, value in values.items()]
    rows += [values | {"image": name, "answer": text} for name, text in zip(names, TEXTS, strict=False)]
    odd: list[Any] = [int(NUMBER), {WORD: MARK}, [MARK, TEXTS], None]
    return rows + [plain | {column: value} for column in values for value in odd]


def test_a_mark_in_every_field_and_all_metadata_is_nowhere_afterwards(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydicom")
    source, saved = tmp_path / "source", tmp_path / "saved"
    for folder in (source, saved):
        folder.mkdir()
    some = rows(source)
    (source / f"{MARK}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (source / f"{MARK}.csv").write_text(f"image,question,answer,patient\n{MARK}-text.png,Is it?,no,{MARK}\n")
    table = SourceConfig(adapter="table", path=str(source))
    caplog.set_level(logging.DEBUG)
    corpus = ingest(DataConfig(sources=(table,), workers=1, deidentify=True))
    assert corpus.samples.num_rows == len(some) + 1
    assert corpus.images.num_rows == len(planted(b"")) + 2 + 6  # two of DICOM; damaged, or not there
    report = validate(corpus, ValidationConfig())
    assert report.findings.num_rows > 0
    corpus.save(saved)
    report.save(saved)
    for name, page in corpus.views().items():
        (saved / name).write_text(str(page))
    assert {"corpus.json", "samples.arrow", "images.arrow", "findings.arrow"} <= {
        p.name for p in saved.iterdir()
    }
    assert told(source)  # else the search would find nothing anywhere
    assert told(saved) == []
    assert told(home) == []
    printed = "".join([caplog.text, *capfd.readouterr()]).lower()
    assert WORD.lower() not in printed
    assert NUMBER not in printed
    assert Corpus.load(saved).removed["patient id"] > 0
