from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from radloop.data.adapters.mimic_cxr import MimicCxr
from radloop.data.imaging import to_rgb
from radloop.data.phantoms import report
from radloop.data.phantoms.formats import Cohort, Study
from radloop.data.phantoms.formats.mimic_cxr import LAYOUTS
from radloop.data.source import Source
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read
from tests.unit.data.adapters.hostile import DAMAGES, VALUES, survives

COHORT = Cohort(train=3, validation=1, test=1, size=48)
PLACE = "files/p10/p10000032"
METADATA, SPLIT, CHEXPERT = (f"mimic-cxr-2.0.0-{kind}.csv" for kind in ("metadata", "split", "chexpert"))
REPORT = "          FINAL REPORT\n INDICATION: Cough.\n \n FINDINGS: Clear.\n \n IMPRESSION: Fine.\n"
ANSWER = "FINDINGS: Clear.\nIMPRESSION: Fine."


def opened(folder: Path, **options: Any) -> Source:
    return MimicCxr().open(str(folder), MimicCxr.Options(**options))


def read(folder: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return drive(opened(folder, **options))


def written(folder: Path, layout: str) -> Path:
    folder.mkdir()
    LAYOUTS[layout](folder, COHORT)
    return folder


def study(root: Path, number: int = 50000001, text: str | None = REPORT, images: str = "a.jpg") -> Path:
    """A study with its report and images; names apart by spaces."""
    folder = root / PLACE / f"s{number}"
    folder.mkdir(parents=True)
    for name in images.split():
        (folder / name).write_bytes(b"picture")
    if text is not None:
        folder.with_suffix(".txt").write_text(text)
    return root


def table(path: Path, *rows: str) -> None:
    path.write_text("\n".join(rows) + "\n")


def metadata(root: Path, *rows: str) -> Path:
    table(root / METADATA, "dicom_id,subject_id,study_id,ViewPosition", *rows)
    return root


def labels(study: Study) -> set[str]:
    names = {"nodules": "Lung Lesion", "pacemaker": "Support Devices"}
    return {names.get(name, name.title()) for name in study.phantom.findings} or {"No Finding"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_what_was_written(tmp_path: Path, layout: str) -> None:
    samples, refs = read(written(tmp_path / layout, layout))
    assert len(samples) == len(refs) == len([*COHORT.studies()])
    by_study = {sample["study"]: sample for sample in samples}
    for case in COHORT.studies():
        sample = by_study[str(case.study_id)]
        assert sample["answers"] == [report(case.phantom)]
        assert (sample["id"], sample["patient"]) == (f"mimic_cxr-{case.study_id}", str(case.patient_id))
        (ref,) = (refs[key] for key in sample["image_ids"])
        assert ref.columns == {"modality": "XR", "body_part": "CHEST", "view": "PA", "study": sample["study"],
                               "patient": sample["patient"]}  # fmt: skip
        picture = Image.open(os.path.join(ref.root, ref.name)) if layout == "jpg" else to_rgb(
            Path(ref.root, ref.name).read_bytes())  # fmt: skip
        differences = abs(case.phantom.pixels.astype(int) - np.asarray(picture.convert("L")))
        assert differences.max() <= (24 if layout == "jpg" else 0)  # JPEG loses a little
        assert (sample["split"], set(sample["labels"])) == (
            (case.split, labels(case)) if layout == "jpg" else ("", set())
        )
        assert sample["notes"] == []


def test_both_releases_agree(tmp_path: Path) -> None:
    jpg, dcm = (read(written(tmp_path / layout, layout)) for layout in LAYOUTS)
    only = ("id", "patient", "study", "answers", "question", "task", "context", "notes", "file")
    assert [[s[k] for k in only] for s in jpg[0]] == [[s[k] for k in only] for s in dcm[0]]
    assert [ref.columns for ref in jpg[1].values()] == [ref.columns for ref in dcm[1].values()]


def test_the_tables_of_one_release_serve_the_images_of_the_other(tmp_path: Path) -> None:
    jpg, dcm = (written(tmp_path / layout, layout) for layout in LAYOUTS)
    for path in jpg.glob("*.csv.gz"):
        (dcm / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    unlike = {"image_ids"}
    assert [{k: v for k, v in s.items() if k not in unlike} for s in read(dcm)[0]] == [
        {k: v for k, v in s.items() if k not in unlike} for s in read(jpg)[0]
    ]


def test_the_public_example_becomes_a_sample(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    study(tmp_path, 50414267, (real_data("mimic_cxr_format") / "example_report.txt").read_text())
    (sample,), refs = read(tmp_path, target="impression", context=["indication"])
    assert sample == {
        "id": "mimic_cxr-50414267", "dataset": "mimic_cxr", "split": "", "patient": "10000032",
        "namespace": "mimic", "study": "50414267", "image_ids": list(refs), "task": "report",
        "question": "Write the report of this study.", "answers": ["Large left pleural effusion"],
        "answer_type": "open", "question_type": "report", "language": "en", "labels": [], "notes": [],
        "context": "INDICATION: ___ year old woman with ?pleural effusion // ?pleural effusion",
        "file": "p10", "row": 0,
    }  # fmt: skip


@pytest.mark.parametrize("place", ["", "files"])
def test_the_folder_itself_or_its_files_may_be_named(tmp_path: Path, place: str) -> None:
    metadata(study(tmp_path), "a,10000032,50000001,AP")
    _, refs = read(tmp_path / place)
    assert [ref.columns["view"] for ref in refs.values()] == ["AP"]


def test_images_are_in_order_frontal_ones_first(tmp_path: Path) -> None:
    study(tmp_path, images="a.jpg b.jpg c.jpg d.jpg e.dcm e.jpg")
    views = {"a": "LL", "b": "", "c": "PA", "d": "ap lld", "e": "LATERAL"}
    metadata(tmp_path, *(f"{name},10000032,50000001,{view}" for name, view in views.items()))
    for wanted, order in (("all", "cdabe"), ("frontal", "cd"), ("lateral", "ae")):
        (sample,), refs = read(tmp_path, views=wanted)
        assert [refs[key].name[-5:] for key in sample["image_ids"]] == [f"{name}.jpg" for name in order]
        assert sample["notes"] == []
    (sample,), refs = read(tmp_path, max_images=1)
    assert [ref.name[-5:] for ref in refs.values()] == ["c.jpg"]
    assert sample["image_ids"] == list(refs)


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        ({"text": None}, {}, "study has no report"),
        ({"images": ""}, {}, "study has no image"),
        ({"images": "index.html .hidden.jpg"}, {}, "study has no image"),
        ({}, {"views": "frontal"}, "study has no frontal image"),
        ({"text": " COMPARISON: None.\n \n Fine."}, {}, "report has no FINDINGS or IMPRESSION"),
        ({"text": " FINDINGS: Fine."}, {"target": "impression"}, "report has no IMPRESSION"),
    ],
)
def test_incomplete_studies_are_left_out_with_a_reason(
    tmp_path: Path, make: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    study(tmp_path, 50000001, images="a.dcm")  # without metadata and tag: no view is known
    study(tmp_path, 50000002, **make)
    samples, _ = read(tmp_path, **options)
    assert samples[-1]["left_out"] == reason


def test_whatever_tables_and_tree_do_not_share_is_noted(tmp_path: Path) -> None:
    study(tmp_path, 50000001, images="a.jpg b.jpg b.dcm.gz")
    metadata(tmp_path, "a,10000032,50000001,PA", "z,10000032,50000001,PA", "y,10000032,50000009,PA",
             "y,10000032,50000009,LL", "junk", ",,,")  # fmt: skip
    samples, _ = read(tmp_path)
    assert samples[0]["notes"] == [
        "images: 'b.dcm.gz' in the folder, not read",
        "images: b not in the metadata",
        "images: z of the metadata not in the folder",
    ]
    assert [s["left_out"] for s in samples[1:]] == ["study has neither report nor image"] * 2


def test_reports_may_lie_in_another_tree(tmp_path: Path) -> None:
    study(tmp_path / "jpg", 50000001, None)
    study(tmp_path / "jpg", 50000002, None)
    study(tmp_path / "texts", 50000001, images="")
    study(tmp_path / "texts", 50000003, images="")
    samples, refs = read(tmp_path / "jpg", reports=str(tmp_path / "texts"))
    assert samples[0]["answers"] == [ANSWER]
    assert [sample["left_out"] for sample in samples[1:]] == ["study has no report", "study has no image"]
    assert [ref.root for ref in refs.values()] == [str(tmp_path / "jpg" / "files")]


@pytest.mark.parametrize(
    ("cells", "expected", "notes"),
    [
        ("1.0,-1.0,0.0,", ["Atelectasis", "Edema (uncertain)"], []),
        ("1,-1,0,", ["Atelectasis", "Edema (uncertain)"], []),
        (",,,", [], []),
        ("1.0", ["Atelectasis"], []),
        ("yes,1.0,,", ["Edema"], ["labels: Atelectasis is 'yes', not 1, 0 or -1"]),
        ("nan,inf,7,1.0,surplus", ["No Finding"], []),
    ],
)
def test_labels_are_the_positive_and_the_uncertain_ones(
    tmp_path: Path, cells: str, expected: list[str], notes: list[str]
) -> None:
    study(tmp_path)
    header = "subject_id,study_id,Atelectasis,Edema,Fracture,No Finding"
    for kind, row in (("chexpert", cells), ("negbio", ",,,1.0")):
        table(tmp_path / f"mimic-cxr-2.0.0-{kind}.csv", header, f"10000032.0,50000001,{row}")
    (sample,), _ = read(tmp_path)
    assert (sample["labels"], sample["notes"]) == (expected, notes)
    assert read(tmp_path, labels="negbio")[0][0]["labels"] == ["No Finding"]


def test_the_official_split_is_used_and_its_contradictions_are_noted(tmp_path: Path) -> None:
    study(tmp_path, 50000001, images="a.jpg b.jpg")
    study(tmp_path, 50000002, images="c.jpg d.jpg")
    study(tmp_path, 50000003, images="e.jpg")
    table(tmp_path / SPLIT, "dicom_id,study_id,subject_id,split", "b,50000001,10000032,validate",
          "c,50000002,10000032,test", "d,50000002,10000032,train", "e,50000003,999,test")  # fmt: skip
    samples, _ = read(tmp_path)
    assert [s["split"] for s in samples] == ["validation", "test", ""]
    assert [s["notes"] for s in samples] == [[], ["split: the first of test, train"], []]


def test_rows_of_the_tables_may_be_in_any_order(tmp_path: Path) -> None:
    folder = written(tmp_path / "jpg", "jpg")
    before = read(folder)[0]
    for path in folder.glob("*.csv.gz"):
        header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
        path.write_bytes(gzip.compress("".join([header, *reversed(rows)]).encode()))
    assert read(folder)[0] == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_report_is_a_finding_or_a_counted_reason(tmp_path: Path, damage: str) -> None:
    study(tmp_path, 50000001)
    study(tmp_path, 50000002)
    DAMAGES[damage](tmp_path / PLACE / "s50000001.txt")
    first, second = survives(opened(tmp_path))
    assert second["answers"] == [ANSWER]
    if damage in ("empty", "only white space", "a directory"):
        assert (first["answers"], first["notes"]) == (
            [],
            [f"report: {'is no file' if damage == 'a directory' else 'is empty'}"],
        )
    elif damage in ("byte order mark", "CRLF"):
        assert first["answers"] == [ANSWER]
    elif damage in ("not UTF-8", "null bytes"):
        assert "\N{REPLACEMENT CHARACTER}" in first["answers"][0]
    elif damage != "cut short":
        assert first["left_out"] == "report has no FINDINGS or IMPRESSION"


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: path.symlink_to("../../../secret.txt"), "leads out of 'files', not followed"),
        (os.mkfifo, "is no file"),
        (lambda path: path.write_text(REPORT * 20_000), "has more than 1,048,576 bytes"),
    ],
)
def test_no_report_but_the_files_of_the_tree_are_read(
    tmp_path: Path, make: Callable[[Path], Any], fault: str
) -> None:
    study(tmp_path, text=None)
    (tmp_path / "secret.txt").write_text(REPORT)
    make(tmp_path / PLACE / "s50000001.txt")
    (sample,) = survives(opened(tmp_path))
    assert (sample["answers"], sample["notes"]) == ([], [f"report: {fault}"])


