"""From accepted samples to model input: RGB images, prompts, and splits that share no picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from radloop.config import PreprocessConfig
from radloop.data.corpus import Corpus, EncodedImage
from radloop.data.imaging import map_images, resize, to_rgb
from radloop.data.pictures import pictures_of
from radloop.data.prepared import (
    HELD_OUT,
    PREPARED_IMAGES,
    PREPARED_SAMPLES,
    PreparedData,
    key_hash,
    prepared_image,
)
from radloop.data.quality.report import ValidationReport
from radloop.data.splits import SPLITS, connected, stratified
from radloop.data.storage import TableWriter, scratch_folder
from radloop.errors import DataError

Rows = list[dict[str, Any]]
_ABOUT = ["id", "pixel_hash", "body_part", "patient", "study"]
_NOTHING = dict.fromkeys(_ABOUT, "")


def preprocess(
    corpus: Corpus,
    report: ValidationReport,
    config: PreprocessConfig,
    seed: int,
    kept: Mapping[str, str] | None = None,
) -> PreparedData:
    """Decode and resize the images of the accepted samples, and give each sample prompt and split.

    Args:
        corpus: What `ingest` returned.
        report: What `validate` returned for it; quarantined samples and their images stay out.
        config: Size, split and prompt.
        seed: Of the split.
        kept: Split by key, as `PreparedData.split_of_keys` gave it for the version to beat: what that
            has learnt from must not become a test of the next one.

    Raises:
        DataError: Train or test would be empty.
    """
    samples: Rows = corpus.samples.filter(pa.array(report.accepted)).to_pylist()
    pictures = pictures_of(corpus.images)
    images = {row["id"]: row for row in corpus.images.select(_ABOUT).to_pylist()}
    _group(samples, images, pictures, by_patient=config.split != "by_image")
    for sample in samples:
        if config.lowercase_answers:
            sample["answers"] = [answer.lower() for answer in sample["answers"]]
        sample["prompt"] = config.to_prompt(sample["question"], sample["context"])
        sample["published_test"] = config.score_published and sample["split"] == "test"
    # The order of files and folders must not show in the order of training.
    samples.sort(key=lambda sample: (sample["id"], sample["question"]))
    body_parts = {image_id: row["body_part"] for image_id, row in images.items()}
    _split(samples, body_parts, config, seed, kept or {})
    _refuse_empty(samples, config, report)
    pixels = _prepared_images(corpus, samples, config.image_size)
    return PreparedData(pixels, pa.Table.from_pylist(samples, schema=PREPARED_SAMPLES), corpus.fingerprint)


def _prepared_images(corpus: Corpus, samples: Rows, size: int) -> pa.Table:
    def work(image: EncodedImage) -> dict[str, Any]:
        picture = resize(to_rgb(image.data or b"", frame=image.frame, window=image.window), size)
        return prepared_image(image.id, picture)

    used = pa.array(sorted({image_id for sample in samples for image_id in sample["image_ids"]}), pa.string())
    in_use = corpus.images.filter(pc.is_in(corpus.images["id"], used)).sort_by("id")
    path = scratch_folder() / "images.arrow"
    with TableWriter(path, PREPARED_IMAGES) as writer:
        for _, row in map_images(Corpus(in_use, corpus.samples, corpus.fingerprint), work):
            writer.write(pa.Table.from_pylist([row], schema=PREPARED_IMAGES))
    return feather.read_table(path, memory_map=True)


def _group(
    samples: Rows, images: Mapping[str, dict[str, Any]], pictures: Mapping[str, str], *, by_patient: bool
) -> None:
    """Set each sample's group: what a split must not tear apart, and what noise is counted by.

    Beside it its keys: what tells the group again in other data, where its name may be another.
    """
    members = [{pictures.get(image_id, image_id) for image_id in sample["image_ids"]} for sample in samples]
    for sample, keys, people in zip(samples, members, _people(samples, images), strict=True):
        shown = {images.get(image_id, _NOTHING)["pixel_hash"] or image_id for image_id in sample["image_ids"]}
        if by_patient:
            shown |= people
            keys |= people
        sample["keys"] = sorted(shown) or [f"{sample['dataset']} sample {sample['id']}"]
    groups = connected([sorted(keys) for keys in members], alone=[sample["id"] for sample in samples])
    for sample, group in zip(samples, groups, strict=True):
        sample["group"] = group


def _people(samples: Rows, images: Mapping[str, dict[str, Any]]) -> Iterator[set[str]]:
    """Name whom each sample is about: the patient, or else the study."""
    about = [
        {
            (
                sample["namespace"] or sample["dataset"],
                sample["patient"] or image["patient"],
                sample["study"] or image["study"],
            )
            for image in [images.get(image_id, _NOTHING) for image_id in sample["image_ids"]] or [_NOTHING]
        }
        for sample in samples
    ]
    # Where some rows of a study lack the patient, others may tell it. A study number that several
    # patients have, such as "1", tells nothing.
    named = {
        (dataset, study, patient) for some in about for dataset, patient, study in some if study and patient
    }
    times = Counter((dataset, study) for dataset, study, _ in named)
    only = {(dataset, study): patient for dataset, study, patient in named if times[dataset, study] == 1}
    for some in about:
        known = {
            (dataset, patient or only.get((dataset, study), ""), study) for dataset, patient, study in some
        }
        yield {
            f"{dataset} patient {patient}" if patient else f"{dataset} study {study}"
            for dataset, patient, study in known
            if patient or study
        }


def _split(
    samples: Rows, body_parts: Mapping[str, str], config: PreprocessConfig, seed: int, kept: Mapping[str, str]
) -> None:
    """Set each sample's split to the one in force."""
    if config.split == "official":
        train = [sample for sample in samples if sample["split"] == "train"]
        if not any(sample["split"] == "validation" for sample in samples):
            _place(train, body_parts, seed, config.validation, 0.0, {})
        return
    # What the champion learnt from wins: a group that new data joined must not be tested.
    settled: dict[str, str] = {}
    for sample in samples:
        for key in sample["keys"]:
            if split := kept.get(key_hash(key)):
                settled[sample["group"]] = "train" if settled.get(sample["group"], split) != split else split
    _place(samples, body_parts, seed, config.validation, config.test, settled)
    for sample in samples:
        if sample["published_test"] and sample["split"] != "test":
            sample["split"] = HELD_OUT


