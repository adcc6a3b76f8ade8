"""Conditions on studies, and which studies fit them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from radloop.data.ehr.database import Database
from radloop.data.ehr.times import read_time

_T = TypeVar("_T", "Study", "Admission")


class NotUnderstoodError(Exception):
    """A query is none of the published ones, or what it chooses is left to chance."""


@dataclass(frozen=True)
class Study:
    """A row of TB_CXR, without its image."""

    patient: int
    number: int
    time: datetime | None
    admission: Any


@dataclass(frozen=True)
class Admission:
    """A row of ADMISSIONS."""

    patient: int
    number: Any
    time: datetime | None
    ended: bool


@dataclass(frozen=True)
class Tables:
    """Rows of the patients and studies that a query names; no choice looks beyond them."""

    studies: list[Study]
    admissions: list[Admission]


@dataclass(frozen=True)
class Condition:
    """One term of a choice.

    Attributes:
        keep: Returns those of the studies that fit.
        bound: Whether it keeps studies of named patients only.
        single: Whether it can keep no more than one study.
    """

    keep: Callable[[list[Study], Tables], list[Study]]
    bound: bool = False
    single: bool = False


@dataclass(frozen=True)
class Choice:
    """Conditions, and whether the last (True) or first (False) of the fitting studies is meant, or all."""

    conditions: tuple[Condition, ...]
    last: bool | None

    @property
    def single(self) -> bool:
        return self.last is not None or any(condition.single for condition in self.conditions)

    def of(self, tables: Tables) -> list[Study]:
        found = tables.studies
        for condition in self.conditions:
            found = condition.keep(found, tables)
        return outermost(found, self.last)


def look_up(database: Database, patients: Iterable[int], studies: Iterable[int]) -> Tables:
    """Read what is known of the patients and studies.

    Raises:
        DataError: The database is damaged.
    """
    own = [row for patient in sorted(patients) for row in database.of_patient("TB_CXR", patient)]
    own += [row for study in sorted(studies) for row in database.of_study(study)]
    # A study has a row for each of its images.
    found = dict.fromkeys(
        Study(patient, number, read_time(time), admission)
        for patient, number, _, time, _, admission in own
        if isinstance(patient, int) and isinstance(number, int)
    )
    admissions = [
        Admission(row[0], row[1], read_time(row[2]), row[3] is not None)
        for patient in sorted(patients)
        for row in database.of_patient("ADMISSIONS", patient)
    ]
    return Tables(list(found), admissions)


def outermost(found: list[_T], last: bool | None) -> list[_T]:
    """Return the last or first of studies or admissions, or all for None.

    Raises:
        NotUnderstoodError: Several are the last or first, or one has no time.
    """
    if last is None or not found:
        return found
    times = [one.time for one in found if one.time]
    if len(times) < len(found):
        raise NotUnderstoodError
    best = max(times) if last else min(times)
    best_ones = [one for one in found if one.time == best]
    if len({one.number for one in best_ones}) > 1:
        raise NotUnderstoodError
    return best_ones


def of_patient(patient: int) -> Condition:
    """Of one patient."""
    return Condition(lambda found, _: [study for study in found if study.patient == patient], bound=True)


def of_number(number: int) -> Condition:
    """The one of that STUDY_ID."""
    return Condition(lambda found, _: [study for study in found if study.number == number], True, True)


def of_choice(choice: Choice) -> Condition:
    """Among those of another choice."""

    def keep(found: list[Study], tables: Tables) -> list[Study]:
        numbers = {study.number for study in choice.of(tables)}
        return [study for study in found if study.number in numbers]

    return Condition(keep, bound=True, single=choice.single)


def of_admission(patient: int, ended: bool | None, last: bool | None) -> Condition:
    """Taken during the patient's admissions: all, those that have ended or not, the last or first of them."""

    def keep(found: list[Study], tables: Tables) -> list[Study]:
        meant = [one for one in tables.admissions if one.patient == patient and ended in (None, one.ended)]
        numbers = {one.number for one in outermost(meant, last)} - {None}
        return [study for study in found if study.admission in numbers]

    return Condition(keep, bound=True)


def before(other: Condition) -> Condition:
    """Taken before the one study that fits `other`."""

    def keep(found: list[Study], tables: Tables) -> list[Study]:
        times = [study.time for study in other.keep(tables.studies, tables)]
        limit = times[0] if times else None
        if limit is None or set(times) != {limit}:
            raise NotUnderstoodError
        return [study for study in found if study.time and study.time < limit]

    return Condition(keep)


def timed(fits: Callable[[datetime], bool]) -> Condition:
    """Taken at a time that fits; what has no time does not."""
    return Condition(lambda found, _: [study for study in found if study.time and fits(study.time)])
