"""Phantom patients with their studies: the same people in every layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from radloop.data.phantoms.phantom import Phantom, Stream, make_phantom

STREAMS = {"train": Stream.TRAIN, "validation": Stream.VALIDATION, "test": Stream.TEST}
_STUDIES_PER_PATIENT = 2
_FIRST_DAY = datetime(2101, 3, 1, 7, 30)
_STREAM_STEP = 1_000_000  # patients of a split


@dataclass(frozen=True)
class Study:
    """One radiograph of one patient.

    Attributes:
        split: "train", "validation" or "test"; no patient is in two.
        phantom: The picture and its findings.
        number: From 0, unique in the cohort.
        patient_id: As MIMIC numbers subjects: 8 digits that begin with 1.
        study_id: As MIMIC numbers studies: 8 digits that begin with 5.
        time: Of the study; a patient's studies are in order.
    """

    split: str
    phantom: Phantom
    number: int
    patient_id: int
    study_id: int
    time: datetime

    @property
    def sex(self) -> str:
        return "F" if self.patient_id % 2 else "M"

    @property
    def age(self) -> int:
        """Years, 30 to 89."""
        return 30 + self.patient_id * 7 % 60

    @cached_property
    def dicom_id(self) -> str:
        """As MIMIC names images: five groups of eight hexadecimal digits."""
        digits = hashlib.sha256(self.phantom.name.encode()).hexdigest()
        return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


@dataclass(frozen=True)
class Cohort:
    """How many phantoms, which ones, and in what size.

    Attributes:
        train, validation, test: Number of studies; two belong to one patient.
        seed: Another seed, other phantoms.
        size: Edge of the pictures in pixels.
    """

    train: int = 20
    validation: int = 4
    test: int = 8
    seed: int = 0
    size: int = 96

    def studies(self) -> Iterator[Study]:
        """Yield all studies, split by split, the same at every call."""
        number = 0
        for split, count in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            for index in range(count):
                patient = STREAMS[split] * _STREAM_STEP + index // _STUDIES_PER_PATIENT
                yield Study(
                    split=split,
                    phantom=make_phantom(STREAMS[split], self.seed, index, self.size),
                    number=number,
                    patient_id=10_000_000 + patient,
                    study_id=50_000_000 + STREAMS[split] * _STREAM_STEP + index,
                    time=_FIRST_DAY + timedelta(days=number, hours=number % 9),
                )
                number += 1
