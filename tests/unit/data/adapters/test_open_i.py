from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from radloop.data.adapters.open_i import ANNOTATION, PROJECTIONS, REPORTS, XML_FOLDER, OpenI
from radloop.data.phantoms import report
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats.open_i import LAYOUTS
from radloop.data.reports import sections
from radloop.data.source import Source
from radloop.errors import ConfigError, DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read, given
from tests.unit.data.adapters.hostile import DAMAGES, json_values, rows_like, survives, values

COHORT = Cohort(train=3, validation=1, test=2, size=48)
ITEM = {"id": "CXR7_IM-0009", "report": "Clear.", "image_path": ["CXR7_IM-0009/0.png"], "split": "train"}
ROW = {"uid": "7", "MeSH": "Opacity/lung/left;Opacity;normal ", "Problems": "Opacity", "image": "PA ",
       "indication": "Cough", "comparison": "", "findings": "Clear.", "impression": "Fine."}  # fmt: skip
XML = """<eCitation><uId id="CXR7"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">Clear
   lungs.</AbstractText><AbstractText Label="IMPRESSION">A &lt; B</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Opacity/lung/left </major><major>Opacity</major><automatic>lung</automatic></MeSH>
<parentImage id="CXR7_1_IM-1001"><caption>PA</caption></parentImage><parentImage id="CXR7_1_IM-2001"/>
</eCitation>"""


def opened(folder: Path, **options: Any) -> Source:
    return OpenI().open(str(folder), OpenI.Options(**options))


