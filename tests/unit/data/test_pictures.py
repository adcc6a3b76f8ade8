from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.data.corpus import IMAGES, Corpus
from radloop.data.pictures import near_groups_of, pictures_of
from tests.unit.data.small import image, noise, phantom

POOL = [
    image(f"{base}{form}{size}", phantom(base, form, size))
    for base in range(3)
    for form, size in (("PNG", 128), ("TIFF", 128), ("PNG", 80), ("JPEG", 128))
]
BASE = {row["id"]: number // 4 for number, row in enumerate(POOL)}


def table(*rows: dict[str, object]) -> pa.Table:
    return Corpus.of(list(rows), []).images


@settings(max_examples=30)
@given(st.permutations(POOL), st.integers(0, len(POOL)))
def test_pictures_are_those_the_images_were_made_from(rows: list[dict[str, object]], count: int) -> None:
    pictures = pictures_of(table(*rows[:count]))
    ids = [str(row["id"]) for row in rows[:count]]
    assert pictures == {one: min(other for other in ids if BASE[other] == BASE[one]) for one in ids}


def test_an_image_alone_is_its_own_picture_and_in_no_group() -> None:
    rows = [image("a", noise(1)), image("b", None), image("c", b"broken"), image("d", None)]
    assert near_groups_of(table(*rows)).tolist() == [-1] * 4
    assert pictures_of(table(*rows)) == {row["id"]: row["id"] for row in rows}


def test_blank_images_are_not_all_the_same_picture() -> None:
    look = image("x", phantom(0))["perceptual_hash"]
    rows = [image(name, noise(n), blank=True, perceptual_hash=look) for n, name in enumerate("ab")]
    assert near_groups_of(table(*rows)).tolist() == [-1, -1]
    assert len(set(pictures_of(table(*rows)).values())) == 2


def test_pictures_join_through_pixels_and_looks_in_any_order() -> None:
    look = image("x", phantom(0))["perceptual_hash"]
    rows = [
        {"id": "c", "pixel_hash": "1"},
        {"id": "b", "pixel_hash": "2", "perceptual_hash": look},
        {"id": "a", "pixel_hash": "1", "perceptual_hash": look},
        {"id": "d", "pixel_hash": "3"},
    ]
    assert pictures_of(table(*rows)) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_no_images_are_no_pictures() -> None:
    assert pictures_of(IMAGES.empty_table()) == {}
    assert near_groups_of(IMAGES.empty_table()).tolist() == []
