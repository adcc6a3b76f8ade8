from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from radloop.config import PreprocessConfig, ValidationConfig
from radloop.data.corpus import Corpus
from radloop.data.prepared import HELD_OUT, PREPARED_SAMPLES, PreparedData, key_hash
from radloop.data.preprocess import preprocess
from radloop.data.quality import ValidationReport, validate
from radloop.data.quality.report import FINDINGS
from radloop.data.splits import SPLITS
from radloop.errors import DataError
from tests.unit.data.imaging.dicoms import make
from tests.unit.data.small import image, noise, phantom, sample

Row = dict[str, Any]
KINDS = [("closed", "yes"), ("closed", "no"), ("open", "the left lung")]
IMAGES = [
    image(f"{n}.png", noise(n, 24), body_part="CHEST" if n % 3 else "HEAD", patient="", study="")
    for n in range(60)
]


def rows(images: list[Row] = IMAGES, **changes: Any) -> list[Row]:
    """Three questions an image; each fifth image is published as test."""
    return [
        sample(3 * n + q, row, split="train" if n % 5 else "test", answer_type=kind, answers=[answer])
        | changes
        for n, row in enumerate(images)
        for q, (kind, answer) in enumerate(KINDS)
    ]


def prepare(
    samples: list[Row], images: list[Row] = IMAGES, *, bad: tuple[int, ...] = (), seed: int = 7,
    kept: dict[str, str] | None = None, **config: Any,
) -> PreparedData:  # fmt: skip
    """Preprocess with these rows in quarantine."""
    findings = pa.Table.from_pylist([{"severity": "error", "row": row} for row in bad], schema=FINDINGS)
    report = ValidationReport({"samples": len(samples)}, findings, {}, {})
    return preprocess(Corpus.of(images, samples), report, PreprocessConfig(**config), seed, kept)


def split_of_images(data: PreparedData) -> dict[str, set[str]]:
    """The splits that use each image."""
    found: dict[str, set[str]] = {}
    for row in data.samples.to_pylist():
        for image_id in row["image_ids"]:
            found.setdefault(image_id, set()).add(row["split"])
    return found


def split_of_samples(data: PreparedData) -> dict[str, str]:
    return dict(zip(data.samples["id"].to_pylist(), data.samples["split"].to_pylist(), strict=True))


def keys_of_sample(data: PreparedData, sample_id: str) -> list[str]:
    (keys,) = [row["keys"] for row in data.samples.to_pylist() if row["id"] == sample_id]
    return [key_hash(key) for key in keys]


def sizes(data: PreparedData) -> dict[str, int]:
    return {name: len(ids) for name, ids in data.indices.items()}


def test_images_are_small_rgb_and_samples_have_prompts() -> None:
    wide = image("wide.png", noise(0, 30), modality="CR")
    data = prepare(rows([wide, *IMAGES]), [wide, *IMAGES], image_size=20, prompt="Q: {question} {x}\nA:")
    picture = data.image(wide["id"])
    assert (picture.mode, picture.size) == ("RGB", (20, 20))
    assert data.samples.schema.equals(PREPARED_SAMPLES)
    prompts = {row["id"]: row["prompt"] for row in data.samples.to_pylist()}
    assert prompts["s1"] == "Q: Is finding 1 to be seen? {x}\nA:"
    assert prepare(rows(), image_size=99).image(IMAGES[3]["id"]).size == (24, 24)


def test_the_context_stands_in_the_prompt_where_there_is_one() -> None:
    samples = rows()
    samples[0]["context"] = "Aged 70. {question}"
    prompts = {row["id"]: row["prompt"] for row in prepare(samples).samples.to_pylist()}
    assert prompts["s0"] == "Aged 70. {question}\nIs finding 0 to be seen?"
    assert prompts["s1"] == "Is finding 1 to be seen?"
    shown = {
        row["id"]: row["prompt"]
        for row in prepare(samples, prompt="{question}|{context}").samples.to_pylist()
    }
    assert (shown["s0"], shown["s1"]) == (
        "Is finding 0 to be seen?|Aged 70. {question}\n",
        "Is finding 1 to be seen?|",
    )