def read(folder: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return drive(opened(folder, **options))


def written(folder: Path, layout: str) -> Path:
    folder.mkdir()
    LAYOUTS[layout](folder, COHORT)
    return folder


def xml(folder: Path, *texts: str | bytes) -> Path:
    (folder / XML_FOLDER).mkdir(parents=True)
    (folder / "NLMCXR_png").mkdir()
    (folder / "NLMCXR_png" / "CXR7_1_IM-1001.png").touch()
    for number, text in enumerate(texts, 7):
        data = text if isinstance(text, bytes) else text.encode()
        (folder / XML_FOLDER / f"{number}.xml").write_bytes(data)
    return folder


def kaggle(folder: Path, reports: list[dict[str, Any]], *projections: str) -> Path:
    (folder / "images" / "images_normalized").mkdir(parents=True)
    (folder / "images" / "images_normalized" / "x.png").touch()
    with (folder / REPORTS).open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(reports)
    (folder / PROJECTIONS).write_text("\n".join(["uid,filename,projection", *projections]))
    return folder


def r2gen(folder: Path, items: Any) -> Path:
    (folder / "images" / "x").mkdir(parents=True)
    (folder / ANNOTATION).write_text(json.dumps(items))
    return folder


def linked(folder: Path, source: Path, *images: str) -> Path:
    """The real tables, with a place for images that are not there."""
    for name in images:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_what_was_written(tmp_path: Path, layout: str) -> None:
    samples, refs = read(written(tmp_path / layout, layout))
    assert len(samples) == len(refs) == len([*COHORT.studies()])
    by_study = {sample["study"]: sample for sample in samples}
    for study in COHORT.studies():
        sample = by_study[str(study.number + 1)]
        text = report(study.phantom)
        assert sample["answers"] == [sections(text)["findings"] if layout == "r2gen" else text]
        assert sample["split"] == (study.split if layout == "r2gen" else "")
        (ref,) = (refs[key] for key in sample["image_ids"])
        assert (Path(ref.root) / ref.name).read_bytes() == study.phantom.png()
        assert ref.columns["view"] == ("FRONTAL" if layout == "kaggle" else "")
        labels = {name.title() for name in study.phantom.findings} - {"Pacemaker", "Nodules"} or {"normal"}
        assert layout == "r2gen" or labels <= set(sample["labels"]) | {"normal"}
        assert sample["notes"] == []


def test_all_layouts_agree(tmp_path: Path) -> None:
    def content(layout: str, *unlike: str, **options: Any) -> list[dict[str, Any]]:
        samples, _ = read(tmp_path / layout, **options)
        unlike = (*unlike, "image_ids", "file", "row")
        shared = [{k: v for k, v in sample.items() if k not in unlike} for sample in samples]
        return sorted(shared, key=lambda sample: int(sample["study"]))

    for layout in LAYOUTS:
        written(tmp_path / layout, layout)
    for options in ({}, {"target": "impression", "context": ["indication", "comparison"]}):
        assert content("xml", **options) == content("kaggle", **options)
    told = {"target": "findings"}
    assert content("kaggle", "labels", "split", **told) == content("r2gen", "labels", "split", **told)


def test_an_xml_report_becomes_a_sample(tmp_path: Path) -> None:
    samples, refs = read(xml(tmp_path, XML), context=["indication", "comparison"])
    assert samples == [
        {
            "id": "open_i-7", "dataset": "open_i", "split": "", "study": "7", "image_ids": list(refs),
            "task": "report", "question": "Write the report of this study.",
            "answers": ["FINDINGS: Clear lungs.\nIMPRESSION: A < B"], "answer_type": "open",
            "question_type": "report", "language": "en", "context": "INDICATION: Cough",
            "labels": ["Opacity"], "notes": [], "file": XML_FOLDER, "row": 0,
        }
    ]  # fmt: skip
    assert [ref.name for ref in refs.values()] == ["CXR7_1_IM-1001.png", "CXR7_1_IM-2001.png"]
    assert {ref.root for ref in refs.values()} == {str(tmp_path / "NLMCXR_png")}


BOMB = '<!DOCTYPE x [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
) + "]><eCitation>&i;</eCitation>"  # fmt: skip
READS = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><eCitation>&a;</eCitation>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "EntitiesForbidden"),
        (READS, "EntitiesForbidden"),
        (XML[:200], "ParseError"),
        ("", "ParseError"),
        ('<?xml version="1.0" encoding="klingon"?><eCitation/>', "cannot be read"),
        (XML.replace("Cough", "\0"), "ParseError"),
        (XML.encode().replace(b"Cough", b"\xff"), "ParseError"),
    ],
)
def test_an_xml_file_that_cannot_be_read_is_a_finding(tmp_path: Path, text: str | bytes, words: str) -> None:
    good, bad = survives(opened(xml(tmp_path, XML, text)))
    assert good["notes"] == []
    assert (bad["id"], bad["study"], bad["answers"], bad["image_ids"]) == ("open_i-8", "8", [], [])
    assert bad["notes"][0].startswith("xml: 8.xml cannot be read")
    assert words in bad["notes"][0]
    assert "root:" not in str(bad)


def test_odd_xml_file_names_and_links_survive(tmp_path: Path) -> None:
    folder = xml(tmp_path, XML) / XML_FOLDER
    (folder / "nowhere.xml").symlink_to("/nowhere.xml")
    (folder / "a directory.xml").mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.xml")).write_text(XML.replace('"CXR7"', '""'))
    samples = survives(opened(tmp_path))
    assert [sample["id"] for sample in samples] == [
        "open_i-7",
        "open_i-?",
        "open_i-nowhere",
        "open_i-a directory",
    ]
    assert [bool(sample["notes"]) for sample in samples] == [False, False, True, True]


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: path.symlink_to("../secret.xml"), f"leads out of '{XML_FOLDER}', not followed"),
        (os.mkfifo, "is no file"),
        (lambda path: path.write_bytes(XML.encode() + b" " * (17 << 20)), "has more than 16,777,216 bytes"),
    ],
)
def test_nothing_but_files_of_the_folder_is_read(
    tmp_path: Path, make: Callable[[Path], Any], fault: str
) -> None:
    folder = xml(tmp_path, XML)
    (folder / "secret.xml").write_text(XML.replace("Clear", "Secret"))
    make(folder / XML_FOLDER / "8.xml")
    _, sample = survives(opened(folder))
    assert (sample["answers"], sample["notes"]) == ([], [f"xml: 8.xml {fault}"])


