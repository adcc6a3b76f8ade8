"""Phantoms: what is said about a picture is in the picture, always the same, and never in two splits."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from radloop.config import DataConfig
from radloop.data.ingest import ingest
from radloop.data.phantoms import FINDINGS, Phantom, Stream, caption, make_phantom, questions, report
from radloop.data.phantoms.anatomy import FIELD_CM, SIDES, Scene
from radloop.data.phantoms.findings import ZONES, Finding, Present
from radloop.errors import ConfigError, DataError

SMALL = 24  # enough for texts and findings, which do not depend on the size


@cache
def phantoms(count: int, size: int = SMALL, stream: Stream = Stream.TRAIN, seed: int = 1) -> list[Phantom]:
    return [make_phantom(stream, seed, index, size) for index in range(count)]


def with_finding(name: str, count: int, size: int) -> list[Phantom]:
    found = [phantom.index for phantom in phantoms(500) if name in phantom.findings][:count]
    assert len(found) == count
    return [make_phantom(Stream.TRAIN, 1, index, size) for index in found]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(Stream), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_phantom_is_the_same_every_time(stream: Stream, seed: int, index: int) -> None:
    first, second = make_phantom(stream, seed, index), make_phantom(stream, seed, index)
    assert first.png() == second.png()
    assert first.findings == second.findings
    assert questions(first) == questions(second) == questions(first)
    assert first.pixels.std() > 30  # a picture, with dark and bright parts


def test_another_size_shows_the_same_patient() -> None:
    for small, large in zip(phantoms(20), phantoms(20, 144), strict=True):
        assert small.findings == large.findings
        assert questions(small) == questions(large)
        assert large.pixels.shape == (144, 144)


def test_no_two_streams_seeds_or_indices_share_a_picture() -> None:
    made = [
        make_phantom(stream, seed, index).png()
        for stream in Stream
        for seed in (0, 1, 7, 20_000, 2**32 - 1)
        for index in (0, 1, 2, 2**31)
    ]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (2**32, 0), (0, -1), (0, 2**32)])
def test_numbers_that_could_meet_another_phantom_are_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="not in 0"):
        make_phantom(Stream.TRAIN, seed, index)


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_changes_the_picture_where_its_mask_says(name: str) -> None:
    finding = FINDINGS[name]
    for phantom in with_finding(name, 5, 96):
        present = phantom.findings[name]
        normal = replace(phantom.anatomy, heart_ratio=0.43)
        before = Scene(normal, 96).attenuation()
        scene = Scene(finding.alter(normal, present), 96)
        mask = finding.draw(scene, present, np.random.default_rng(0))
        change = np.abs(scene.attenuation() - before)
        assert mask.any()
        assert change[mask].mean() > 0.05
        assert change[mask].mean() > 5 * change[~ndimage.binary_dilation(mask, iterations=2)].mean()


@pytest.mark.parametrize("name", [name for name, finding in FINDINGS.items() if "side" in finding.values])
def test_sides_are_the_patients(name: str) -> None:
    for phantom in with_finding(name, 12, 96):
        middle = (phantom.anatomy.shift_x + FIELD_CM / 2) / FIELD_CM * 96
        mask = phantom.masks[name]
        if name == "pacemaker":
            mask = ndimage.binary_opening(mask, iterations=1)  # the lead crosses the midline
        picture_half = "right" if ndimage.center_of_mass(mask)[1] > middle else "left"
        assert {picture_half, phantom.findings[name].values["side"]} == set(SIDES)


def test_as_many_nodules_are_drawn_as_are_counted() -> None:
    for phantom in with_finding("nodules", 20, 192):
        assert ndimage.label(phantom.masks["nodules"])[1] == int(phantom.findings["nodules"].values["count"])


def test_zones_are_thirds_of_the_lung() -> None:
    for phantom in with_finding("consolidation", 12, 96):
        values, anatomy = phantom.findings["consolidation"].values, phantom.anatomy
        row = ndimage.center_of_mass(phantom.masks["consolidation"])[0]
        y = ((row + 0.5) / 96 * FIELD_CM - FIELD_CM / 2 - anatomy.shift_y) / anatomy.scale
        third = int(3 * (y - anatomy.apex) / (anatomy.dome(values["side"]) - anatomy.apex))
        assert ZONES[third] == values["zone"]


def test_each_phantom_has_seven_or_eight_different_questions() -> None:
    numbers = Counter()
    for phantom in phantoms(400):
        asked = [question.text for question in questions(phantom)]
        assert len(set(asked)) == len(asked)
        numbers[len(asked)] += 1
    assert set(numbers) == {7, 8}


def test_the_findings_alone_decide_every_answer() -> None:
    answers: dict[tuple[str, str], str] = {}
    for phantom in phantoms(1500):
        state = str([(p.name, sorted(p.values.items())) for p in phantom.findings.values()])
        for question in questions(phantom):
            assert answers.setdefault((state, question.text), question.answer) == question.answer
            assert question.answer_type == ("closed" if question.type == "presence" else "open")


def test_answers_are_true() -> None:
    kinds = set()
    for phantom in phantoms(300):
        for question in questions(phantom):
            kinds.add(question.type)
            assert question.answer == truth(phantom, question.text, question.type), question
    assert kinds == {"presence", "side", "zone", "count", "location", "open"}


def truth(phantom: Phantom, text: str, kind: str) -> str:
    """The answer by other means than the generator's: from words of the question."""
    side = next(
        (side for side in SIDES if f" {side} " in text.replace("?", " ") and "Which" not in text), None
    )
    if kind == "open" and "device" in text.lower():
        return "pacemaker" if "pacemaker" in phantom.findings else "none"
    if kind == "open" and "heart" in text:
        return "enlarged" if "cardiomegaly" in phantom.findings else "normal"
    if kind == "open":
        lung = ("pneumothorax", "pleural effusion", "consolidation", "nodules")
        here = [n for n in lung if n in phantom.findings and phantom.findings[n].values["side"] == side]
        assert len(here) < 2
        return here[0] if here else "none"
    name = next(
        name for name in FINDINGS if name in text or (name == "consolidation" and "consolidat" in text)
    )
    present = phantom.findings.get(name)
    if kind == "presence":
        return "yes" if present and side in (None, present.values.get("side")) else "no"
    if kind == "count":
        return present.values["count"] if present else "0"
    assert present
    return (
        f"{present.values['side']} {present.values['zone']} zone"
        if kind == "location"
        else present.values[kind]
    )