def test_the_view_of_a_dicom_file_outside_the_tree_is_not_read(tmp_path: Path) -> None:
    outside = sorted(written(tmp_path / "dcm", "dcm").rglob("*.dcm"))[0]
    study(tmp_path, images="")
    (tmp_path / PLACE / "s50000001" / "a.dcm").symlink_to(outside)
    os.mkfifo(tmp_path / PLACE / "s50000001" / "b.dcm")
    refs = drive(opened(tmp_path))[1]
    assert [ref.columns["view"] for ref in refs.values()] == ["", ""]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [f"{name}.gz" for name in (METADATA, SPLIT, CHEXPERT)] + [METADATA])
def test_a_damaged_table_survives_or_is_one_error_that_names_it(
    tmp_path: Path, name: str, damage: str
) -> None:
    folder = written(tmp_path / "jpg", "jpg")
    if name == METADATA:
        packed = folder / f"{METADATA}.gz"
        (folder / METADATA).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    damage_and_read(folder / name, damage, lambda: opened(folder))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dicom_file_has_no_view(tmp_path: Path, damage: str) -> None:
    folder = written(tmp_path / "dcm", "dcm")
    path = sorted(folder.rglob("*.dcm"))[0]
    try:
        DAMAGES[damage](path)
    except UnicodeDecodeError:
        pytest.skip("this damage is one of text files")
    samples = survives(opened(folder))
    assert len(samples) == 5
    (ref,) = [ref for ref in drive(opened(folder))[1].values() if ref.name.endswith(path.name)]
    assert ref.columns["view"] in ("", "PA")