def test_nested_xml_survives(tmp_path: Path) -> None:
    survives(opened(xml(tmp_path, "<a>" * 50_000 + "</a>" * 50_000)))


def test_a_kaggle_row_becomes_a_sample_frontal_image_first(tmp_path: Path) -> None:
    projections = ("7,a.png,Lateral", "7,b.png,Frontal", "7,c.png,", "7,d.png,Frontal")
    (sample,), refs = read(kaggle(tmp_path, [ROW], *projections), target="impression")
    assert (sample["id"], sample["answers"], sample["labels"]) == (
        "open_i-7",
        ["Fine."],
        ["Opacity", "normal"],
    )
    assert (sample["file"], sample["row"], sample["notes"]) == (REPORTS, 1, [])
    images = [refs[key] for key in sample["image_ids"]]
    assert [(ref.name, ref.columns["view"]) for ref in images] == [
        ("b.png", "FRONTAL"), ("d.png", "FRONTAL"), ("a.png", "LATERAL"), ("c.png", ""),
    ]  # fmt: skip
    assert images[0].columns == {"modality": "XR", "body_part": "CHEST", "view": "FRONTAL", "study": "7"}
    (sample,), refs = read(tmp_path, max_images=1)
    assert [refs[key].name for key in sample["image_ids"]] == ["b.png"]
    assert len(refs) == 1


@pytest.mark.parametrize(
    ("changes", "expected", "note"),
    [
        ({"findings": "A &gt; B &amp;lt; C"}, ["FINDINGS: A > B &lt; C\nIMPRESSION: Fine."],
         "findings: HTML entities unescaped"),
        ({"findings": ""}, ["IMPRESSION: Fine."], None),
        ({"findings": "XXXX lungs."}, ["FINDINGS: XXXX lungs.\nIMPRESSION: Fine."], None),
        ({"findings": "NULL"}, ["IMPRESSION: Fine."], "findings: 'NULL' counts as missing"),
        ({"findings": "NULL", "impression": ""}, [], "findings: 'NULL' counts as missing"),
        ({"impression": " Fine.\n", "findings": ""}, ["IMPRESSION: Fine."], "impression: white space tidied"),
    ],
)  # fmt: skip
def test_defects_are_mended_or_left_for_validation(
    tmp_path: Path, changes: dict[str, str], expected: list[str], note: str | None
) -> None:
    (sample,), _ = read(kaggle(tmp_path, [ROW | changes], "7,a.png,Frontal"))
    assert (sample["answers"], sample["notes"]) == (expected, [note] if note else [])


def test_incomplete_studies_are_left_out_with_a_reason(tmp_path: Path) -> None:
    rows = [ROW | {"findings": "", "impression": ""}, ROW | {"uid": "8"}, ROW | {"uid": "9"}]
    samples, _ = read(
        kaggle(tmp_path / "csv", rows, "7,a.png,Frontal", "9,b.png,Frontal", "10,c.png,Frontal")
    )
    assert [sample.get("left_out") for sample in samples] == [
        "report has no FINDINGS or IMPRESSION", "study has no image", None, "study has no report",
    ]  # fmt: skip
    bare = XML.replace("<parentImage", "<x").replace("</parentImage", "</x")
    mute = XML.replace("AbstractText", "Other")
    samples, _ = read(xml(tmp_path / "xml", bare, mute))
    assert [sample.get("left_out") for sample in samples] == [
        "study has no image", "report has no FINDINGS or IMPRESSION",
    ]  # fmt: skip
    items = {"train": [ITEM | {"image_path": []}, ITEM | {"report": ""}]}
    samples, _ = read(r2gen(tmp_path / "r2gen", items))
    assert [sample.get("left_out") for sample in samples] == ["study has no image", "report has no FINDINGS"]


