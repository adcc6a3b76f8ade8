"""Questions about phantom patients as EHRXQA words them; the answers are asked of the database."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from radloop.data.phantoms.formats import _ehr_templates as ask
from radloop.data.phantoms.formats._cohort import Study
from radloop.data.phantoms.formats._ehr_patients import CLINIC, LABS, Clinic, places

_Asked = tuple[ask.Template, dict[str, Any]]
_VISUAL = ("object", "category", "attribute", "comparison")
_TIMES = ("year", "day")
_TIME_FILTERS = (  # as `t_tag` lists them
    "time_filter_global1", "time_filter_global2", "time_filter_within", "time_filter_exact1",
    "time_filter_exact2",
)  # fmt: skip
_CLINICS_ASKED = 3  # of each patient


def rows_of(studies: Sequence[Study], split: str, database: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """Yield the rows of a question file, with the published keys in their order.

    Args:
        studies: Of one split.
        split: As the file is called: train, valid or test.
        database: Holds the studies' patients.
    """
    asked = list(_about_all(split))
    for _, own in itertools.groupby(studies, key=lambda study: study.patient_id):
        asked += _about_patient(list(own))
    for study in studies:
        asked += _about_study(study)
    for number, (template, values) in enumerate(asked):
        found = [value for (value,) in database.execute(template.gold, values)]
        answers = [round(value, 6) if isinstance(value, float) else value for value in found]
        yield {
            "db_id": "mimic_iv_cxr",
            "split": split,
            "id": number,
            **_row(template, values),
            "answer": answers,
        }


def _about_all(split: str) -> Iterator[_Asked]:
    # Each split asks for other drugs and findings: the same question in two splits would be a leak.
    part = ("train", "valid", "test").index(split)
    for clinic in list(CLINIC.values())[part::3]:
        for template in (ask.ROUTE, ask.COST, ask.COUNT_PRESCRIBED):
            yield template, {"drug_name": clinic.drug[0]}
        for template in (ask.COUNT_SHOWN, ask.LIST_SHOWN, ask.COUNT_AGED):
            yield template, {"attribute": clinic.attribute}


def _about_patient(studies: Sequence[Study]) -> Iterator[_Asked]:
    number = studies[0].patient_id
    patient = {"patient_id": number}
    yield ask.LAB, {"lab_name": list(LABS)[number % len(LABS)]} | patient
    clinics = itertools.islice(itertools.cycle(CLINIC.values()), number % len(CLINIC), None)
    for clinic in itertools.islice(clinics, _CLINICS_ASKED):
        shown = {"attribute": clinic.attribute}
        diagnosis, drug = {"diagnosis_name": clinic.title}, {"drug_name": clinic.drug[0]}
        yield ask.EVER_SHOWN, patient | shown
        yield ask.TIMES_SHOWN, patient | shown
        yield ask.DIAGNOSED, diagnosis | patient
        yield ask.DIAGNOSED_AND_SHOWN, diagnosis | patient | shown
        yield ask.PRESCRIBED, drug | patient
        yield ask.PRESCRIBED_AND_SHOWN, drug | patient | shown
        yield from _chosen(studies, shown | patient, clinic)
        for before, after in itertools.pairwise(studies):
            pair = {"study_id1": after.study_id, "study_id2": before.study_id}
            yield ask.COMPARED, pair | shown | {"comparison": "still present"}


def _chosen(studies: Sequence[Study], asked: dict[str, Any], clinic: Clinic) -> Iterator[_Asked]:
    """About studies that are not named but chosen by their time."""
    first, last = studies[0].time, studies[-1].time
    yield ask.LAST_SHOWS, asked | {"year": f"{last:%Y}"}
    place = clinic.objects[0].format(side="left", zone="upper")
    yield ask.LAST_UNTIL_SHOWS, asked | {"day": f"{first:%Y-%m-%d}", "object": place}  # before the last one
    if len(studies) > 1:
        yield ask.COMPARED_TO_PREVIOUS, asked | {"comparison": "still present"}
        yield ask.FIRST_AND_LAST_COMPARED, asked | {"comparison": "also present"}


def _about_study(study: Study) -> Iterator[_Asked]:
    about = {"study_id": study.study_id}
    for name, clinic in CLINIC.items():
        where = [*places(study, name), clinic.objects[0].format(side="left", zone="upper")]
        yield ask.IN_PLACE, about | {"attribute": clinic.attribute, "object": where[0]}
    for place in ("left lung", "right lung"):
        yield ask.LIST_IN_PLACE, about | {"category": "anatomicalfinding", "object": place}


def _row(template: ask.Template, values: dict[str, Any]) -> dict[str, Any]:
    age = {"nlq": template.age, "sql": "admissions.age between 60 and 69", "type": template.age}
    tag = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], template.tag)
    tag = tag.replace("[age_group]", f"[age_group:{template.age}]")
    for name, chosen in zip(_TIME_FILTERS, template.time, strict=True):
        tag = tag.replace(*((f"[{name}]", f"[{name}:{chosen}]") if chosen else (f" [{name}]", "")))
    text = re.sub(r"\[time_filter_global1:[\w-]+\]", template.period, tag.replace("has_verb", "has"))
    text = re.sub(r"\[\w+:(?:exact-)?(\w+)\]", r"\1", text).format(**values)
    return {
        "question": text,
        "template": text,
        "query": template.query.format(**values),
        "value": {name: value for name, value in values.items() if name not in (*_VISUAL, *_TIMES)},
        "q_tag": template.tag,
        "t_tag": list(template.time),
        "o_tag": {"age_group": age | {"sql_pattern": "[age_group]"}} if template.age else {},
        "v_tag": {name: [values[name]] if name in values else [] for name in _VISUAL[:3]},
        "tag": tag,
        "para_type": "machine",
        "is_impossible": False,
    }
