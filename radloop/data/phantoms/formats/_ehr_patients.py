"""Health records that fit what phantom radiographs show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from radloop.data.phantoms.formats._cohort import Study
from radloop.data.phantoms.formats._ehr_tables import Tables

Range = tuple[float, float]


@dataclass(frozen=True)
class Clinic:
    """What goes with a finding.

    Attributes:
        code, title: ICD-10 diagnosis, as MIMIC writes it.
        attribute, category: Its names in Chest ImaGenome, the source of TB_CXR_PLUS.
        objects: Where it can be, with the finding's values in braces.
        drug: Name, dose, unit, route.
        labs: Test to the values that the finding raises it to.
    """

    code: str
    title: str
    attribute: str
    objects: tuple[str, ...]
    drug: tuple[str, str, str, str]
    category: str = "anatomicalfinding"
    labs: Mapping[str, Range] = field(default_factory=dict)


CLINIC: dict[str, Clinic] = {
    "cardiomegaly": Clinic(
        "i517",
        "cardiomegaly",
        "enlarged cardiac silhouette",
        ("cardiac silhouette",),
        drug=("lisinopril", "10", "mg", "po"),
        labs={"ntprobnp": (1800, 4000)},
    ),
    "pneumothorax": Clinic(
        "j939",
        "pneumothorax, unspecified",
        "pneumothorax",
        ("{side} lung",),
        drug=("morphine sulfate", "2", "mg", "iv"),
    ),
    "pleural effusion": Clinic(
        "j90",
        "pleural effusion, not elsewhere classified",
        "pleural effusion",
        ("{side} lung", "{side} costophrenic angle"),
        drug=("furosemide", "40", "mg", "iv"),
        labs={"ntprobnp": (900, 2500)},
    ),
    "pacemaker": Clinic(
        "z950",
        "presence of cardiac pacemaker",
        "cardiac pacer and wires",
        ("mediastinum",),
        category="device",
        drug=("metoprolol tartrate", "25", "mg", "po"),
    ),
    "consolidation": Clinic(
        "j189",
        "pneumonia, unspecified organism",
        "consolidation",
        ("{side} lung", "{side} {zone} lung zone"),
        drug=("ceftriaxone", "1", "g", "iv"),
        labs={"white blood cells": (13, 19), "c-reactive protein": (60, 180)},
    ),
    "nodules": Clinic(
        "r918",
        "other nonspecific abnormal finding of lung field",
        "mass/nodule (not otherwise specified)",
        ("{side} lung",),
        drug=("acetaminophen", "650", "mg", "po"),
    ),
}
LABS: dict[str, tuple[int, str, Range]] = {  # item id in MIMIC-IV, unit, normal values
    "ntprobnp": (50963, "pg/ml", (40, 220)),
    "white blood cells": (51301, "k/ul", (4.5, 9.5)),
    "c-reactive protein": (50889, "mg/l", (0.4, 4.5)),
    "creatinine": (50912, "mg/dl", (0.6, 1.1)),
    "hemoglobin": (51222, "g/dl", (11.5, 15.5)),
}
_ASPIRIN = ("aspirin", "81", "mg", "po")  # for everybody
_DRAINAGE = ("3404", "insertion of intercostal catheter for drainage")
_ITEMS = {
    "chartevents": (220045, "heart rate", "hr"),
    "inputevents": (225158, "nacl 0.9%", "nacl 0.9%"),
    "outputevents": (226588, "chest tube", "chest tube"),
}
_ZONES = {"upper": "upper", "middle": "mid", "lower": "lower"}


def fill_labels(tables: Tables) -> None:
    """Add what all patients share: the names of codes and items."""
    for clinic in CLINIC.values():
        tables.add("D_ICD_DIAGNOSES", clinic.code, clinic.title)
    tables.add("D_ICD_PROCEDURES", *_DRAINAGE)
    for label, (item, _, _) in LABS.items():
        tables.add("D_LABITEMS", item, label)
    for links_to, (item, label, short) in _ITEMS.items():
        tables.add("D_ITEMS", item, label, short, links_to)


def fill_patient(tables: Tables, studies: Sequence[Study]) -> None:
    """Add a patient: an admission around each radiograph, with rows before and after it."""
    first = studies[0]
    birth = datetime(first.time.year - first.age, 1, 2)
    tables.add("PATIENTS", first.patient_id, first.sex.lower(), birth, None)
    for order, study in enumerate(studies, 1):
        _Admission(tables, study, order).fill()


def places(study: Study, finding: str) -> list[str]:
    """The objects in which TB_CXR_PLUS has the finding; [] where it is absent."""
    if finding not in study.phantom.findings:
        return []
    values = study.phantom.findings[finding].values
    values = values | {"zone": _ZONES.get(values.get("zone", ""), "")}
    return [place.format(**values) for place in CLINIC[finding].objects]


class _Admission:
    """From six hours before the radiograph to eight hours after it, so that two never overlap."""

    def __init__(self, tables: Tables, study: Study, order: int) -> None:
        self.tables, self.study, self.order = tables, study, order
        self.start, self.end = study.time - timedelta(hours=6), study.time + timedelta(hours=8)
        self.ids = (study.patient_id, study.study_id - 30_000_000)  # 2xxxxxxx, as MIMIC numbers admissions
        self.found = {name: CLINIC[name] for name in study.phantom.findings if name in CLINIC}
        self.rng = np.random.default_rng([study.patient_id, study.study_id])

    def fill(self) -> None:
        age, married = self.study.age, "married" if self.study.patient_id % 3 else "single"
        self.tables.add(
            "ADMISSIONS", *self.ids, self.start, self.end, "urgent", "emergency room", "home",
            "medicare" if age >= 65 else "other", "english", married, age,
        )  # fmt: skip
        self.tables.add(
            "TRANSFERS", *self.ids, self.ids[1] + 10_000_000, "admit", "medicine", self.start, self.end
        )
        self._diagnoses()
        self._labs()
        self._prescriptions()
        if "consolidation" in self.found:
            culture = ("sputum", "respiratory culture", "streptococcus pneumoniae")
            self.tables.add("MICROBIOLOGYEVENTS", *self.ids, self.study.time, *culture)
        if "pneumothorax" in self.found:
            self._intensive_care()
        self._radiograph()

    def _diagnoses(self) -> None:
        for clinic in self.found.values():
            # EHRXQA dates diagnoses to the beginning of the admission.
            self._charged("DIAGNOSES_ICD", "diagnoses_icd", self.start, 5.0, clinic.code, self.start)

    def _labs(self) -> None:
        for label, (item, unit, normal) in LABS.items():
            low, high = max(
                [normal, *(clinic.labs[label] for clinic in self.found.values() if label in clinic.labs)]
            )
            value = self.rng.uniform(low, high)
            for hours in (1, 5, 12):
                time = self.start + timedelta(hours=hours)
                number = round(value * self.rng.uniform(0.97, 1.03), 1)
                self._charged("LABEVENTS", "labevents", time, 7.5, item, time, number, unit)

    def _prescriptions(self) -> None:
        for drug in dict.fromkeys([_ASPIRIN, *(clinic.drug for clinic in self.found.values())]):
            start = self.study.time + timedelta(hours=1)  # before it, drugs would tell what it shows
            cost = 2.0 + len(drug[0])
            self._charged("PRESCRIPTIONS", "prescriptions", start, cost, start, self.end, *drug)

    def _charged(self, table: str, event: str, time: datetime, cost: float, *values: object) -> None:
        number = self.tables.add(table, *self.ids, *values)
        self.tables.add("COST", *self.ids, event, number, time, cost)

    def _intensive_care(self) -> None:
        stay = (*self.ids, self.ids[1] + 10_000_000)
        after = self.study.time + timedelta(hours=1)
        self._charged("PROCEDURES_ICD", "procedures_icd", after, 90.0, _DRAINAGE[0], self.start)
        self.tables.add("ICUSTAYS", *stay, "sicu", "sicu", after, self.end)
        self.tables.add(
            "CHARTEVENTS", *stay, _ITEMS["chartevents"][0], after, float(self.rng.integers(80, 120)), "bpm"
        )
        self.tables.add("INPUTEVENTS", *stay, after, _ITEMS["inputevents"][0], 500.0)
        self.tables.add(
            "OUTPUTEVENTS", *stay, after, _ITEMS["outputevents"][0], float(self.rng.integers(50, 300))
        )

    def _radiograph(self) -> None:
        study = self.study
        row = (*self.ids, study.study_id, study.dicom_id, study.time, "PA", self.order)
        self.tables.add("TB_CXR", *row)
        ratio = round(study.phantom.anatomy.heart_ratio, 4)
        for name, clinic in CLINIC.items():
            here = places(study, name)
            for place in dict.fromkeys([*here, *_all_places(clinic)]):
                about = (place, clinic.attribute, clinic.category, int(place in here))
                self.tables.add("TB_CXR_PLUS", *row, *about, ratio, None)


def _all_places(clinic: Clinic) -> list[str]:
    return [
        place.format(side=side, zone=zone)
        for place in clinic.objects
        for side in ("left", "right")
        for zone in _ZONES.values()
    ]
