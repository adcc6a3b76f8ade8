"""With `deidentify` no identifier of the source is left in the corpus, nor in what an ingest leaves."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from radloop.cli import app
from radloop.config import DataConfig, ValidationConfig
from radloop.data.corpus import IMAGES, SAMPLES, Corpus
from radloop.data.imaging import to_rgb
from radloop.data.ingest import cleaning, ingest
from radloop.data.ingest.cleaning import UNREAD, Cleaner
from radloop.data.ingest.facts import FACTS
from radloop.data.ingest.index import Index
from radloop.data.phantoms.formats import Cohort, write
from radloop.data.quality import validate
from radloop.errors import ConfigError
from tests.unit.data.ingest.planting import chunks, planted
from tests.unit.data.ingest.planting import dicom as planted_dicom

COHORT = Cohort(train=4, validation=0, test=2, size=48)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def cleaned(folder: Path, adapter: str, **options: Any) -> Corpus:
    return ingest(DataConfig(adapter=adapter, path=str(folder), options=options, workers=1, deidentify=True))


def all_bytes(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("mimic_cxr", {}),
        ("mimic_cxr:dcm", {}),
        ("ehrxqa", {}),
        ("dicom", {"table": "questions.csv", "by": "study"}),
    ],
)
def test_no_number_of_a_patient_or_study_is_left(
    tmp_path: Path, home: Path, layout: str, options: dict[str, Any]
) -> None:
    write(layout, tmp_path / "source", COHORT)
    corpus = cleaned(tmp_path / "source", layout.partition(":")[0], **options)
    (tmp_path / "saved").mkdir()
    corpus.save(tmp_path / "saved")
    numbers = [str(number) for study in COHORT.studies() for number in (study.patient_id, study.study_id)]
    for place in (tmp_path / "saved", home):
        content = all_bytes(place)
        assert content
        assert not [number for number in numbers if number.encode() in content], place
    assert corpus.images["uri"].null_count == corpus.images.num_rows
    assert len(set(corpus.samples["patient"].to_pylist()) - {""}) == 3
    assert corpus.removed["patient id"] > 0


def test_pictures_stay_the_same_and_patients_stay_together(tmp_path: Path) -> None:
    write("mimic_cxr", tmp_path / "source", COHORT)
    plain = ingest(DataConfig(adapter="mimic_cxr", path=str(tmp_path / "source"), workers=1))
    clean = cleaned(tmp_path / "source", "mimic_cxr")
    assert sorted(clean.images["pixel_hash"].to_pylist()) == sorted(plain.images["pixel_hash"].to_pylist())

    def together(corpus: Corpus) -> set[frozenset[str]]:
        pixels = dict(
            zip(corpus.images["id"].to_pylist(), corpus.images["pixel_hash"].to_pylist(), strict=True)
        )
        by_patient: dict[str, set[str]] = {}
        for row in corpus.samples.to_pylist():
            by_patient.setdefault(row["patient"], set()).update(pixels[i] for i in row["image_ids"])
        return {frozenset(found) for found in by_patient.values()}

    assert together(clean) == together(plain)
    assert cleaned(tmp_path / "source", "mimic_cxr").fingerprint == clean.fingerprint


def test_another_key_gives_other_pseudonyms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mimic_cxr", tmp_path / "source", COHORT)
    found = []
    for key in ("a key of some length", "another key of some length"):
        monkeypatch.setenv("RADLOOP_PSEUDONYM_KEY", key)
        found.append(set(cleaned(tmp_path / "source", "mimic_cxr").samples["patient"].to_pylist()))
    assert not found[0] & found[1]


MARK = b"ZebedeusSecretperson"


@pytest.mark.parametrize("name", planted(MARK))
def test_only_pixels_of_a_picture_are_stored_and_they_stay_the_same(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_bytes(planted(MARK)[name](5))
    (source / "t.csv").write_text(f"image,question,answer\n{name},Is it?,yes\n")
    plain = ingest(DataConfig(adapter="table", path=str(source / "t.csv"), workers=1)).images.to_pylist()[0]
    corpus = cleaned(source / "t.csv", "table")
    stored = corpus.images.to_pylist()[0]
    assert stored["pixel_hash"] == plain["pixel_hash"] != ""
    assert (stored["width"], stored["height"]) == (plain["width"], plain["height"])
    assert {kind for kind, _ in chunks(stored["bytes"])} == {b"IHDR", b"IDAT", b"IEND"}
    assert MARK not in stored["bytes"]
    assert corpus.removed["metadata of a picture"] == 1


def test_a_comment_inside_of_compressed_dicom_goes_and_its_pixels_stay(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    (tmp_path / "a.dcm").write_bytes(planted_dicom(MARK.decode(), compressed=True))
    (tmp_path / "t.csv").write_text("image,question,answer\na.dcm,Is it?,yes\n")
    plain = ingest(DataConfig(adapter="table", path=str(tmp_path / "t.csv"), workers=1))
    corpus = cleaned(tmp_path / "t.csv", "table")
    assert corpus.images["pixel_hash"].to_pylist() == plain.images["pixel_hash"].to_pylist() != [""]
    assert MARK not in corpus.images["bytes"].to_pylist()[0]


def table(folder: Path, rows: list[dict[str, Any]], name: str = "t.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "i.png").write_bytes(planted(MARK)["plain.png"](1))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_a_short_number_does_not_make_nonsense_of_texts(tmp_path: Path) -> None:
    row = {"question": "Any 5 mm nodule in lobe 1?", "answer": "1 nodule of 5 mm in patient 5"}
    path = table(tmp_path, [row | {"image": "i.png", "patient": "5", "study": "1"}])
    corpus = cleaned(path, "table")
    (sample,) = corpus.samples.to_pylist()
    assert sample["question"] == row["question"]
    assert sample["answers"] == [f"1 nodule of 5 mm in patient {sample['patient']}"]
    assert corpus.removed["text: short number as of patient or study, left"] == 4


@pytest.mark.parametrize("column", ["split", "answer_type", "language", "modality", "view", "body_part"])
def test_columns_of_few_values_hold_no_others(tmp_path: Path, column: str) -> None:
    row = {"image": "i.png", "question": "Is it?", "answer": "yes", column: "John Smith"}
    corpus = cleaned(table(tmp_path, [row]), "table")
    rows = (corpus.images if column in ("modality", "view", "body_part") else corpus.samples).to_pylist()
    assert rows[0][column] == "___"
    assert corpus.removed[f"{column}: not a known word"] == 1


def test_columns_of_few_values_keep_those(tmp_path: Path) -> None:
    said = {"split": "test", "answer_type": "open", "language": "zh", "question_type": "presence"}
    shown = {"modality": "CT", "view": "AP AXIAL", "body_part": "Chest"}
    row = {"image": "i.png", "question": "Is it?", "answer": "no", "labels": ["Edema", "cardiomegaly"]}
    corpus = cleaned(table(tmp_path, [row | said | shown]), "table")
    assert corpus.samples.to_pylist()[0].items() >= (said | {"labels": ["Edema", "cardiomegaly"]}).items()
    assert corpus.images.to_pylist()[0].items() >= shown.items()


def test_each_column_of_a_corpus_is_cleaned_or_made_by_radloop() -> None:
    replaced = {"id", "patient", "study", "language", "notes"}
    made = {"image_ids", "file", "row", "namespace"}  # `clean_file`; a constant of the adapter
    assert {*replaced, *made, *cleaning._TEXTS, *cleaning._LISTS, *cleaning._ALLOWED} == set(SAMPLES.names)
    shown = {*FACTS, "bytes", "uri", "frame", "window"}
    assert {"name", "patient", "study", *cleaning._CODES, *shown} == set(IMAGES.names)


def test_an_unknown_split_is_still_found_by_validation(tmp_path: Path) -> None:
    row = {"image": "i.png", "question": "Is it?", "answer": "yes", "split": "John Smith"}
    report = validate(cleaned(table(tmp_path, [row]), "table"), ValidationConfig())
    assert {"split is not known"} <= {found["reason"] for found in report.summary["reasons"]}


def test_rows_without_an_id_stay_different_samples(tmp_path: Path) -> None:
    row = {"image": "i.png", "answer": "yes"}
    path = table(tmp_path, [row | {"question": "Is it?"}, row | {"question": "Which?"}])
    ids = cleaned(path, "table").samples["id"].to_pylist()
    assert len(set(ids)) == 2
    assert not any("t.jsonl" in name for name in ids)


def test_a_table_has_a_pseudonym_that_its_owner_can_look_up(tmp_path: Path) -> None:
    name = "SMITH_JOHN_MRN12345678.jsonl"
    row = {"image": "i.png", "question": "Which?", "answer": ""}
    corpus = cleaned(table(tmp_path, [row], name), "table")
    (place,) = corpus.samples["file"].to_pylist()
    assert place == Cleaner.load().clean_file(name)
    assert place.endswith(".jsonl")
    assert "SMITH" not in place
    findings = validate(corpus, ValidationConfig()).findings.to_pylist()
    assert (place, 1) in {(found["file"], found["row_in_file"]) for found in findings}


def test_a_question_in_another_language_is_counted_without_saying_which(tmp_path: Path) -> None:
    rows = [{"img_name": "i.png", "question": "Is it?", "answer": "yes", "q_lang": lang, "qid": 1}
            for lang in ("en", "John Smith MRN 12345678")]  # fmt: skip
    (tmp_path / "imgs").mkdir()
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert cleaned(tmp_path, "slake").left_out == {"question in another language than the option": 1}


def test_an_image_that_cannot_be_read_is_not_named(tmp_path: Path) -> None:
    name = f"JOHN_SMITH_{'x' * 80}.png"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(name, planted(MARK)["plain.png"](1))
    packed = (tmp_path / "images.zip").read_bytes()
    (tmp_path / "images.zip").write_bytes(packed.replace(b"JOHN_SMITH", b"NAMELESS__", 1))
    (tmp_path / "t.csv").write_text(f"image,question,answer\n{name},Is it?,yes\n")
    options = {"images": "images.zip"}
    plain = ingest(DataConfig(adapter="table", path=str(tmp_path / "t.csv"), options=options, workers=1))
    assert "JOHN_SMITH" in plain.images["error"].to_pylist()[0]
    corpus = cleaned(tmp_path / "t.csv", "table", images="images.zip")
    assert corpus.images["error"].to_pylist() == [UNREAD]


def test_the_index_is_neither_read_nor_written(tmp_path: Path, home: Path) -> None:
    path = table(tmp_path / "source", [{"image": "i.png", "question": "Is it?", "answer": "yes"}])
    cleaned(path, "table")
    assert not list((home / "ingest").glob("index*"))
    ingest(DataConfig(adapter="table", path=str(path), workers=1))
    (index,) = (home / "ingest").glob("index*.sqlite")
    before = index.read_bytes(), index.stat().st_mtime_ns
    cleaned(path, "table")
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before


def test_only_its_owner_may_read_the_index_from_its_first_byte(home: Path) -> None:
    mask = os.umask(0)
    try:
        with Index.open() as index:
            index.keep_unit(b"k", [b"r"], b"text")
            index.keep_images([])
            files = list((home / "ingest").glob("index*"))
            assert len(files) == 3  # with -wal and -shm
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
            assert stat.S_IMODE((home / "ingest").stat().st_mode) == 0o700
    finally:
        os.umask(mask)


def test_a_check_can_deidentify(tmp_path: Path, home: Path) -> None:
    row = {"image": "JOHN_SMITH.png", "question": "Who?", "answer": "", "id": "JOHN_SMITH"}
    path = table(tmp_path / "source", [row])
    shown = CliRunner().invoke(app, ["check", "--dataset", "table", str(path), "--deidentify"])
    assert "image file is missing" in shown.output
    assert "SMITH" not in shown.output
    assert b"SMITH" not in all_bytes(home)
    alone = CliRunner().invoke(app, ["check", "--deidentify"])
    assert isinstance(alone.exception, ConfigError)


def test_what_cannot_be_cleaned_does_not_go_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, data in {"a.png": b"Jane", "b.dcm": bytes(128) + b"DICMJane"}.items():
        (source / name).write_bytes(data)
    (source / "t.csv").write_text(
        "image,question,answer\na.png,Is it?,yes\nb.dcm,Is it?,yes\nc.png,Is it?,no\n"
    )
    corpus = cleaned(source / "t.csv", "table")
    assert corpus.images.num_rows == 3
    assert corpus.images["bytes"].null_count == 3
    assert sorted(corpus.images["error"].to_pylist()) == [
        *["cannot be read, and so not be cleaned of identifiers"] * 2,
        "the file is missing",
    ]


def test_frames_are_kept_one_by_one(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom.data")
    source = tmp_path / "source"
    source.mkdir()
    volume = Path(pydicom.get_testdata_file("examples_ybr_color.dcm", download=False))
    (source / "volume.dcm").write_bytes(volume.read_bytes())
    (source / "q.csv").write_text("image,question,answer\nvolume.dcm,Is it?,yes\n")
    corpus = cleaned(source, "dicom", table="q.csv", by="file", frames="all")
    assert corpus.images.num_rows > 1
    for image in corpus.encoded_images():
        assert image.data
        assert image.data.startswith(b"\x89PNG")
        assert Image.open(io.BytesIO(image.data)).size == to_rgb(volume.read_bytes()).size
