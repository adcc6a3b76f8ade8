from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radloop.config import DataConfig
from radloop.data.adapters.vqa_rad import RELEASE_FILE, RELEASE_IMAGES
from radloop.data.corpus import Corpus
from radloop.data.ingest import ingest
from radloop.errors import ConfigError, DataError

ROW = {
    "qid": 1,
    "phrase_type": "freeform",
    "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1",
    "image_name": "a.jpg",
    "image_organ": "ABD",
    "question": "Is it?",
    "question_type": "PRES",
    "answer": "Yes",
    "answer_type": "CLOSED",
}


def jpeg(level: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (level, 4, 5)).save(buffer, "JPEG")
    return buffer.getvalue()


def release(folder: Path, *rows: Any) -> Path:
    (folder / RELEASE_IMAGES).mkdir(parents=True)
    (folder / RELEASE_IMAGES / "a.jpg").write_bytes(jpeg())
    (folder / RELEASE_FILE).write_text(json.dumps(rows))
    return folder


def lone(path: Path) -> Path:
    """A folder that holds this empty file only."""
    path.parent.mkdir()
    path.touch()
    return path.parent


def read(folder: Path | str) -> Corpus:
    return ingest(DataConfig(adapter="vqa_rad", path=str(folder)))


def test_a_release_row_becomes_a_sample(tmp_path: Path) -> None:
    corpus = read(release(tmp_path / "r", ROW))
    image, row = corpus.images.to_pylist()[0], corpus.samples.to_pylist()[0]
    assert (image["name"], image["body_part"], image["study"]) == ("a.jpg", "ABDOMEN", "48e1")
    assert Path(image["uri"]).read_bytes() == jpeg()
    assert row["group"] == image["id"] == row["image_ids"][0]
    assert (row["id"], row["split"], row["task"], row["language"]) == ("vqa_rad-1", "train", "vqa", "en")
    assert (row["question"], row["answers"], row["answer_type"]) == ("Is it?", ["Yes"], "closed")
    assert (row["question_type"], row["source"], row["notes"]) == ("presence", f"{RELEASE_FILE} row 1", [])


@pytest.mark.parametrize(
    ("changes", "expected", "note"),
    [
        ({"answer": 5}, {"answers": ["5"]}, "answer: int 5 kept as '5'"),
        ({"answer": None}, {"answers": []}, "answer: null counts as missing"),
        ({"answer": float("nan")}, {"answers": []}, "answer: nan counts as missing"),
        ({"answer": ...}, {"answers": []}, "answer: null counts as missing"),
        ({"answer_type": "CLOSED "}, {"answer_type": "closed"}, "answer_type: white space tidied"),
        (
            {"answer_type": ..., "answer": "Left"},
            {"answer_type": "open"},
            "answer_type: missing, inferred from the answer",
        ),
        ({"answer_type": "MAYBE"}, {"answer_type": "maybe"}, None),
        ({"phrase_type": "test_para"}, {"split": "test"}, None),
        ({"phrase_type": "Other"}, {"split": "Other"}, None),
        ({"question_type": "ATRIB"}, {"question_type": "attribute"}, None),
        (
            {"question_type": "POS, PRES"},
            {"question_type": "position"},
            "question_type: the first of position, presence",
        ),
        ({"question_type": "NEW"}, {"question_type": "new"}, None),
        ({"question_type": ...}, {"question_type": ""}, None),
        ({"qid": "0"}, {"id": "vqa_rad-0"}, None),
        ({"qid": None}, {"id": ""}, None),
        ({"image_name": None}, {"image_ids": [], "group": ""}, "image_name: null counts as missing"),
        (
            {"image_name": "../x.jpg"},
            {"image_ids": ["missing:../x.jpg"]},
            f"image: '../x.jpg' leads out of '{RELEASE_IMAGES}', not followed",
        ),
        ({"image_name": "b.jpg"}, {"image_ids": ["missing:b.jpg"]}, None),
    ],
)
def test_defects_are_mended_or_left_for_validation(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any], note: str | None
) -> None:
    # A second row keeps the keys that the first one lacks known in the file.
    folder = release(tmp_path / "r", {k: v for k, v in (ROW | changes).items() if v is not ...}, ROW)
    found = read(folder).samples.to_pylist()[0]
    assert {key: found[key] for key in expected} == expected
    assert found["notes"] == ([note] if note else [])


def test_a_row_that_is_no_object_is_kept_for_quarantine(tmp_path: Path) -> None:
    row = read(release(tmp_path / "r", ROW, "text")).samples.to_pylist()[1]
    assert (row["id"], row["question"], row["source"]) == ("", "", f"{RELEASE_FILE} row 2")
    assert "row: is str, not an object" in row["notes"]