def cells() -> st.SearchStrategy[str]:
    texts = [str(value) if not isinstance(value, int) else "7" for value in VALUES]
    return st.sampled_from([text[:200] for text in texts]) | st.text(max_size=8)


@settings(max_examples=60)
@hypothesis_given(
    st.lists(st.lists(cells(), min_size=1, max_size=6), max_size=4),
    st.binary(max_size=40) | cells().map(lambda text: f" FINDINGS: {text}".encode("utf-8", "replace")),
)
def test_hostile_cells_and_reports_survive(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], text: bytes
) -> None:
    folder = study(tmp_path_factory.mktemp("mimic"))
    (folder / PLACE / "s50000001.txt").write_bytes(text)

    def quoted(row: list[str]) -> str:
        return ",".join('"' + cell.replace('"', '""') + '"' for cell in row)

    for name, header, key in (
        (METADATA, "subject_id,study_id,dicom_id,ViewPosition", "10000032,50000001,a,"),
        (SPLIT, "subject_id,study_id,dicom_id,split", "10000032,50000001,a,"),
        (CHEXPERT, "subject_id,study_id,Edema,Fracture", "10000032,50000001,"),
    ):
        lines = [key + quoted(row) for row in rows] + [quoted(row) for row in rows]
        (folder / name).write_text("\n".join([header, *lines]), encoding="utf-8", errors="replace")
    survives(opened(folder))