def test_never_looking_scores_about_59_percent() -> None:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for phantom in phantoms(1000):
        for question in questions(phantom):
            seen[question.text][question.answer] += 1
    asked = [question for phantom in phantoms(500, stream=Stream.TEST) for question in questions(phantom)]
    right = [seen[q.text].most_common(1)[0][0] == q.answer for q in asked if q.text in seen]
    assert 0.55 < sum(right) / len(asked) < 0.62


def test_reports_and_captions_name_what_is_there_and_only_that() -> None:
    for phantom in phantoms(100):
        impression = report(phantom).split("IMPRESSION:")[1].lower()
        for name in FINDINGS:
            assert (name in impression) == (name in phantom.findings)
            assert (name.removesuffix("s") in caption(phantom)) == (name in phantom.findings)
        assert report(phantom).startswith("FINDINGS: ")
        assert "{" not in report(phantom) + caption(phantom)


def test_a_new_finding_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(scene: Scene, present: Present, rng: np.random.Generator) -> np.ndarray:
        seen = (np.abs(scene.x) < 1) & (np.abs(scene.y) < 1)
        scene.extra = scene.extra + 3.0 * seen
        return seen

    coin = Finding(
        "coin",
        "device",
        1.0,
        {"side": SIDES},
        lambda *_: Present("coin", {"side": "left"}),
        draw,
        noun="a coin",
        brief="a coin on the {side}",
        positive="A coin lies on the {side}.",
        negative="No coin.",
    )
    monkeypatch.setitem(FINDINGS, "coin", coin)
    made = [make_phantom(Stream.TRAIN, 1, index, SMALL) for index in range(30)]
    assert all(p.masks["coin"].any() for p in made)
    assert all("A coin lies on the left." in report(p) and "a coin on the left" in caption(p) for p in made)
    asked = [q for p in made for q in questions(p) if "coin" in q.text]
    assert {q.type for q in asked} == {"presence", "side"}
    assert {q.answer for q in asked if q.type == "side"} == {"left"}


def read(**options: object) -> tuple[list[dict], list[dict], str]:
    corpus = ingest(DataConfig(adapter="phantoms", options=options))
    return corpus.images.to_pylist(), corpus.samples.to_pylist(), corpus.fingerprint


def test_the_adapter_writes_official_splits_that_share_no_image() -> None:
    images, samples, fingerprint = read(train_images=6, validation_images=2, test_images=3, seed=5)
    by_split = defaultdict(set)
    for sample in samples:
        (image_id,) = sample["image_ids"]
        by_split[sample["split"]].add(image_id)
    assert {split: len(groups) for split, groups in by_split.items()} == {
        "train": 6,
        "validation": 2,
        "test": 3,
    }
    assert len(set.union(*by_split.values())) == 11
    assert {image["id"] for image in images} == set.union(*by_split.values())
    assert len({sample["id"] for sample in samples}) == len(samples)
    with Image.open(io.BytesIO(images[0]["bytes"])) as picture:
        assert (picture.size, picture.mode, picture.format) == ((96, 96), "L", "PNG")
    assert read(train_images=6, validation_images=2, test_images=3, seed=5)[2] == fingerprint
    assert read(train_images=6, validation_images=2, test_images=3, seed=6)[2] != fingerprint


def test_the_adapter_writes_reports_and_captions_on_request() -> None:
    _, samples, _ = read(train_images=4, validation_images=0, test_images=0, tasks=["report", "caption"])
    assert Counter(sample["task"] for sample in samples) == {"report": 4, "caption": 4}
    assert all(sample["answers"][0] for sample in samples)


@pytest.mark.parametrize(
    "options",
    [{"train_images": 0}, {"size": 100}, {"seed": -1}, {"seed": 2**32}, {"tasks": []}, {"images": 5}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        read(**options)


def test_a_path_is_refused() -> None:
    with pytest.raises(DataError, match="generated"):
        ingest(DataConfig(adapter="phantoms", path="somewhere"))