@pytest.mark.parametrize(
    ("key", "own", "split", "note"),
    [
        ("val", "val", "validation", None),
        ("val", ..., "validation", None),
        ("test", "", "test", None),
        ("    ", "test", "test", "split: the key '    ' is unknown, the item says 'test'"),
        ("other", ..., "", "split: the key 'other' is unknown"),
        ("train", "test", "test", "split: the item says 'test', but is listed under 'train'"),
        ("train", "holdout", "holdout", "split: the item says 'holdout', but is listed under 'train'"),
    ],
)
def test_the_split_of_an_item_counts_more_than_its_list(
    tmp_path: Path, key: str, own: Any, split: str, note: str | None
) -> None:
    item = {k: v for k, v in (ITEM | {"split": own}).items() if v is not ...}
    (sample,), refs = read(r2gen(tmp_path, {key: [item]}))
    assert (sample["split"], sample["notes"]) == (split, [note] if note else [])
    assert (sample["id"], sample["study"], sample["answers"]) == ("open_i-7", "7", ["Clear."])
    assert [ref.name for ref in refs.values()] == ["CXR7_IM-0009/0.png"]


def test_r2gen_has_no_sections_to_choose_from(tmp_path: Path) -> None:
    folder = r2gen(tmp_path, {"train": [ITEM]})
    assert read(folder, target="findings")[0] == read(folder)[0]
    for options in ({"target": "impression"}, {"context": ["indication"]}):
        with pytest.raises(ConfigError, match="one text a study, without sections"):
            read(folder, **options)


