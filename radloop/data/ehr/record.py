"""What the tables say of one patient at one moment, and nothing of what came after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from radloop.data.ehr.context import Entry, compose, estimate_tokens
from radloop.data.ehr.database import Database, Row
from radloop.data.ehr.studies import chosen_studies
from radloop.data.ehr.times import end_of_day, read_time
from radloop.data.reading import clean_text

_LONGEST_NAME = 80  # characters of a drug, test or diagnosis


@dataclass(frozen=True)
class StudyImage:
    """One image of a chest radiograph, as TB_CXR lists it; unusable fields are None or ""."""

    patient: int
    image: str
    time: datetime | None
    view: str


class Record:
    """Health records of many patients in one database.

    A row counts from the time that it was known at, not from the time that it is about:

    - An admission is known from its beginning; its end, once it has ended.
    - A diagnosis is known when its admission has ended: codes are assigned at discharge. The database
      of EHRXQA dates them to the beginning, which would tell a model the outcome in advance.
    - A prescription is known from its start, and is "ongoing" until its stop time has passed; without
      a stop time it is ongoing as well, so that the word says nothing of the future.
    - A date without a time of day, and the date of death, count from the end of that day.
    - A row without a readable time cannot be proved to be earlier and is left out;
      `unreadable_times` counts them.

    What radiographs show (TB_CXR_PLUS) is the answer to questions about images and never read.

    Args:
        database: SQLite file with the tables of `radloop.data.ehr.database.TABLES`.

    Raises:
        DataError: Also from all methods: not there, not a database, damaged, or without a table or column.
    """

    def __init__(self, database: Path) -> None:
        self._database = Database(database)
        self._last: tuple[int, _Rows] | None = None

    def context(
        self,
        patient: int,
        until: datetime,
        *,
        budget: int = 512,
        question: str = "",
        count_tokens: Callable[[str], int] = estimate_tokens,
    ) -> str:
        """Describe the patient as known at `until`: a line for each kind of row.

        Args:
            patient: SUBJECT_ID.
            until: The moment of the question, without a time zone, as in the tables.
            budget: Most tokens of the text.
            question: Rows whose names share words with it come first.
            count_tokens: The model's own count; the default is an estimate that is rather too high.

        Returns:
            A text for which `count_tokens` gives at most `budget`; "" for a patient who is not in the
            database, or where nothing fits.
        """
        rows = self._read(patient)
        if not rows.patients:
            return ""
        sections = {
            "Admissions": rows.known_admissions(until),
            "Laboratory": rows.known_labs(until),
            "Diagnoses": rows.known_diagnoses(until),
            "Prescriptions": rows.known_prescriptions(until),
            "Earlier chest radiographs": rows.known_studies(until),
        }
        return compose(
            rows.person(until), sections, question=question, budget=budget, count_tokens=count_tokens
        )

    def unreadable_times(self, patient: int) -> int:
        """Count the patient's rows that no context shows, since nothing tells when they were known."""
        return self._read(patient).unreadable

    def images_of(self, study: int) -> list[StudyImage]:
        """Return the images of a study, [] for an unknown one."""
        return [
            StudyImage(patient, _text(image), read_time(time), _text(view).upper())
            for patient, _, image, time, view, _ in self._database.of_study(study)
            if isinstance(patient, int)
        ]

    def chosen_by(self, query: str) -> list[int] | None:
        """Return the studies that a query of EHRXQA chooses by a condition; see `chosen_studies`."""
        return chosen_studies(query, self._database)

    def _read(self, patient: int) -> _Rows:
        # A patient's questions usually follow each other.
        if self._last is None or self._last[0] != patient:
            self._last = patient, _Rows.read(self._database, patient, self._labs, self._diagnoses)
        return self._last[1]

    @cached_property
    def _labs(self) -> dict[str, str]:
        return {str(item): _text(label) for item, label in self._database.all("D_LABITEMS")}

    @cached_property
    def _diagnoses(self) -> dict[str, str]:
        return {str(code): _text(title) for code, title in self._database.all("D_ICD_DIAGNOSES")}


