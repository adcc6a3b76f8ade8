"""The 19 tables of EHRXQA's database: MIMIC-IV in the names and types of EHRSQL, and two for radiographs."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

_TYPES = {
    "INT": "INT",
    "TIME": "TIMESTAMP(0)",
    "REAL": "DOUBLE PRECISION",
    "T5": "VARCHAR(5)",
    "T10": "VARCHAR(10)",
    "T20": "VARCHAR(20)",
    "T50": "VARCHAR(50)",
    "T100": "VARCHAR(100)",
    "T200": "VARCHAR(200)",
    "T255": "VARCHAR(255)",
}
_ADMITTED = "SUBJECT_ID INT!, HADM_ID INT!"
_STAYED = f"{_ADMITTED}, STAY_ID INT!"
# The published tables declare IMAGE_ID a number, though it holds text.
_STUDY = (
    "SUBJECT_ID INT!, HADM_ID INT, STUDY_ID INT!, IMAGE_ID INT!, STUDYDATETIME TIME!, VIEWPOSITION T20!, "
    "STUDYORDER INT!"
)
# Every table begins with ROW_ID, its key; "!" stands for NOT NULL, "#" for a key of its own.
_COLUMNS = {
    "PATIENTS": "SUBJECT_ID INT!#, GENDER T5!, DOB TIME!, DOD TIME",
    "ADMISSIONS": "SUBJECT_ID INT!, HADM_ID INT!#, ADMITTIME TIME!, DISCHTIME TIME, ADMISSION_TYPE T50!, "
    "ADMISSION_LOCATION T50!, DISCHARGE_LOCATION T50, INSURANCE T255!, LANGUAGE T10, "
    "MARITAL_STATUS T50, AGE INT!",
    "D_ICD_DIAGNOSES": "ICD_CODE T10!#, LONG_TITLE T255!",
    "D_ICD_PROCEDURES": "ICD_CODE T10!#, LONG_TITLE T255!",
    "D_LABITEMS": "ITEMID INT!#, LABEL T200",
    "D_ITEMS": "ITEMID INT!#, LABEL T200!, ABBREVIATION T200!, LINKSTO T50!",
    "DIAGNOSES_ICD": f"{_ADMITTED}, ICD_CODE T10!, CHARTTIME TIME!",
    "PROCEDURES_ICD": f"{_ADMITTED}, ICD_CODE T10!, CHARTTIME TIME!",
    "LABEVENTS": f"{_ADMITTED}, ITEMID INT!, CHARTTIME TIME, VALUENUM REAL, VALUEUOM T20",
    "PRESCRIPTIONS": f"{_ADMITTED}, STARTTIME TIME!, STOPTIME TIME, DRUG T255!, DOSE_VAL_RX T100!, "
    "DOSE_UNIT_RX T50!, ROUTE T50!",
    "COST": f"{_ADMITTED}, EVENT_TYPE T20!, EVENT_ID INT!, CHARGETIME TIME!, COST REAL!",
    "CHARTEVENTS": f"{_STAYED}, ITEMID INT!, CHARTTIME TIME!, VALUENUM REAL, VALUEUOM T50",
    "INPUTEVENTS": f"{_STAYED}, STARTTIME TIME!, ITEMID INT!, AMOUNT REAL",
    "OUTPUTEVENTS": f"{_STAYED}, CHARTTIME TIME!, ITEMID INT!, VALUE REAL",
    "MICROBIOLOGYEVENTS": f"{_ADMITTED}, CHARTTIME TIME!, SPEC_TYPE_DESC T100, TEST_NAME T100, ORG_NAME T100",
    "ICUSTAYS": f"{_ADMITTED}, STAY_ID INT!#, FIRST_CAREUNIT T20!, LAST_CAREUNIT T20!, "
    "INTIME TIME!, OUTTIME TIME",
    "TRANSFERS": f"{_ADMITTED}, TRANSFER_ID INT!, EVENTTYPE T20!, CAREUNIT T20, INTIME TIME!, OUTTIME TIME",
    "TB_CXR_PLUS": f"{_STUDY}, OBJECT T100!, ATTRIBUTE T100!, CATEGORY T100!, RELATION INT!, CT_RATIO REAL, "
    "MT_RATIO REAL",
    "TB_CXR": _STUDY,
}


def statements() -> str:
    """SQL that makes the empty tables, as the file mimic_iv_cxr.sqlite beside each database holds it."""
    return "\n\n".join(f"DROP TABLE IF EXISTS {name};\n{_create(name)}" for name in _COLUMNS) + "\n"


def _create(name: str) -> str:
    lines = ["ROW_ID INT NOT NULL"]
    for column in _COLUMNS[name].split(", "):
        title, kind = column.split(" ")
        unique = " UNIQUE" if "#" in kind else ""
        lines.append(f"{title} {_TYPES[kind.rstrip('!#')]}{' NOT NULL' if '!' in kind else ''}{unique}")
    lines.append("PRIMARY KEY (ROW_ID)")
    return f"CREATE TABLE {name}\n(\n    " + ",\n    ".join(lines) + "\n);"


class Tables:
    """Rows of all tables on their way into a database."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _COLUMNS}

    def add(self, table: str, *values: Any) -> int:
        """Append a row, its columns in order, and return its ROW_ID."""
        number = len(self.rows[table])
        self.rows[table].append((number, *(str(v) if hasattr(v, "isoformat") else v for v in values)))
        return number

    def write(self, path: Path) -> None:
        """Write the database, and beside it the SQL of its tables and TB_CXR as CSV."""
        path.parent.mkdir(parents=True)
        path.with_suffix(".sqlite").write_text(statements())
        connection = sqlite3.connect(path)
        connection.executescript(statements())
        for table, rows in self.rows.items():
            places = ", ".join("?" for _ in (rows or [()])[0])
            if rows:
                connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)  # noqa: S608 - our names
        connection.commit()
        connection.close()
