from __future__ import annotations

import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from PIL import Image

from radloop.data.adapters.roco import _V1, Roco, _Hub
from radloop.data.phantoms import caption
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats._files import jpeg
from radloop.data.phantoms.formats.roco import LAYOUTS, _cuis
from radloop.data.reading import ParquetFolder
from radloop.data.source import Images
from radloop.errors import ConfigError, DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read, given
from tests.unit.data.adapters.hostile import DAMAGES, rows_like, survives, values

COHORT = Cohort(train=3, validation=1, test=2, size=48)


def read(folder: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return drive(Roco().open(str(folder), Roco.Options(**options)))


def written(folder: Path, layout: str) -> Path:
    folder.mkdir()
    LAYOUTS[layout](folder, COHORT)
    return folder


def image_bytes(ref: Any) -> bytes:
    if ref.data is not None:
        return bytes(ref.data)
    if ref.root.endswith(".zip"):
        return zipfile.ZipFile(ref.root).read(ref.name)
    return (Path(ref.root) / ref.name).read_bytes()


def content(folder: Path, **options: Any) -> list[tuple[Any, ...]]:
    samples, refs = read(folder, **options)
    return [
        (s["split"], *s["answers"], s["labels"], s["notes"],
         *(image_bytes(refs[key]) for key in s["image_ids"]))
        for s in samples
    ]  # fmt: skip


def expected(labels: bool = True, splits: tuple[str, ...] = ("train", "validation", "test")) -> list[Any]:
    return [
        (s.split, caption(s.phantom), _cuis(s) if labels else [], [], jpeg(s.phantom))
        for s in COHORT.studies() if s.split in splits
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["v1", "v2", "hub"])
def test_every_layout_gives_back_what_was_written(tmp_path: Path, layout: str) -> None:
    assert sorted(content(written(tmp_path / layout, layout))) == sorted(expected())


def test_the_chest_subset_has_two_splits_and_no_concepts(tmp_path: Path) -> None:
    found = content(written(tmp_path / "chest", "chest"))
    assert sorted(found) == sorted(expected(labels=False, splits=("train", "test")))


def test_second_version_and_its_copy_share_their_ids(tmp_path: Path) -> None:
    ids = [{s["id"] for s in read(written(tmp_path / layout, layout))[0]} for layout in ("v2", "hub")]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 6


def test_images_keep_the_names_that_a_copy_gives_them(tmp_path: Path) -> None:
    names = [ref.name for ref in read(written(tmp_path / "hub", "hub"))[1].values()]
    assert all(name.endswith(".jpg") for name in names)


def test_a_row_becomes_a_sample(tmp_path: Path) -> None:
    folder = written(tmp_path / "v1", "v1")
    samples, _ = read(folder, question="Describe.")
    study = next(COHORT.studies())
    assert samples[0] | {"image_ids": []} == {
        "id": "roco-ROCO_00001", "dataset": "roco", "split": "train", "image_ids": [], "task": "caption",
        "question": "Describe.", "answers": [caption(study.phantom)], "answer_type": "open",
        "question_type": "caption", "language": "en", "labels": _cuis(study), "notes": [],
        "file": "data/train/radiology/captions.txt", "row": 1,
    }  # fmt: skip


def test_the_subset_decides_which_figures_are_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "v1", "v1")
    counts = {
        subset: len(read(folder, subset=subset)[0]) for subset in ("radiology", "non-radiology", "both")
    }
    assert counts == {"radiology": 6, "non-radiology": 3, "both": 9}
    for split in ("train", "validation", "test"):
        shutil.rmtree(folder / "data" / split / "non-radiology")
    with pytest.raises(
        DataError, match="no captions of the subset 'non-radiology'; found: data/train/radiology"
    ):
        read(folder, subset="non-radiology")


@pytest.mark.parametrize("layout", ["v2", "hub", "chest"])
def test_copies_of_radiology_alone_refuse_another_subset(tmp_path: Path, layout: str) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.options\.subset: got 'both', but only ROCO's first version"
    ):
        read(written(tmp_path / layout, layout), subset="both")


def test_the_folder_data_may_be_named_itself(tmp_path: Path) -> None:
    folder = written(tmp_path / "v1", "v1")
    assert content(folder / "data") == content(folder)


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_captions_and_concepts_are_joined_by_id_in_any_order(tmp_path: Path, layout: str) -> None:
    folder = written(tmp_path / layout, layout)
    path = next(folder.rglob("test*concepts.csv"), folder / "data/test/radiology/cuis.txt")
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *reversed(lines)] if layout == "v2" else [*reversed(lines), header]))
    assert sorted(content(folder)) == sorted(expected())
    path.unlink()
    assert [labels for split, _, labels, *_ in content(folder) if split == "test"] == [[], []]


