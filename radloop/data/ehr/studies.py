"""Studies that a question of EHRXQA chooses by a condition, as "the last study of 2104".

The choice is written in the question's NeuralSQL. That is text from a data file and is never executed: the
few published ways to choose a study are recognised word by word, and what they say is looked up by queries
of our own. Everything else is not understood.

Source: github.com/baeseongsu/ehrxqa: examples in experiment/NeuralSQL/parser/prompt_storage and tests;
slips of spelling in `post_process_sql`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from radloop.data.ehr import choices
from radloop.data.ehr.choices import Choice, Condition, NotUnderstoodError
from radloop.data.ehr.database import Database
from radloop.data.ehr.times import CURRENT_TIME, earlier

_LONGEST, _DEEPEST = 10_000, 4  # characters of a query; choices within choices

_TOKEN = re.compile(r"""\s*('[^']*'|"[^"]*"|[a-z_][\w.]*|[0-9]+|[<>]\s*=|[-+*/()=<>,])""", re.ASCII | re.I)
_QUOTES = str.maketrans("‘’“”", "''\"\"")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"=": operator.eq, "<=": operator.le, ">=": operator.ge}
# What strftime cuts out of "2105-12-31 23:59:00". Queries were put into lower case, and "%Y" with them.
_PARTS = {
    "'%Y'": (0, 4), "'%Y-%m'": (0, 7), "'%Y-%m-%d'": (0, 10), "'%m-%d'": (5, 10), "'%m'": (5, 7),
    "'%d'": (8, 10), "'%y'": (0, 4), "'%y-%m'": (0, 7), "'%y-%m-%d'": (0, 10),
}  # fmt: skip
_UNITS = {"year": 4, "month": 7, "day": 10}  # characters of such a time that tell it


def chosen_studies(query: str, database: Database) -> list[int] | None:
    """Return the studies whose images a query asks about, oldest first.

    Args:
        query: NeuralSQL with calls of `func_vqa`; any text.
        database: Its TB_CXR and ADMISSIONS are looked up.

    Returns:
        STUDY_IDs, one for each choice; fewer where no study fits. None where the query is not understood,
        asks about all studies that fit, or leaves open which is the first or last of them.

    Raises:
        DataError: The database is damaged.
    """
    try:
        tokens = _tokens(query)
        reader = _Reader(tokens)
        meant = [reader.named(alias) for alias in _asked(tokens)]
        if not all(choice.single for choice in meant):
            return None
        tables = choices.look_up(database, reader.patients, reader.studies)
        found = {study.number: str(study.time) for choice in meant for study in choice.of(tables)}
    except NotUnderstoodError:
        return None
    return sorted(found, key=lambda number: (found[number], number))


def _tokens(query: str) -> list[str]:
    if len(query) > _LONGEST:
        raise NotUnderstoodError
    text = query.translate(_QUOTES).replace("''", "'").strip()
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotUnderstoodError
        at = match.end()
        quoted = match[1][0] in "'\""
        tokens.append(match[1] if quoted else "".join(match[1].lower().split()))
    return tokens


def _asked(tokens: list[str]) -> list[str]:
    """The aliases of the choices whose images are asked."""
    aliases = []
    for at, word in enumerate(tokens):
        if word == "func_vqa":
            call = tokens[at + 1 : at + 6]
            if [call[0:1], call[2:3], call[4:]] != [["("], [","], [")"]] or call[1][0] not in "'\"":
                raise NotUnderstoodError
            aliases.append(call[3].removesuffix(".study_id"))
    if not aliases or not all(re.fullmatch("t[0-9]", alias) for alias in aliases):
        raise NotUnderstoodError
    return list(dict.fromkeys(aliases))


