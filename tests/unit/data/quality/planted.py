"""A corpus of any size with a known set of defects, each at rows of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from radloop.data.corpus import IMAGES, SAMPLES, Corpus
from radloop.data.imaging import to_png
from radloop.data.imaging.hashing import HASH_BYTES

PER_IMAGE = 5  # questions; the last of each image is a report
Row = dict[str, Any]
Defect = tuple[str, str]  # severity and reason

_LOST = ("error", "image file is missing")
_SMALL = ("error", "image is smaller than 16 pixels")
_PREVIEW = ("warning", "image is smaller than 128 pixels")
_REPEATED_ID = ("error", "id occurs more than once")
_AGAIN = ("warning", "same image, question and answer occur again")
_CONTESTED = ("warning", "same image and question, another answer")

# Changes of one question, and what has to be reported of it.
OF_A_SAMPLE: list[tuple[Row, Defect]] = [
    ({"question": "  "}, ("error", "question is empty")),
    ({"question": "-?"}, ("error", "question holds no letter or digit")),
    ({"question": "x" * 2001}, ("error", "question has more than 2,000 characters")),
    ({"answers": []}, ("error", "answer is empty")),
    ({"answers": [""]}, ("error", "answer is empty")),
    ({"answers": ["x" * 100_000]}, ("error", "answer has more than 1,000 characters")),
    ({"answers": ["N/A"]}, ("warning", "answer is a spreadsheet's word for nothing")),
    ({"answer_type": "maybe"}, ("error", "answer_type is not known")),
    ({"answer_type": "open", "answers": ["Yes."]}, ("warning", "open answer is only yes or no")),
    ({"task": "chat"}, ("error", "task is not known")),
    ({"split": "dev"}, ("error", "split is not known")),
    ({"id": ""}, ("error", "id is empty")),
    ({"image_ids": []}, ("error", "sample names no image")),
    ({"image_ids": ["nowhere"]}, ("error", "image is not in the corpus")),
    ({"notes": ["answer: int 5 kept as text"]}, ("warning", "value was mended while reading")),
    ({"question": "Is it da\ufffdmaged?"}, ("warning", "text holds a damaged character (U+FFFD)")),
]
_UNSEEN = dict.fromkeys(("width", "height", "mode", "perceptual_hash")) | {"pixel_hash": ""}
# Changes of one image; each of its samples has to be reported.
OF_AN_IMAGE: list[tuple[Row, list[Defect]]] = [
    (_UNSEEN | {"error": "is none of PNG, JPEG"}, [("error", "image cannot be read")]),
    (_UNSEEN | {"error": "the file is missing", "id": "missing:{}"}, [_LOST]),
    ({"width": 12, "height": 900}, [_SMALL, _PREVIEW]),
    ({"height": 127}, [_PREVIEW]),
    ({"mode": "XYZ"}, [("error", "image has an unknown pixel mode")]),
    ({"blank": True}, [("error", "image is blank")]),
    ({"burnt_in_text": True}, [("warning", "picture seems to hold burnt-in text")]),
    ({"frames": 3}, [("warning", "file holds several frames")]),
]


@dataclass
class Planted:
    """Columns of a corpus under construction, and what a validation has to find in it.

    Attributes:
        expected: Severity, reason and row number of each sample that has to be reported.
    """

    images: dict[str, list[Any]]
    samples: dict[str, list[Any]]
    expected: set[tuple[str, str, int]] = field(default_factory=set)

    def corpus(self) -> Corpus:
        images, samples = (
            pa.table(
                {
                    name: pa.array(columns[name], kind)
                    for name, kind in zip(schema.names, schema.types, strict=True)
                }
            )
            for columns, schema in ((self.images, IMAGES), (self.samples, SAMPLES))
        )
        return Corpus(images, samples, "planted", rows=samples.num_rows)

    def expect(self, defect: Defect, *rows: int) -> None:
        self.expected |= {(*defect, row) for row in rows}


def plant(num_samples: int, times: int, folder: Path) -> Planted:
    """Make a corpus whose only defects are planted at random, each on images that have no other.

    Args:
        num_samples: A multiple of `PER_IMAGE`.
        times: How often each kind of defect occurs.
        folder: Gets the one picture that all images show, as far as a page shows any.
    """
    draw = np.random.default_rng(11)
    planted = _sound(num_samples // PER_IMAGE, draw, folder)
    places = iter(draw.permutation(num_samples // PER_IMAGE).tolist())
    for _ in range(times):
        for change, defect in OF_A_SAMPLE:
            row = PER_IMAGE * next(places) + int(draw.integers(PER_IMAGE - 1))
            _change(planted.samples, row, change)
            planted.expect(defect, row)
        for change, defects in OF_AN_IMAGE:
            _plant_image(planted, next(places), change, defects)
        for relate in (_same_id, _again, _contested, _twins, _near, *_LEAKS):
            relate(planted, next(places), next(places))
    return planted


def _sound(num_images: int, draw: np.random.Generator, folder: Path) -> Planted:
    picture = folder / "picture.png"
    picture.write_bytes(to_png(Image.fromarray(draw.integers(0, 255, (128, 128), dtype=np.uint8))))
    looks = draw.integers(0, 256, (num_images, HASH_BYTES), dtype=np.uint8)
    numbers = range(num_images)
    images = {name: [""] * num_images for name in IMAGES.names} | {
        "id": [f"image-{n}" for n in numbers],
        "name": [f"{n}.png" for n in numbers],
        "bytes": [None] * num_images,
        "uri": [str(picture)] * num_images,
        "study": [f"study-{n}" for n in numbers],
        "patient": [f"patient-{n}" for n in numbers],
        "pixel_hash": [f"pixels-{n}" for n in numbers],
        "perceptual_hash": [row.tobytes() for row in looks],
        **{name: [value] * num_images for name, value in {"frame": 0, "width": 512, "height": 512}.items()},
        **{name: [value] * num_images for name, value in {"mode": "L", "format": "PNG", "frames": 1}.items()},
        **{name: [False] * num_images for name in ("blank", "burnt_in_text")},
    }
    total = num_images * PER_IMAGE
    of_image = [n for n in numbers for _ in range(PER_IMAGE)]
    is_report = [n % PER_IMAGE == PER_IMAGE - 1 for n in range(total)]
    samples = {name: [""] * total for name in SAMPLES.names} | {
        "id": [f"sample-{n}" for n in range(total)],
        "dataset": ["planted"] * total,
        "split": [("test", "validation", "train", "train")[n % 4] for n in of_image],
        "image_ids": [[f"image-{n}"] for n in of_image],
        "task": ["report" if report else "vqa" for report in is_report],
        "question": [f"Is finding {n} to be seen?" for n in range(total)],
        "answers": [[f"The heart of case {n} is normal." if is_report[n] else "yes"] for n in range(total)],
        "answer_type": ["open" if report else "closed" for report in is_report],
        "language": ["en"] * total,
        "file": ["rows.json"] * total,
        "row": list(range(1, total + 1)),
        **{name: [[] for _ in range(total)] for name in ("labels", "notes")},
    }  # fmt: skip
    return Planted(images, samples)


def _change(columns: dict[str, list[Any]], row: int, change: Row) -> None:
    for name, value in change.items():
        columns[name][row] = value


def _of(image: int) -> range:
    return range(PER_IMAGE * image, PER_IMAGE * image + PER_IMAGE)


def _plant_image(planted: Planted, image: int, change: Row, defects: list[Defect]) -> None:
    if name := change.get("id"):
        change = change | {"id": name.format(f"{image}.png")}
        for row in _of(image):
            planted.samples["image_ids"][row] = [change["id"]]
    _change(planted.images, image, change)
    for defect in defects:
        planted.expect(defect, *_of(image))


def _same_id(planted: Planted, one: int, other: int) -> None:
    first, second = PER_IMAGE * one, PER_IMAGE * other + 1
    planted.samples["id"][second] = planted.samples["id"][first]
    planted.expect(_REPEATED_ID, first, second)


def _again(planted: Planted, image: int, _: int) -> None:
    first, second = PER_IMAGE * image, PER_IMAGE * image + 2
    asked = planted.samples["question"][first]
    _change(planted.samples, second, {"question": f"  {asked.upper()}!!", "answers": ["Yes."]})
    planted.expect(_AGAIN, first, second)


def _contested(planted: Planted, image: int, _: int) -> None:
    first, second = PER_IMAGE * image + 1, PER_IMAGE * image + 3
    asked = planted.samples["question"][first]
    _change(planted.samples, second, {"question": asked.lower(), "answers": ["no"]})
    planted.expect(_CONTESTED, first, second)


def _twins(planted: Planted, one: int, other: int) -> None:
    _into(planted, other, planted.samples["split"][PER_IMAGE * one])
    for column in ("pixel_hash", "perceptual_hash"):
        planted.images[column][other] = planted.images[column][one]
    planted.expect(("warning", "same picture under several files"), *_of(one), *_of(other))


def _near(planted: Planted, one: int, other: int) -> None:
    _into(planted, one, "train")
    _into(planted, other, "test")
    look = np.frombuffer(planted.images["perceptual_hash"][one], np.uint8)
    planted.images["perceptual_hash"][other] = (
        np.where(look % 2, look - 1, look + 1).astype(np.uint8).tobytes()
    )
    planted.expect(("warning", "nearly the same picture under another file"), *_of(one), *_of(other))
    planted.expect(("warning", "a nearly equal image is in another split"), *_of(other))


def _leaks_image(planted: Planted, one: int, other: int) -> None:
    row = _pair(planted, one, other)
    planted.samples["image_ids"][row] = [f"image-{one}"]
    kinds = ["image"]
    if row % 2:
        _change(planted.samples, row, {"patient": "someone", "study": "some study"})
    else:  # the sample names no patient, so that the image's counts
        kinds += ["patient", "study"]
    for kind in kinds:
        planted.expect(("warning", f"{kind} is in another split, too"), row)


def _leaks_patient(planted: Planted, one: int, other: int) -> None:
    row = _pair(planted, one, other)
    planted.samples["patient"][row] = f"patient-{one}"
    planted.expect(("warning", "patient is in another split, too"), row)


def _leaks_study(planted: Planted, one: int, other: int) -> None:
    row = _pair(planted, one, other)
    planted.samples["study"][row] = f"study-{one}"
    planted.expect(("warning", "study is in another split, too"), row)


def _leaks_text(planted: Planted, one: int, other: int) -> None:
    _pair(planted, one, other)
    first, second = PER_IMAGE * one + 4, PER_IMAGE * other + 4
    planted.samples["answers"][second] = [planted.samples["answers"][first][0].upper()]
    planted.expect(("warning", "the same text is in another split, word for word"), second)


_LEAKS = (_leaks_image, _leaks_patient, _leaks_study, _leaks_text)


def _into(planted: Planted, image: int, split: str) -> None:
    for row in _of(image):
        planted.samples["split"][row] = split


def _pair(planted: Planted, one: int, other: int) -> int:
    """Put one image into train and the other into test; return a question of the latter."""
    _into(planted, one, "train")
    _into(planted, other, "test")
    return PER_IMAGE * other + other % (PER_IMAGE - 1)
