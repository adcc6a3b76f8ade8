from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from radloop.config import PreprocessConfig
from radloop.data.corpus import Corpus
from radloop.data.imaging import to_png
from radloop.data.prepared import PREPARED_SAMPLES, PreparedData
from radloop.data.preprocess import preprocess
from radloop.data.quality.report import FINDINGS, ValidationReport
from radloop.errors import DataError


def picture(seed: int) -> bytes:
    return to_png(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40), dtype=np.uint8)))


def corpus(num_images: int = 60, questions: int = 3, **changes: Any) -> Corpus:
    images = [{"id": f"i{n}", "name": f"{n}.png", "bytes": picture(n)} for n in range(num_images)]
    samples = [
        {
            "id": f"s{n}-{q}",
            "group": f"i{n}",
            "split": "test" if n % 5 == 0 else "train",
            "image_ids": [f"i{n}"],
            "question": f"Question {q}?",
            "answers": ["yes"],
        }
        | changes
        for n in range(num_images)
        for q in range(questions)
    ]
    return Corpus.of(images, samples)


def quarantine(*ids: str) -> ValidationReport:
    rows = [{"severity": "error", "sample_id": sample_id} for sample_id in ids]
    return ValidationReport({}, pa.Table.from_pylist(rows, schema=FINDINGS), {}, {})


def groups(data: PreparedData) -> dict[str, set[str]]:
    return {name: set(data.split(name)["group"].to_pylist()) for name in ("train", "validation", "test")}


def test_images_are_small_rgb_and_samples_have_prompts() -> None:
    data = preprocess(
        corpus(), quarantine(), PreprocessConfig(image_size=20, prompt="Q: {question} {x}\nA:"), 7
    )
    image = data.image("i3")
    assert (image.mode, image.size) == ("RGB", (20, 15))
    assert data.samples.schema.equals(PREPARED_SAMPLES)
    assert data.samples["prompt"][1].as_py() == "Q: Question 1? {x}\nA:"
    assert preprocess(corpus(), quarantine(), PreprocessConfig(image_size=99), 7).image("i3").size == (40, 30)


def test_splits_by_group_are_disjoint_complete_and_reproducible() -> None:
    data = preprocess(corpus(), quarantine(), PreprocessConfig(), 7)
    found = groups(data)
    assert set.union(*found.values()) == {f"i{n}" for n in range(60)}
    assert sum(map(len, found.values())) == 60
    assert all(found.values())
    assert sorted(i for ids in data.indices.values() for i in ids) == sorted(data.samples["id"].to_pylist())
    assert preprocess(corpus(), quarantine(), PreprocessConfig(), 7).indices == data.indices
    assert preprocess(corpus(), quarantine(), PreprocessConfig(), 8).indices != data.indices


def test_new_images_move_no_old_one() -> None:
    before, after = (groups(preprocess(corpus(n), quarantine(), PreprocessConfig(), 7)) for n in (40, 60))
    assert all(before[name] == after[name] & {f"i{n}" for n in range(40)} for name in before)


def test_the_official_split_is_kept_and_validation_comes_out_of_train() -> None:
    data = preprocess(corpus(), quarantine(), PreprocessConfig(split="official", validation=0.3), 7)
    found = groups(data)
    assert found["test"] == {f"i{n}" for n in range(0, 60, 5)}
    assert found["validation"]
    assert not found["validation"] & found["train"]
    without = preprocess(corpus(), quarantine(), PreprocessConfig(split="official", validation=0), 7)
    assert {name: len(ids) for name, ids in without.indices.items()} == {
        "train": 144,
        "validation": 0,
        "test": 36,
    }


def test_a_published_validation_split_is_kept() -> None:
    base = corpus()
    splits = ["validation" if n == 7 else split for n, split in enumerate(base.samples["split"].to_pylist())]
    samples = base.samples.set_column(base.samples.schema.get_field_index("split"), "split", pa.array(splits))
    data = preprocess(
        Corpus(base.images, samples, "f"), quarantine(), PreprocessConfig(split="official", validation=0.3), 7
    )
    assert data.indices["validation"] == ["s2-1"]