class _Reader:
    """Reads choices out of a query, and collects the patients and studies that they name."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.patients: set[int] = set()
        self.studies: set[int] = set()

    def named(self, alias: str) -> Choice:
        """Return the choice in "from ( ... ) as ALIAS", which must be there exactly once."""
        opened: list[int] = []
        starts = []
        for at, word in enumerate(self.tokens):
            if word == "(":
                opened.append(at)
            elif word == ")":
                start = opened.pop() if opened else 0
                if self.tokens[at + 1 : at + 3] == ["as", alias]:
                    starts.append(start)
        if len(starts) != 1 or starts[0] == 0:
            raise NotUnderstoodError
        self.at = starts[0] - 1
        self._expect("from (")
        choice = self._choice()
        self._expect(f") as {alias}")
        return choice

    def _choice(self) -> Choice:
        self.depth += 1
        self._expect("select")
        self._accept("distinct")
        self._expect("tb_cxr.study_id")
        self._accept(", tb_cxr.studydatetime")
        self._expect("from tb_cxr where")
        conditions = [self._condition()]
        while self._accept("and"):
            conditions.append(self._condition())
        last = self._order("tb_cxr.studydatetime")
        # What is bound to nobody is chosen among all patients.
        if not any(condition.bound for condition in conditions):
            raise NotUnderstoodError
        self.depth -= 1
        return Choice(tuple(conditions), last)

    def _condition(self) -> Condition:
        if self._accept("tb_cxr.subject_id ="):
            return choices.of_patient(self._patient())
        if self._accept("tb_cxr.study_id"):
            return self._one_of_studies()
        if self._accept("tb_cxr.hadm_id in ("):
            return self._admissions()
        if self._accept("tb_cxr.studydatetime < ( select"):
            return self._before()
        if self._accept("strftime ("):
            return self._part_of_time()
        self._expect("datetime ( tb_cxr.studydatetime")
        return self._relative_time()

    def _one_of_studies(self) -> Condition:
        if self._accept("="):
            study = self._number()
            self.studies.add(study)
            return choices.of_number(study)
        if self.depth >= _DEEPEST:
            raise NotUnderstoodError
        self._expect("in (")
        choice = self._choice()
        self._expect(")")
        return choices.of_choice(choice)

    def _admissions(self) -> Condition:
        self._expect("select admissions.hadm_id from admissions where admissions.subject_id =")
        patient, ended = self._patient(), None
        if self._accept("and admissions.dischtime is"):
            ended = self._accept("not")
            self._expect("null")
        last = self._order("admissions.admittime")
        self._expect(")")
        return choices.of_admission(patient, ended, last)

    def _before(self) -> Condition:
        self._accept("distinct")
        self._expect("tb_cxr.studydatetime from tb_cxr where tb_cxr.study_id")
        other = self._one_of_studies()
        self._expect(")")
        if not other.single:
            raise NotUnderstoodError
        return choices.before(other)

    def _part_of_time(self) -> Condition:
        start, end = _PARTS.get(self._next(), (0, 0))
        self._expect(", tb_cxr.studydatetime )")
        compare, value = self._compare(), self._next()[1:-1]
        if len(value) != end - start or not re.fullmatch("[0-9-]+", value):
            raise NotUnderstoodError
        return choices.timed(lambda time: compare(str(time)[start:end], value))

    def _relative_time(self) -> Condition:
        """Counted back from when EHRXQA asks: "last year", "since 6 months ago"."""
        whole = next((unit for unit in _UNITS if self._accept(f", 'start of {unit}'")), None)
        self._expect(")")
        compare = self._compare()
        self._expect("datetime ( current_time")
        if whole:
            self._expect(f", 'start of {whole}'")
        self._expect(",")
        match = re.fullmatch("'-([0-9]{1,3}) (year|month|day)'", self._next())
        self._expect(")")
        if match is None or whole not in (None, match[2]):
            raise NotUnderstoodError
        now = CURRENT_TIME if whole in (None, "day") else CURRENT_TIME.replace(day=1)
        limit = earlier(now, int(match[1]), match[2])
        if whole is None:
            return choices.timed(lambda time: compare(time, limit))
        length = _UNITS[whole]
        return choices.timed(lambda time: compare(str(time)[:length], str(limit)[:length]))

    def _order(self, column: str) -> bool | None:
        if not self._accept(f"order by {column}"):
            return None
        last = self._accept("desc")
        if not last:
            self._accept("asc")
        self._expect("limit 1")
        return last

    def _patient(self) -> int:
        patient = self._number()
        self.patients.add(patient)
        return patient

    def _number(self) -> int:
        word = self._next()
        if not re.fullmatch("[0-9]{1,18}", word):
            raise NotUnderstoodError
        return int(word)

    def _compare(self) -> Callable[[Any, Any], bool]:
        word = self._next()
        if word not in _COMPARE:
            raise NotUnderstoodError
        return _COMPARE[word]

    def _next(self) -> str:
        if self.at >= len(self.tokens):
            raise NotUnderstoodError
        self.at += 1
        return self.tokens[self.at - 1]

    def _accept(self, words: str) -> bool:
        expected = re.findall(r"'[^']*'|\S+", words)
        fits = self.tokens[self.at : self.at + len(expected)] == expected
        self.at += len(expected) if fits else 0
        return fits

    def _expect(self, words: str) -> None:
        if not self._accept(words):
            raise NotUnderstoodError