def test_answers_in_lower_case_on_request() -> None:
    samples = rows(answers=["Yes", "Left Side"])
    for lower, expected in ((True, ["yes", "left side"]), (False, ["Yes", "Left Side"])):
        prepared = prepare(samples, lowercase_answers=lower)
        assert prepared.samples["answers"].to_pylist() == [expected] * len(samples)


def test_the_frame_and_the_window_of_a_dicom_file_are_shown() -> None:
    low, high = (np.tile(np.linspace(0, 1000, 32, dtype=np.int16), (32, 1)) + add for add in (0, 500))
    data = make(np.stack([low, high]), RescaleIntercept=-1024, RescaleSlope=1, NumberOfFrames=2)
    ways = [(0, ""), (1, ""), (0, "-500/200"), (1, "-500/200")]
    images = [image("ct.dcm", data, frame=frame, window=window) for frame, window in ways]
    assert len({row["id"] for row in images}) == 4
    prepared = prepare(rows([*images, *IMAGES]), [*images, *IMAGES], image_size=32)
    shown = [np.asarray(prepared.image(row["id"]))[0, :, 0].astype(float) for row in images]
    for (frame, window), grey in zip(ways, shown, strict=True):
        if window:
            hounsfield = (low if frame == 0 else high)[0] - 1024.0
            assert np.abs(grey - 255 * np.clip((hounsfield + 500 + 0.5) / 199 + 0.5, 0, 1)).max() <= 1.5
    assert (shown[2] != shown[3]).any()