def test_odd_file_names_are_noted_not_read(tmp_path: Path) -> None:
    study(tmp_path, images="a.jpg")
    folder = tmp_path / PLACE / "s50000001"
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(b"x")
    (folder / "new\nline.jpg").write_bytes(b"x")
    (folder / "link.jpg").symlink_to("/nowhere.jpg")
    (tmp_path / PLACE / "s50000002.txt").symlink_to("/nowhere.txt")
    (tmp_path / PLACE / "s\u0665.txt").write_text(REPORT)  # an Arabic digit
    sample, other = survives(opened(tmp_path))
    assert len(sample["image_ids"]) == 2
    assert sample["notes"] == [r"images: 'new\nline.jpg', '\udcff.jpg' in the folder, not read"]
    assert other["left_out"] == "study has no image"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none", "no such file or folder; mimic_cxr needs"),
        (lambda root: study(root / "a", images="x.png") / "a", "no such file"),
        (lambda root: study(root / "a", images="x.png"), "holds no .jpg or .dcm file"),
        (lambda root: study(root / "a", text=None), "holds no report .* unpack mimic-cxr-reports.zip"),
        (lambda root: study(root / "a") / PLACE, "holds s50000001, s50000001.txt; mimic_cxr needs"),
        (lambda root: metadata(study(root / "a"), "x") / METADATA, "is a file of another kind"),
    ],
)
def test_unusable_sources_are_one_clear_error(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(make(tmp_path))


def test_a_changed_report_or_dicom_file_changes_its_unit(tmp_path: Path) -> None:
    sent = pickle.dumps(opened(study(tmp_path, images="a.dcm")))  # as to a worker
    source = pickle.loads(sent)  # noqa: S301
    first = [*source.units()]
    assert [*source.units()] == first
    (tmp_path / PLACE / "s50000001.txt").write_text(REPORT + " More.")
    second = [*source.units()]
    assert second != first
    (tmp_path / PLACE / "s50000001" / "a.dcm").write_bytes(b"another picture")
    assert [*source.units()] != second