def _place(
    samples: Rows,
    body_parts: Mapping[str, str],
    seed: int,
    validation: float,
    test: float,
    settled: Mapping[str, str],
) -> None:
    strata = [
        f"{sample['answer_type']}, {body_parts.get(next(iter(sample['image_ids']), ''), '')}"
        for sample in samples
    ]
    split_of = stratified([sample["group"] for sample in samples], strata, seed, validation, test, settled)
    for sample in samples:
        sample["split"] = split_of[sample["group"]]


def _refuse_empty(samples: Rows, config: PreprocessConfig, report: ValidationReport) -> None:
    counts = {name: sum(sample["split"] == name for sample in samples) for name in (*SPLITS, HELD_OUT)}
    empty = [name for name in ("train", "test") if not counts[name]]
    unsplit = len(samples) - sum(counts.values())
    if not empty and not unsplit:
        return
    found = ", ".join(f"{counts[name]:,} {name}" for name in SPLITS)
    groups = len({sample["group"] for sample in samples})
    remedy = (
        "the data set publishes no such split: use preprocess.split: by_patient or by_image"
        if config.split == "official"
        else "add data, or raise preprocess.test (a small number of groups may miss a split)"
    )
    fault = (
        f"{' and '.join(empty)} would be empty" if empty else f"{unsplit:,} samples have no published split"
    )
    raise DataError(
        f"{fault}: {len(samples):,} samples in {groups:,} groups gave {found}, after "
        f"{int((~report.accepted).sum()):,} in quarantine; {remedy}"
    )