@dataclass
class _Rows:
    """All rows of one patient; the `known_` methods look at those until a moment only."""

    patients: list[Row]
    admissions: list[tuple[datetime, datetime | None, Row]] = field(default_factory=list)
    diagnoses: list[tuple[datetime, str]] = field(default_factory=list)
    labs: dict[str, list[tuple[datetime, float | None, str]]] = field(default_factory=dict)
    prescriptions: dict[str, list[tuple[datetime, datetime | None, str]]] = field(default_factory=dict)
    studies: list[tuple[datetime, str]] = field(default_factory=list)
    unreadable: int = 0

    @classmethod
    def read(cls, database: Database, patient: int, labs: dict[str, str], diagnoses: dict[str, str]) -> _Rows:
        rows = cls(database.of_patient("PATIENTS", patient))
        ends = rows._read_admissions(database.of_patient("ADMISSIONS", patient))
        for _, admission, code, charted in database.of_patient("DIAGNOSES_ICD", patient):
            rows._read_diagnosis(ends, str(admission), diagnoses.get(str(code)) or _text(code), charted)
        for _, item, charted, number, unit in database.of_patient("LABEVENTS", patient):
            if time := rows._time(charted):
                name = labs.get(str(item)) or _text(item)
                rows.labs.setdefault(name, []).append((time, _number(number), _text(unit)))
        for _, start, stop, drug, dose, dose_unit, route in database.of_patient("PRESCRIPTIONS", patient):
            if time := rows._time(start):
                how = " ".join(filter(None, map(_text, (drug, dose, dose_unit, route))))
                rows.prescriptions.setdefault(_text(drug), []).append((time, read_time(stop), how))
        for _, _, _, taken, view, _ in database.of_patient("TB_CXR", patient):
            if time := rows._time(taken):
                rows.studies.append((time, _text(view).upper()))
        return rows

    def _read_admissions(self, found: list[Row]) -> dict[str, datetime | None]:
        """Keep the admissions and return when each has ended, None for those that have not."""
        ends: dict[str, datetime | None] = {}
        for row in found:
            time, end = self._time(row[2]), read_time(row[3])
            # Some end before they begin.
            ends[str(row[1])] = max(time, end) if time and end else end
            if time:
                self.admissions.append((time, end, row))
        return ends

    def _read_diagnosis(
        self, ends: dict[str, datetime | None], admission: str, name: str, charted: Any
    ) -> None:
        time = self._time(charted)
        if time and admission not in ends:
            self.unreadable += 1
        elif time and (end := ends[admission]):
            self.diagnoses.append((max(time, end), name))

    def _time(self, value: Any) -> datetime | None:
        time = read_time(value)
        self.unreadable += time is None
        return time

    def person(self, until: datetime) -> str:
        """Sex, age and what the newest admission says."""
        _, gender, born, died = self.patients[0]
        parts = [_text(gender).upper()]
        if (birth := read_time(born)) and birth <= until:
            had_birthday = (until.month, until.day) >= (birth.month, birth.day)
            parts.append(f"{until.year - birth.year - (not had_birthday)} years")
        # Of several that began at one time, any, but one that is the same whatever they say of later.
        known = [(time, [_text(row[column]) for column in (7, 5, 6)]) for time, _, row in self.admissions]
        known = [(time, texts) for time, texts in known if time <= until]
        parts += max(known)[1] if known else []
        if (death := read_time(died)) and end_of_day(death) <= until:
            parts.append(f"died {death:%Y-%m-%d}")
        return "Patient: " + ", ".join(filter(None, parts))

    def known_admissions(self, until: datetime) -> list[Entry]:
        return [
            Entry(start, f"{_text(row[4])} {_span(start, end, until)}".strip())
            for start, end, row in self.admissions
            if start <= until
        ]

    def known_diagnoses(self, until: datetime) -> list[Entry]:
        newest: dict[str, datetime] = {}
        for time, name in self.diagnoses:
            if time <= until:
                newest[name] = max(time, newest.get(name, time))
        return [Entry(time, f"{name} ({time:%Y-%m-%d})", name) for name, time in newest.items()]

    def known_labs(self, until: datetime) -> list[Entry]:
        """The last value of each test, how it has changed, and how often it was measured."""
        entries = []
        for name, values in self.labs.items():
            known = sorted(
                (value for value in values if value[0] <= until), key=lambda value: (value[0], str(value))
            )
            if known:
                time, number, unit = known[-1]
                text = f"{name} {'no number' if number is None else f'{number:g} {unit}'.strip()}"
                entries.append(Entry(time, f"{text} ({time:%Y-%m-%d %H:%M}{_trend(known)})", name))
        return entries

    def known_prescriptions(self, until: datetime) -> list[Entry]:
        """The newest prescription of each drug."""
        entries = []
        for name, values in self.prescriptions.items():
            known = [(start, end, how) for start, end, how in values if start <= until]
            if known:
                start, end, how = max(known, key=lambda value: (value[0], _ended(value[1], until), value[2]))
                ongoing = "" if _ended(end, until) else ", ongoing"
                entries.append(Entry(start, f"{how} ({_span(start, end, until)}{ongoing})", name))
        return entries

    def known_studies(self, until: datetime) -> list[Entry]:
        # The one of this very moment is what the question is about.
        return [
            Entry(time, f"{time:%Y-%m-%d %H:%M} {view}".strip())
            for time, view in sorted(set(self.studies))
            if time < until
        ]


def _ended(end: datetime | None, until: datetime) -> bool:
    return end is not None and end <= until


def _span(start: datetime, end: datetime | None, until: datetime) -> str:
    if end is not None and end <= until:
        return f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
    return f"since {start:%Y-%m-%d}"


def _trend(known: list[tuple[datetime, float | None, str]]) -> str:
    if len(known) < 2:
        return ""
    (_, before, old_unit), (_, now, unit) = known[-2:]
    if before is None or now is None or unit != old_unit:
        return f", n {len(known)}"
    change = "same as before" if now == before else f"{'up' if now > before else 'down'} from {before:g}"
    return f", {change}, n {len(known)}"


@lru_cache(maxsize=4096, typed=True)  # a few units and names make up most of a table
def _text(value: Any) -> str:
    return clean_text(value, "", [])[:_LONGEST_NAME].strip()


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