@pytest.mark.parametrize(
    ("layout", "file", "line"),
    [
        ("v1", "data/test/radiology/cuis.txt", "X1\t\tC1\tC2\tC1\n"),
        ("v1", "data/test/radiology/cuis.txt", "X1\tC1\nX1\t\tC2\n"),
        ("v2", "test_concepts.csv", "X1,C1;C2;C1\n"),
    ],
)
def test_concepts_without_a_caption_become_a_sample_without_an_answer(
    tmp_path: Path, layout: str, file: str, line: str
) -> None:
    folder = written(tmp_path / layout, layout)
    with (folder / file).open("a") as opened:
        opened.write(line)
    sample = read(folder)[0][-1]
    assert (sample["id"], sample["answers"], sample["labels"]) == ("roco-X1", [], ["C1", "C2"])
    assert sample["notes"] == ["caption: null counts as missing"]


def test_images_may_have_the_ids_as_names(tmp_path: Path) -> None:
    folder = written(tmp_path / "v1", "v1")
    images = folder / "data/test/radiology/images"
    for number, path in enumerate(sorted(images.iterdir()), 5):
        path.rename(images / f"ROCO_{number:05d}.jpg")
    assert sorted(content(folder)) == sorted(expected())


@pytest.mark.parametrize("place", ["test", "test_images", "test_images/test"])
def test_images_of_the_second_version_may_be_unpacked(tmp_path: Path, place: str) -> None:
    folder = written(tmp_path / "v2", "v2")
    with zipfile.ZipFile(folder / "test_images.zip") as archive:
        (folder / place).mkdir(parents=True)
        for name in archive.namelist():
            (folder / place / Path(name).name).write_bytes(archive.read(name))
    (folder / "test_images.zip").unlink()
    assert sorted(content(folder)) == sorted(expected())


def test_a_damaged_archive_of_images_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "v2", "v2")
    (folder / "test_images.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"test_images\.zip: cannot be read .*copy it again"):
        read(folder)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), 7).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "cell", [png(), {"bytes": png()}, Image.new("RGB", (3, 3), 7)], ids=["bytes", "dict", "decoded"]
)
def test_images_of_the_hub_come_as_bytes_dictionaries_or_decoded(cell: Any) -> None:
    row = {"image": cell, "image_id": "r1", "caption": "c", "split": "test"}
    (sample,) = _Hub(ParquetFolder(Path(), ()), "Describe.").samples(row, images := Images())
    (key,) = sample["image_ids"]
    assert Image.open(io.BytesIO(images.refs[key].data or b"")).getpixel((1, 1)) == (7, 0, 0)
    assert (images.refs[key].name, sample["id"]) == ("r1", "roco-r1")


RAW = {"image_id": "a", "caption": "text", "cui": ["C1"], "split": "train", "image": "a.jpg"}


@hypothesis_given(rows_like(RAW))
@settings(max_examples=60)
def test_whatever_a_row_of_the_release_holds_survives(row: Any) -> None:
    row = row | {"split": "train"} if isinstance(row, dict) else row  # the folder's, not the row's
    survives(given(_V1(Path("/nowhere"), (), "Describe."), "captions.txt", row))


@hypothesis_given(values(), values(), values(), values())
@settings(max_examples=60)
def test_whatever_the_columns_of_the_hub_hold_survives(
    image: Any, image_id: Any, text: Any, cui: Any
) -> None:
    row = {"image": image, "image_id": image_id, "caption": text, "cui": cui, "split": "train"}
    (sample,) = _Hub(ParquetFolder(Path(), ()), "Describe.").samples(row, images := Images())
    assert sample["image_ids"] == list(images.refs)
    assert all(sample["answers"] + sample["labels"])


FILES = {"v1": ("captions.txt", "cuis.txt", "licences.txt"), "v2": ("test_captions.csv", "test_concepts.csv"),
         "hub": ("test-00000-of-00001.parquet",), "chest": ("test-00000-of-00001.parquet",)}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("layout", "file"), [(layout, file) for layout in FILES for file in FILES[layout]])
def test_a_damaged_file_is_named_or_its_rows_survive(
    tmp_path: Path, layout: str, file: str, damage: str
) -> None:
    folder = written(tmp_path / layout, layout)
    path = sorted(folder.rglob(file))[0]
    damage_and_read(path, damage, lambda: Roco().open(str(folder), Roco.Options()))


def test_a_folder_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"holds a\.csv; roco needs data/<split>/radiology/captions\.txt"):
        read(tmp_path)


def test_the_published_test_captions(real_data: Callable[[str], Path]) -> None:
    samples, refs = read(real_data("roco"))
    assert len(samples) == len(refs) == len({s["id"] for s in samples}) == 8179
    assert {s["split"] for s in samples} == {"test"}
    assert sum(not s["labels"] for s in samples) == 173
    captions = Counter(s["answers"][0] for s in samples)
    assert sum(count - 1 for count in captions.values()) == 20
    assert not any(text.startswith(" ") for text in captions)
    # The space that every caption begins with is no defect; others at the ends and unusual ones are.
    assert Counter(note for s in samples for note in s["notes"]) == {"caption: white space tidied": 423}
    by_id = {s["id"]: s for s in samples}
    assert by_id["roco-ROCO_00001"]["answers"] == ["Axial MRI (coronal view)."]
    assert len(by_id["roco-ROCO_00006"]["labels"]) == 11
    assert next(iter(refs.values())).name == "PMC4608653_cro-0008-0385-g01.jpg"
