"""With `deidentify` no identifier of the source is left in the corpus, nor in what an ingest leaves behind."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from radloop.config import DataConfig
from radloop.data.corpus import Corpus
from radloop.data.imaging import to_rgb
from radloop.data.ingest import ingest
from radloop.data.phantoms.formats import Cohort, write

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


def picture(path: Path, **more: Any) -> None:
    Image.effect_noise((40, 40), 50).save(path, **more)


def test_metadata_of_pictures_goes_and_the_pixels_stay(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Secretperson")
    exif = Image.Exif()
    exif[0x010E] = "Jane Secretperson"
    picture(source / "text.png", pnginfo=text)
    picture(source / "exif.jpg", exif=exif)
    picture(source / "comment.jpg", comment="Jane Secretperson")
    picture(source / "plain.png")
    names = ("text.png", "exif.jpg", "comment.jpg", "plain.png")
    (source / "t.csv").write_text(
        "image,question,answer\n" + "".join(f"{name},Is it?,yes\n" for name in names)
    )
    corpus = cleaned(source / "t.csv", "table")
    pixels = {to_rgb((source / name).read_bytes()).tobytes() for name in names}
    found = [image.data or b"" for image in corpus.encoded_images()]
    assert {to_rgb(data).tobytes() for data in found} == pixels
    assert not any(b"Secretperson" in data for data in found)
    assert corpus.removed["image metadata"] == 3
    assert (source / "plain.png").read_bytes() in found


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
