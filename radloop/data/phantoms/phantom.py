"""One phantom: its findings, its picture, and where each finding can be seen."""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from radloop.data.phantoms.anatomy import Anatomy, Scene
from radloop.data.phantoms.findings import FINDINGS, Mask, Present
from radloop.data.phantoms.imaging_chain import expose


class Stream(IntEnum):
    """Who a phantom is for. Two streams share no phantom, whatever the seeds are.

    The stream, the seed and the index are three 32-bit words of the generator's entropy, so that
    the pre-training of the tiny base can never meet a phantom of a data set, nor training one of
    the test split.
    """

    PRETRAINING = 0
    TRAIN = 1
    VALIDATION = 2
    TEST = 3


_ANATOMY, _NOISE, LANGUAGE = 1, 2, 3  # the fourth word: independent draws of one phantom


def generator(stream: Stream, seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random generator of one phantom and purpose.

    Raises:
        ValueError: `seed` or `index` is not in 0 ... 2**32 - 1.
    """
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**32:  # a longer number would take two words and could meet another phantom
            raise ValueError(f"phantom {name} {value} is not in 0 ... {2**32 - 1}")
    return np.random.default_rng([int(stream), seed, index, purpose])


@dataclass(frozen=True)
class Phantom:
    """A simulated frontal chest radiograph with known findings.

    Attributes:
        stream, seed, index: What it was made from.
        findings: Name to finding, for those that are present, in the order of `FINDINGS`.
        anatomy: The patient's measures, findings included.
        pixels: Grey values, shape (size, size).
        masks: Where each present finding can be seen, shape (size, size).
    """

    stream: Stream
    seed: int
    index: int
    findings: dict[str, Present]
    anatomy: Anatomy
    pixels: NDArray[np.uint8]
    masks: dict[str, Mask]

    @cached_property
    def name(self) -> str:
        return f"phantom-{self.stream.name.lower()}-{self.seed}-{self.index:05d}"

    def png(self) -> bytes:
        """The picture as an 8-bit grey PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def rng(self) -> np.random.Generator:
        """A fresh generator for the texts of this phantom: the same at every call."""
        return generator(self.stream, self.seed, self.index, LANGUAGE)


def make_phantom(stream: Stream, seed: int, index: int, size: int = 96) -> Phantom:
    """Make the phantom of that stream, seed and index; another size shows the same patient.

    Args:
        stream: Which of the disjoint streams it belongs to.
        seed: 0 ... 2**32 - 1.
        index: Number of the phantom in its stream, 0 ... 2**32 - 1.
        size: Edge in pixels.
    """
    rng = generator(stream, seed, index, _ANATOMY)
    anatomy = Anatomy.sample(rng)
    findings: list[Present] = []
    for finding in FINDINGS.values():
        if rng.random() < finding.probability:
            present = finding.place(rng, anatomy, findings)
            if present is not None:
                findings.append(present)
                anatomy = finding.alter(anatomy, present)
    scene = Scene(anatomy, size)
    noise = generator(stream, seed, index, _NOISE)
    masks = {present.name: FINDINGS[present.name].draw(scene, present, noise) for present in findings}
    pixels = expose(scene.attenuation(), noise)
    return Phantom(stream, seed, index, {p.name: p for p in findings}, anatomy, pixels, masks)