def test_quarantined_samples_and_their_images_stay_out() -> None:
    base = corpus()
    broken = base.images.to_pylist()
    broken[1]["bytes"] = b"text"
    bad = Corpus.of(broken, base.samples.to_pylist())
    data = preprocess(bad, quarantine("s1-0", "s1-1", "s1-2", "s2-0"), PreprocessConfig(), 7)
    assert set(data.images["id"].to_pylist()) == {f"i{n}" for n in range(60) if n != 1}
    assert data.samples.num_rows == 176
    assert data.fingerprint == bad.fingerprint


def test_twins_of_a_picture_are_never_on_both_sides() -> None:
    base = corpus().images.to_pylist()
    for number in range(30):
        base[number + 30]["bytes"] = base[number]["bytes"]
    data = preprocess(
        Corpus.of(base, corpus().samples.to_pylist()), quarantine(), PreprocessConfig(test=0.4), 7
    )
    of_image = {row["image_ids"][0]: (row["split"], row["group"]) for row in data.samples.to_pylist()}
    assert all(of_image[f"i{n}"] == of_image[f"i{n + 30}"] for n in range(30))
    assert len(set(of_image.values())) == 30


@pytest.mark.parametrize(
    ("data", "config", "words"),
    [
        (
            corpus(2),
            PreprocessConfig(test=0.001),
            "test would be empty: 6 samples in 2 groups gave .* raise preprocess.test",
        ),
        (
            corpus(9, split="train"),
            PreprocessConfig(split="official"),
            "test would be empty.*use preprocess.split: by_group",
        ),
        (corpus(9, split=""), PreprocessConfig(split="official"), "train and test would be empty.*by_group"),
    ],
)
def test_an_empty_split_is_refused_with_the_remedy(
    data: Corpus, config: PreprocessConfig, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        preprocess(data, quarantine(), config, 7)


def test_prepared_data_survives_saving(tmp_path: Path) -> None:
    data = preprocess(corpus(), quarantine(), PreprocessConfig(), 7)
    data.save(tmp_path)
    loaded = PreparedData.load(tmp_path)
    assert loaded.samples.equals(data.samples)
    assert loaded.images.equals(data.images)
    assert json.loads((tmp_path / "indices.json").read_text()) == loaded.indices == data.indices
    assert loaded.facts() == data.facts()
    assert loaded.facts()["images"] == 60
    assert list(loaded.image("i5").getdata()) == list(data.image("i5").getdata())
    with pytest.raises(KeyError):
        loaded.image("none")


def test_the_view_shows_each_split_and_escapes() -> None:
    data = preprocess(corpus(question="<script>alert(1)</script>"), quarantine(), PreprocessConfig(), 7)
    page = data.views()["prepared.html"]
    assert isinstance(page, str)
    assert "<script" not in page
    assert page.count("data:image/png;base64") == 18
    for name in ("train", "validation", "test"):
        assert f"Examples of {name}" in page


def test_the_published_vqa_rad(vqa_rad: tuple[Corpus, ValidationReport]) -> None:
    data = preprocess(*vqa_rad, PreprocessConfig(), 7)
    sizes = {name: len(members) for name, members in groups(data).items()}
    assert sum(sizes.values()) == data.images.num_rows == 314
    assert data.samples.num_rows == 2248
    assert all(max(data.image(image_id).size) == 96 for image_id in data.images["id"].to_pylist()[:20])


def test_answers_in_lower_case_on_request() -> None:
    data = corpus(answers=["Yes", "Left Side"])
    for config, expected in (
        (PreprocessConfig(lowercase_answers=True), ["yes", "left side"]),
        (PreprocessConfig(), ["Yes", "Left Side"]),
    ):
        prepared = preprocess(data, quarantine(), config, 7)
        assert prepared.samples["answers"].to_pylist() == [expected] * data.samples.num_rows