def test_the_second_page_of_a_tiff_is_another_picture() -> None:
    pages = [Image.open(io.BytesIO(noise(n, 24))) for n in (100, 101)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    images = [image("two.tiff", buffer.getvalue(), frame=n) for n in range(2)]
    data = prepare(rows([*images, *IMAGES]), [*images, *IMAGES])
    for page, row in zip(pages, images, strict=True):
        assert (np.asarray(data.image(row["id"])) == np.asarray(page.convert("RGB"))).all()


@pytest.mark.parametrize("split", ["by_image", "by_patient"])
def test_clean_splits_are_disjoint_complete_and_reproducible(split: str) -> None:
    data = prepare(rows(), split=split)
    found = split_of_images(data)
    assert found.keys() == {row["id"] for row in IMAGES}
    assert all(len(splits) == 1 for splits in found.values())
    assert all(sizes(data).values())
    assert sorted(i for ids in data.indices.values() for i in ids) == sorted(data.samples["id"].to_pylist())
    assert prepare(rows(), split=split).indices == data.indices
    assert prepare(rows(), split=split, seed=8).indices != data.indices


@given(st.randoms())
@settings(max_examples=5)
def test_the_order_of_rows_and_images_does_not_matter(random: Any) -> None:
    samples, images = rows(), list(IMAGES)
    random.shuffle(samples)
    random.shuffle(images)
    data, expected = prepare(samples, images), prepare(rows())
    assert data.indices == expected.indices
    assert data.samples.drop_columns(["row"]).equals(expected.samples.drop_columns(["row"]))
    assert data.images.equals(expected.images)


def test_each_kind_of_answer_and_organ_gets_its_share() -> None:
    data = prepare(rows(), test=0.25, validation=0.15)
    organ = {row["id"]: row["body_part"] for row in IMAGES}
    kinds = [
        (row["answer_type"], organ[row["image_ids"][0]], row["split"]) for row in data.samples.to_pylist()
    ]
    total, held = Counter(kind[:2] for kind in kinds), Counter(kinds)
    assert len(total) == 4
    for kind, count in total.items():
        assert abs(held[*kind, "test"] - 0.25 * count) <= 2, kind  # an image has two closed questions
        assert abs(held[*kind, "validation"] - 0.15 * count) <= 2, kind


def test_copies_of_a_picture_are_never_on_both_sides() -> None:
    forms = [("PNG", 128), ("TIFF", 128), ("PNG", 80), ("JPEG", 128)]
    images = [image(f"{n}.{form}{size}", phantom(n, form, size)) for n in range(12) for form, size in forms]
    found = split_of_images(prepare(rows(images), images, split="by_image", test=0.4))
    for n in range(12):
        assert len(set().union(*(found[row["id"]] for row in images[4 * n : 4 * n + 4]))) == 1
    assert {name for names in found.values() for name in names} == {*SPLITS}


PEOPLE = st.lists(
    st.tuples(
        st.sampled_from(["rad", "chest"]),
        *(st.sampled_from(["", "1", "2", "3", "4"]) for _ in range(4)),
        st.lists(st.integers(0, 59), max_size=2),
    ),
    min_size=30,
    max_size=40,
)


@settings(max_examples=25)
@given(PEOPLE, st.integers(0, 99))
def test_no_patient_is_torn_apart_wherever_it_is_named(people: list[tuple[Any, ...]], seed: int) -> None:
    images = [dict(row) for row in IMAGES]
    samples = []
    for n, (dataset, patient, study, of_image, of_image_study, numbers) in enumerate(people):
        samples.append(
            sample(
                n, *(images[i] for i in numbers), dataset=dataset, patient=patient, study=study, task="ehr"
            )
        )
        for i in numbers[:1]:
            images[i] |= {
                "patient": of_image and f"p{of_image}",
                "study": of_image_study and f"s{of_image_study}",
            }
    alone = [sample(100 + n, task="ehr") for n in range(30)]  # so that no split is empty
    data = prepare(samples + alone, images, seed=seed, test=0.4)
    named = {row["id"]: row for row in images}
    splits: dict[tuple[str, str], set[str]] = {}
    for row in data.samples.to_pylist():
        about = [named[image_id] for image_id in row["image_ids"]] or [{"patient": "", "study": ""}]
        for of_image in about:
            if patient := row["patient"] or of_image["patient"]:
                splits.setdefault((row["dataset"], patient), set()).add(row["split"])
        for image_id in row["image_ids"]:
            splits.setdefault(("image", image_id), set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_a_study_stands_for_the_patient_where_none_is_named() -> None:
    by_sample = [row | {"study": f"st{n // 6}"} for n, row in enumerate(rows())]
    images = [row | {"study": f"st{n // 2}"} for n, row in enumerate(IMAGES)]
    one, other = prepare(by_sample), prepare(rows(images), images)
    assert one.samples["group"].equals(other.samples["group"])
    assert len(set(one.samples["group"].to_pylist())) == 30
    found = split_of_images(one)
    assert all(found[IMAGES[n]["id"]] == found[IMAGES[n + 1]["id"]] for n in range(0, 60, 2))


def test_a_row_without_patient_goes_with_its_study_unless_many_patients_have_that_number() -> None:
    samples = rows()
    for n, row in enumerate(samples):
        row |= {"patient": f"p{n // 12}" if n % 12 < 6 else "", "study": f"st{n // 12}"}
    assert len(set(prepare(samples).samples["group"].to_pylist())) == 15
    numbered = [row | {"study": "1"} for row in samples]
    assert len(set(prepare(numbered).samples["group"].to_pylist())) == 16


def test_patients_of_two_data_sets_with_one_number_are_two() -> None:
    samples = [row | {"patient": "1", "dataset": f"set {n // 3}"} for n, row in enumerate(rows())]
    assert len(set(prepare(samples).samples["group"].to_pylist())) == 60
    joined = [row | {"dataset": "rad"} if n < 60 else row for n, row in enumerate(samples)]
    assert len(set(prepare(joined).samples["group"].to_pylist())) == 41


def test_by_image_may_tear_a_patient_apart() -> None:
    images = [row | {"patient": "p"} for row in IMAGES]
    assert all(sizes(prepare(rows(images), images, split="by_image")).values())
    with pytest.raises(DataError, match="180 samples in 1 groups"):
        prepare(rows(images), images, split="by_patient")


def test_the_official_split_is_kept_and_validation_comes_out_of_train() -> None:
    data = prepare(rows(), split="official", validation=0.3)
    found = split_of_images(data)
    assert {image_id for image_id in found if found[image_id] == {"test"}} == {
        row["id"] for row in IMAGES[::5]
    }
    assert all(len(splits) == 1 for splits in found.values())
    assert sizes(data)["validation"] == pytest.approx(0.3 * 144, abs=3)
    without = prepare(rows(), split="official", validation=0)
    assert sizes(without) == {"train": 144, "validation": 0, "test": 36}


def test_a_published_validation_split_is_kept() -> None:
    samples = rows()
    samples[7]["split"] = "validation"
    data = prepare(samples, split="official", validation=0.3)
    assert data.indices["validation"] == ["s7"]
    assert sizes(data)["train"] == 143


def test_old_samples_stay_where_the_champion_had_them() -> None:
    before = prepare(rows()[:90])
    renamed = [row | {"id": f"new {row['id']}"} for row in rows()]  # ids may come from the order of rows
    after = prepare(renamed, kept=before.split_of_keys())
    moved, old = split_of_samples(after), split_of_samples(before)
    assert {name: moved[f"new {name}"] for name in old} == old
    assert all(sizes(after)[name] > sizes(before)[name] for name in SPLITS)


@pytest.mark.parametrize(
    "splits", [("train", "test"), ("test", "train"), ("validation", "test"), ("test", "train", "test")]
)
def test_a_group_that_joined_what_was_trained_on_goes_to_train(splits: tuple[str, ...]) -> None:
    samples = rows()
    for n in range(len(splits)):
        samples[3 * n]["patient"] = "p"
    before = prepare(rows())
    kept = {key: split for n, split in enumerate(splits) for key in keys_of_sample(before, f"s{3 * n}")}
    assert len(kept) == len(splits)
    found = split_of_images(prepare(samples, kept=kept))
    assert all(found[IMAGES[n]["id"]] == {"train"} for n in range(len(splits)))


def test_published_test_samples_are_scored_and_never_trained_on() -> None:
    samples = [row | {"split": "train" if n % 3 else "test"} for n, row in enumerate(rows())]
    data = prepare(samples, score_published=True)
    published = {f"s{n}" for n in range(0, 180, 3)}
    learnt = {*data.indices["train"], *data.indices["validation"]}
    assert not learnt & published
    assert {*data.asked()["id"].to_pylist()} == published | {*data.indices["test"]}
    assert {*data.split(HELD_OUT)["id"].to_pylist()} == published - {*data.indices["test"]}
    assert data.facts()[HELD_OUT] == data.split(HELD_OUT).num_rows > 0
    assert sum(sizes(data).values()) + data.split(HELD_OUT).num_rows == 180
    clean = {image_id for image_id, splits in split_of_images(data).items() if "test" in splits}
    assert all(split_of_images(data)[image_id] == {"test"} for image_id in clean)
    assert HELD_OUT in str(data.views()["prepared.html"])
    plain = prepare(samples)
    assert plain.split(HELD_OUT).num_rows == 0
    assert plain.asked().equals(plain.split("test"))


def test_the_split_of_a_champion_with_held_out_samples_is_kept() -> None:
    samples = [row | {"split": "train" if n % 3 else "test"} for n, row in enumerate(rows())]
    before = prepare(samples, score_published=True)
    assert set(before.split_of_keys().values()) == {*SPLITS}
    again = prepare(samples, score_published=True, kept=before.split_of_keys())
    assert split_of_samples(again) == split_of_samples(before)


def test_a_picture_that_an_official_split_tore_apart_was_trained_on() -> None:
    samples = rows()
    samples[0]["split"], samples[5]["split"] = "train", "test"  # others of these two images are elsewhere
    official = prepare(samples, split="official", validation=0)
    clean = split_of_images(prepare(rows(), kept=official.split_of_keys()))
    assert clean[IMAGES[0]["id"]] == clean[IMAGES[1]["id"]] == {"train"}


def test_quarantined_samples_and_their_images_stay_out() -> None:
    images = [row | {"bytes": b"text"} if n == 1 else row for n, row in enumerate(IMAGES)]
    data = prepare(rows(), images, bad=(3, 4, 5, 6))
    assert {*data.images["id"].to_pylist()} == {row["id"] for n, row in enumerate(IMAGES) if n != 1}
    assert data.samples.num_rows == 176
    assert not {"s3", "s4", "s5", "s6"} & {*split_of_samples(data)}


@pytest.mark.parametrize(
    ("samples", "config", "words"),
    [
        (
            rows()[:6],
            {"test": 0.001},
            "test would be empty: 6 samples in 2 groups gave .* raise preprocess.test",
        ),
        (rows()[3:9], {"split": "official"}, "test would be empty.*by_patient or by_image"),
        (rows(split=""), {"split": "official"}, "train and test would be empty.*by_patient"),
        ([*rows(), sample(999)], {"split": "official", "bad": (0,)}, None),
        ([*rows(), sample(999, split="")], {"split": "official", "bad": (0, 1)},
         "1 samples have no published split: 179 samples .* after 2 in quarantine"),
        ([], {}, "train and test would be empty: 0 samples in 0 groups"),
    ],
)  # fmt: skip
def test_an_empty_split_is_refused_with_the_remedy(
    samples: list[Row], config: Row, words: str | None
) -> None:
    if words is None:
        assert prepare(samples, **config).samples.num_rows == 180
        return
    with pytest.raises(DataError, match=words):
        prepare(samples, **config)


def test_health_records_need_no_image() -> None:
    samples = [sample(n, task="ehr", patient=f"p{n // 4}") for n in range(80)]
    data = prepare(samples, [])
    assert data.images.num_rows == 0
    assert len(set(data.samples["group"].to_pylist())) == 20
    assert isinstance(data.views()["prepared.html"], str)


def test_prepared_data_survives_saving(tmp_path: Path) -> None:
    data = prepare(rows())
    data.save(tmp_path)
    loaded = PreparedData.load(tmp_path)
    assert loaded.samples.equals(data.samples)
    assert loaded.images.equals(data.images)
    assert json.loads((tmp_path / "indices.json").read_text()) == loaded.indices == data.indices
    assert loaded.facts() == data.facts()
    assert loaded.facts()["images"] == 60
    assert loaded.image(IMAGES[5]["id"]).tobytes() == data.image(IMAGES[5]["id"]).tobytes()
    with pytest.raises(KeyError):
        loaded.image("none")


def test_the_view_shows_each_split_and_escapes() -> None:
    long = "<script>alert(1)</script>" * 4000
    data = prepare(rows(question=long, context=long, answers=[long]))
    page = data.views()["prepared.html"]
    assert isinstance(page, str)
    assert "<script" not in page
    assert page.count("data:image/png;base64") == 18
    assert len(page) < 200_000
    for name in SPLITS:
        assert f"Examples of {name}" in page


def test_what_validation_accepts_can_be_prepared() -> None:
    images = [*IMAGES, image("gone.png", None), image("text.png", b"text")]
    samples = [*rows(), sample(900, images[60]), sample(901, images[61]), sample(902, images[0], images[61])]
    corpus = Corpus.of(images, samples)
    report = validate(corpus, ValidationConfig())
    data = preprocess(corpus, report, PreprocessConfig(), 7)
    assert data.samples.num_rows == report.summary["accepted"] == 180
    assert data.fingerprint == corpus.fingerprint


def test_the_published_vqa_rad(vqa_rad: tuple[Corpus, ValidationReport]) -> None:
    data = preprocess(*vqa_rad, PreprocessConfig(score_published=True), 7)
    assert (data.samples.num_rows, data.images.num_rows) == (2248, 314)
    assert all(max(data.image(image_id).size) == 96 for image_id in data.images["id"].to_pylist()[:20])
    assert data.samples["published_test"].to_pylist().count(True) == 451
    learnt = split_of_images(data)
    assert all(splits <= {"test"} or "test" not in splits for splits in learnt.values())
    strata = Counter(
        zip(data.samples["answer_type"].to_pylist(), data.samples["split"].to_pylist(), strict=True)
    )
    for kind in ("open", "closed"):
        total = sum(count for (answer_type, _), count in strata.items() if answer_type == kind)
        assert strata[kind, "test"] == pytest.approx(0.2 * total, abs=5)
