"""Read-only access to an SQLite database with tables as MIMIC-IV has them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from radloop.data.reading import some
from radloop.errors import DataError

TABLES: dict[str, tuple[str, ...]] = {
    "PATIENTS": ("SUBJECT_ID", "GENDER", "DOB", "DOD"),
    "ADMISSIONS": ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE", "INSURANCE",
                   "LANGUAGE", "MARITAL_STATUS"),
    "D_ICD_DIAGNOSES": ("ICD_CODE", "LONG_TITLE"),
    "DIAGNOSES_ICD": ("SUBJECT_ID", "HADM_ID", "ICD_CODE", "CHARTTIME"),
    "D_LABITEMS": ("ITEMID", "LABEL"),
    "LABEVENTS": ("SUBJECT_ID", "ITEMID", "CHARTTIME", "VALUENUM", "VALUEUOM"),
    "PRESCRIPTIONS": ("SUBJECT_ID", "STARTTIME", "STOPTIME", "DRUG", "DOSE_VAL_RX", "DOSE_UNIT_RX", "ROUTE"),
    "TB_CXR": ("SUBJECT_ID", "STUDY_ID", "IMAGE_ID", "STUDYDATETIME", "VIEWPOSITION", "HADM_ID"),
}  # fmt: skip
"""What is read: the columns of each table. Tables and columns beyond these may be there."""

Row = tuple[Any, ...]
_HEADER = b"SQLite format 3\0"
_LARGEST_INTEGER = 2**63 - 1


def is_database(path: Path) -> bool:
    """Whether the file begins as SQLite databases do: files called .sqlite may hold SQL text."""
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER


class Database:
    """One connection; not for several threads or for sending to another process.

    The published scripts build tables without an index by patient. Reading a table whole for each
    patient would take hours, so the first use of such a table lists its row numbers by patient in a
    temporary table: on disk, some 20 bytes a row, gone with the connection.

    Args:
        path: An SQLite file. It is opened read-only and never changed.

    Raises:
        DataError: Not there, not a database, or without one of `TABLES` or its columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = is_database(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        if not found:
            raise DataError(
                f"{path}: is no SQLite database; if it holds SQL text, build the database from it first"
            )
        try:
            self._connection = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
        except sqlite3.Error as error:
            raise self._fault(error) from None
        self._connection.isolation_level = None
        # Damaged characters must not stop the reading of a patient.
        self._connection.text_factory = lambda data: data.decode("utf-8", "replace")
        for pragma in ("trusted_schema = OFF", "query_only = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._check()
        self._indexed: dict[str, bool] = {}

    def of_patient(self, table: str, patient: int) -> list[Row]:
        """Return the patient's rows with the columns of `TABLES`, in the order of the file.

        Raises:
            DataError: The file is damaged.
        """
        if not 0 <= patient <= _LARGEST_INTEGER:
            return []
        if self._has_index(table):
            return self._rows(f"{_select(table)} WHERE SUBJECT_ID = ?", patient)
        listed = f"SELECT row_number FROM temp.{table}_BY_PATIENT WHERE patient = ?"  # noqa: S608 - our names
        return self._rows(f"{_select(table)} WHERE rowid IN ({listed})", patient)

    def of_study(self, study: int) -> list[Row]:
        """Return the rows of TB_CXR, one for each image of the study.

        Raises:
            DataError: The file is damaged.
        """
        if not 0 <= study <= _LARGEST_INTEGER:
            return []
        return self._rows(f"{_select('TB_CXR')} WHERE STUDY_ID = ?", study)

    def all(self, table: str) -> list[Row]:
        """Return a table of labels whole.

        Raises:
            DataError: The file is damaged.
        """
        return self._rows(_select(table))

    def _has_index(self, table: str) -> bool:
        if table not in self._indexed:
            indices = [
                row[1] for row in self._rows(f"PRAGMA index_list({table})") if not row[4]
            ]  # not partial
            first = [
                self._rows("SELECT name FROM pragma_index_info(?) WHERE seqno = 0", name) for name in indices
            ]
            self._indexed[table] = any(rows and str(rows[0][0]).upper() == "SUBJECT_ID" for rows in first)
            if not self._indexed[table]:
                self._list_rows(table)
        return self._indexed[table]

    def _list_rows(self, table: str) -> None:
        listed = f"temp.{table}_BY_PATIENT"
        columns = "patient INT, row_number INT, PRIMARY KEY (patient, row_number)"
        rows = f"SELECT SUBJECT_ID, rowid FROM main.{table} WHERE SUBJECT_ID NOTNULL ORDER BY 1, 2"  # noqa: S608
        self._rows("PRAGMA query_only = OFF")  # forbids temporary tables, too; the file stays read-only
        self._rows(f"CREATE TABLE {listed} ({columns}) WITHOUT ROWID")
        self._rows(f"INSERT INTO {listed} {rows}")
        self._rows("PRAGMA query_only = ON")

    def _check(self) -> None:
        tables = {
            str(name).upper() for (name,) in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if missing := [table for table in TABLES if table not in tables]:
            raise DataError(
                f"{self.path}: lacks the tables {some(missing)}; found: {some(sorted(tables)) or 'none'}; "
                "needed are tables as the database of EHRXQA has them"
            )
        for table, columns in TABLES.items():
            there = [str(row[1]).upper() for row in self._rows(f"PRAGMA table_info({table})")]
            if missing := [column for column in columns if column not in there]:
                raise DataError(
                    f"{self.path}: table {table} lacks the columns {some(missing)}; found: {some(there)}"
                )

    def _rows(self, statement: str, *values: int | str) -> list[Row]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._fault(error) from None

    def _fault(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: cannot be read: {error}; was it copied completely, and closed by its writer?"
        )


def _select(table: str) -> str:
    return f"SELECT {', '.join(TABLES[table])} FROM main.{table}"  # noqa: S608 - names of `TABLES` only