def test_the_real_kaggle_tables(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    folder = linked(tmp_path, real_data("iu_xray") / "kaggle_indiana", "images/images_normalized/x.png")
    samples, refs = read(folder)
    reasons = Counter(sample.get("left_out") for sample in samples)
    assert reasons == {None: 3826, "report has no FINDINGS or IMPRESSION": 25}
    kept = [sample for sample in samples if "left_out" not in sample]
    assert len({sample["id"] for sample in kept}) == 3826
    assert set(refs) == {key for sample in kept for key in sample["image_ids"]}
    projections = [row[1] for unit in opened(folder).units() for row in unit.rows]
    assert Counter(map(len, projections)) == {1: 446, 2: 3210, 3: 181, 4: 13, 5: 1}
    assert Counter(view for pairs in projections for _, view in pairs) == {"Frontal": 3818, "Lateral": 3648}
    assert Counter(note for s in kept for note in s["notes"]) == {
        "impression: HTML entities unescaped": 2,
        "impression: white space tidied": 1,
        "findings: white space tidied": 2,
    }
    assert sum("&" in answer and ";" in answer for s in kept for answer in s["answers"]) == 0
    with (folder / REPORTS).open(newline="") as file:
        problems = {row["uid"]: row["Problems"] for row in csv.DictReader(file)}
    assert all(
        set(s["labels"]) == {" ".join(p.split()) for p in problems[s["study"]].split(";")} for s in kept
    )
    assert [text.strip() for text in problems.values()].count("normal") == 1379
    assert sum(s["labels"] == ["normal"] for s in kept) == 1379 - 25  # all that have no text are normal


@pytest.mark.parametrize(("target", "empty", "removed"), [("findings", 514, 1426), ("impression", 31, 644)])
def test_the_real_kaggle_sections(
    tmp_path: Path, real_data: Callable[[str], Path], target: str, empty: int, removed: int
) -> None:
    folder = linked(tmp_path, real_data("iu_xray") / "kaggle_indiana", "images/images_normalized/x.png")
    samples, _ = read(folder, target=target)
    assert Counter(s.get("left_out") for s in samples)[f"report has no {target.upper()}"] == empty
    answers = [s["answers"][0] for s in samples if "left_out" not in s]
    assert len(answers) == 3851 - empty
    assert sum("XXXX" in answer for answer in answers) == removed


def test_the_real_r2gen_file_with_a_nameless_test_split(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    folder = linked(tmp_path, real_data("iu_xray") / "r2gen_corrupt_test_key", "images/x.png")
    samples, refs = read(folder)
    assert Counter(s["split"] for s in samples) == {"train": 2069, "validation": 296, "test": 590}
    notes = Counter(note for s in samples for note in s["notes"] if note.startswith("split"))
    assert notes == {"split: the key '    ' is unknown, the item says 'test'": 590}
    assert len({s["id"] for s in samples}) == 2955
    assert {len(s["image_ids"]) for s in samples} == {2}
    assert len(refs) == 5910
    assert sum("XXXX" in s["answers"][0] for s in samples) == 1227


TABLES = {"xml": [f"{XML_FOLDER}/1.xml"], "kaggle": [REPORTS, PROJECTIONS], "r2gen": [ANNOTATION]}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("layout", "name"), [(k, name) for k, names in TABLES.items() for name in names])
def test_a_damaged_file_survives_or_is_one_error_that_names_it(
    tmp_path: Path, layout: str, name: str, damage: str
) -> None:
    folder = written(tmp_path / layout, layout)
    damage_and_read(folder / name, damage, lambda: opened(folder))


@settings(max_examples=60)
@hypothesis_given(rows_like(ROW, values()), values(), values())
def test_hostile_kaggle_rows_survive(
    tmp_path_factory: pytest.TempPathFactory, row: Any, name: Any, view: Any
) -> None:
    folder = kaggle(tmp_path_factory.mktemp("kaggle"), [ROW], "7,a.png,Frontal")
    survives(given(opened(folder), REPORTS, (row, [("a.png", "Frontal"), (name, view)])))


@settings(max_examples=60)
@hypothesis_given(rows_like(ITEM, json_values()), st.sampled_from(["train", "", "    ", "x" * 1000]))
def test_hostile_r2gen_items_survive(tmp_path_factory: pytest.TempPathFactory, item: Any, key: str) -> None:
    source = opened(r2gen(tmp_path_factory.mktemp("r2gen"), {key: [ITEM, item]}))
    assert len(survives(source)) == 2


@settings(max_examples=60)
@hypothesis_given(
    st.text(max_size=60), st.text(max_size=20), st.sampled_from(["uId", "major", "parentImage"])
)
def test_hostile_xml_survives(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str, tag: str
) -> None:
    from xml.sax.saxutils import escape, quoteattr

    named, text = quoteattr(name), escape(text)
    odd = f"<{tag} id={named}>{text}</{tag}><AbstractText Label={named}>{text}</AbstractText>"
    data = XML.replace("<MeSH>", f"{odd}<MeSH>").encode("utf-8", "surrogatepass")
    folder = xml(tmp_path_factory.mktemp("xml"), data)
    survives(opened(folder))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none", "no such file or folder; open_i needs one of"),
        (lambda root: kaggle(root / "a", [ROW]) / REPORTS, "is a file of another kind; open_i needs"),
        (lambda root: kaggle(root / "a", [ROW]) / "images", "holds images_normalized; open_i needs"),
        (lambda root: xml(root / "a"), f"holds NLMCXR_png, {XML_FOLDER}; open_i needs"),
        (lambda root: r2gen(root / "a", {"train": [{"q": 1}]}), "no item has the key 'report'"),
        (lambda root: r2gen(root / "a", {}), "no item has the key 'report'"),
    ],
)
def test_unusable_sources_are_one_clear_error(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(make(tmp_path))


@pytest.mark.parametrize(
    ("layout", "place"), [("xml", "NLMCXR_png"), ("kaggle", "images/images_normalized"), ("r2gen", "images")]
)
def test_reports_can_be_checked_without_their_images(tmp_path: Path, layout: str, place: str) -> None:
    folder = written(tmp_path / layout, layout)
    whole, _ = drive(opened(folder))
    (folder / place).rename(tmp_path / "elsewhere")
    samples, refs = drive(opened(folder))
    assert [row["answers"] for row in samples] == [row["answers"] for row in whole]
    assert {ref.root for ref in refs.values()} == {str(folder / place)}  # where validation misses them


def test_a_changed_xml_file_changes_its_unit(tmp_path: Path) -> None:
    source = opened(xml(tmp_path, XML))
    first = [*source.units()]
    assert [*source.units()] == first
    (tmp_path / XML_FOLDER / "7.xml").write_text(XML.replace("Cough", "Fever and cough"))
    assert [*source.units()] != first