def test_fingerprint_follows_content_not_place_or_row_order(tmp_path: Path) -> None:
    other = ROW | {"qid": 2, "question": "Where?"}
    first = read(release(tmp_path / "1", ROW, other)).fingerprint
    assert read(release(tmp_path / "2", other, ROW)).fingerprint == first
    assert read(release(tmp_path / "3", ROW, other | {"answer": "No"})).fingerprint != first
    folder = release(tmp_path / "4", ROW, other)
    (folder / RELEASE_IMAGES / "a.jpg").write_bytes(jpeg(200))
    assert read(folder).fingerprint != first


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none", "no such folder; vqa_rad needs"),
        (lambda root: "", "data.path: is missing"),
        (lambda root: release(root, ROW) / RELEASE_FILE, "is a file; name the folder"),
        (lambda root: lone(root / "x.csv"), "holds x.csv; vqa_rad needs"),
        (lambda root: lone(root / RELEASE_FILE), f"has no folder '{RELEASE_IMAGES}'"),
        (lambda root: release(root), "empty array"),
        (lambda root: release(root, {"id": 1, "q": "x"}), "no row has the keys qid, .*found: id, q"),
    ],
)
def test_unusable_sources_are_one_clear_error(
    tmp_path: Path, make: Callable[[Path], Path | str], words: str
) -> None:
    source = make(tmp_path / "root")
    with pytest.raises(DataError, match=words):
        read(source)


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("kind", ["struct", "bytes", "feature"])
def test_hub_columns_in_a_local_folder(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *host, **_: calls.append(host) or [])
    files = [jpeg(3), jpeg(3), jpeg(90)]
    images = pa.array(files if kind == "bytes" else [{"bytes": file, "path": "a.jpg"} for file in files])
    columns = {"question": ["q1", "q2", None], "answer": ["Yes", "left", "no"], "extra": [1, 2, 3]}
    table = pa.table({"image": images, **columns})
    if kind == "feature":  # as `datasets` marks an image column
        features = {name: {"dtype": "string", "_type": "Value"} for name in ("question", "answer")}
        features |= {"image": {"_type": "Image"}, "extra": {"dtype": "int64", "_type": "Value"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001-ab.parquet")
    parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet", **{n: table[n][:1] for n in table.column_names}
    )
    corpus = read(tmp_path)
    assert corpus.images.num_rows == 2
    assert {row["bytes"] for row in corpus.images.to_pylist()} == set(files)
    rows = corpus.samples.to_pylist()
    assert [row["id"] for row in rows] == [
        f"vqa_rad-{i}" for i in ("train-0", "train-1", "train-2", "test-0")
    ]
    assert [row["split"] for row in rows] == ["train", "train", "train", "test"]
    assert [row["answer_type"] for row in rows] == ["closed", "open", "closed", "closed"]
    assert rows[2]["question"] == ""
    assert rows[1]["source"] == "train row 2"
    assert calls == []


def test_parquet_without_image_bytes_or_columns_or_content(tmp_path: Path) -> None:
    struct = pa.array(
        [{"bytes": None, "path": "/etc/hostname"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    parquet(tmp_path / "1" / "train.parquet", image=struct, question=["q"], answer=["a"])
    assert read(tmp_path / "1").images.to_pylist()[0]["id"] == "missing:/etc/hostname"
    parquet(tmp_path / "2" / "train.parquet", images=[b"x"], question=["q"], answer=["a"])
    with pytest.raises(DataError, match="lacks the columns image; found: images, question, answer; needed"):
        read(tmp_path / "2")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="parquet files cannot be read"):
        read(tmp_path / "3")


def test_a_hub_id_without_a_hub_asks_for_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"no folder here, and the Hugging Face hub did not give it.*local folder"
    ):
        read("nobody/no-such-data")


def test_options_and_adapters_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.options of adapter 'vqa_rad': size: .*known: none"):
        ingest(DataConfig(adapter="vqa_rad", path=str(tmp_path), options={"size": 3}))
    with pytest.raises(ConfigError, match=r"unknown adapter 'vqa-rad'; known: .*vqa_rad"):
        ingest(DataConfig(adapter="vqa-rad"))


def test_the_published_release(real_data: Callable[[str], Path]) -> None:
    corpus = read(real_data("vqa_rad"))
    samples = corpus.samples.to_pylist()
    assert (len(samples), corpus.images.num_rows) == (2248, 314)
    assert Counter(row["split"] for row in samples) == {"train": 1797, "test": 451}
    assert Counter(row["answer_type"] for row in samples) == {"closed": 1299, "open": 949}
    assert len({row["question_type"] for row in samples}) == 11
    assert sum("answer: int" in note for row in samples for note in row["notes"]) == 5
    assert not [row for row in corpus.images.to_pylist() if row["id"].startswith("missing:")]
    parts = {row["id"]: row["body_part"] for row in corpus.images.to_pylist()}
    by_part = Counter(parts[row["image_ids"][0]] for row in samples)
    assert by_part == {"CHEST": 794, "ABDOMEN": 739, "HEAD": 715}
