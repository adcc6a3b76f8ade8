"""Radiology reports: cut into sections, and put together as the text that a model is to write.

Header table and rules: `txt/section_parser.py` of MIT-LCP/mimic-cxr at commit 3190146 (MIT licence), so
that references are those of published results. Four deliberate differences: the misspelling "NDICATION"
is an indication, not an impression; a line of underscores ends a section; a header may follow in the line
below another one; and the indentation of headers does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_VARIANTS: dict[str, tuple[str, ...]] = {
    "preamble": ("preamble",),
    "impression": (
        "impression", "conclusion", "findings and impression", "findings/impression", "findings/ impression",
        "impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion", "imperssion",
        "mpression", "impession",
    ),
    "findings": (
        "findings", "chest, two views", "finding", "findins", "findindgs", "findgings", "findngs",
        "findnings", "finidngs", "reference findings",
    ),
    "comparison": (
        "comparison", "comparisons", "reference exam", "comparison exam", "comparison film", "comparision",
        "comparsion", "comparrison", "comparisions",
    ),
    "indication": (
        "indication", "reason for examination", "reason for exam", "clinical indication", "idication",
        "ndication",
    ),
    "history": ("history", "clinical history", "clinical information", "patient history", "pfi"),
    "examination": ("examination", "exam", "type of examination"),
    "technique": ("technique",),
    "recommendations": ("recommendation(s)", "recommendations", "recommendation"),
    "notification": ("notification",),
    "addendum": ("addendum",),
    "wet read": ("wet read", "wetread"),
    "date": ("date",),
    "comment": ("comment",),
}  # fmt: skip
HEADERS = {variant: name for name, variants in _VARIANTS.items() for variant in variants}

# For headers that the table does not list: a word that they hold, or that they name the whole study.
_MAIN = ("impression", "findings", "history", "comparison", "addendum")
_WHOLE_STUDY = re.compile(
    "chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|"
    "frontal view|pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs"
)
_HEADER = re.compile(r"^[ \t]*([A-Z][A-Z ()/,-]*):", re.MULTILINE)
_TITLE = re.compile(r"^[ \t]*FINAL (?:REPORT|ADDENDUM)[ \t]*$", re.MULTILINE)
_ADDENDUM_END = re.compile(r"^[ \t]*_{20,}[ \t]*$", re.MULTILINE)  # three are a removed name
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_TARGETS = ("findings", "impression")


class ReportOptions(BaseModel):
    """What of a report is learned, and what is given along with the images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Literal["both", "findings", "impression"] = Field(
        "both", description="what to write; both: each section that there is, under its name"
    )
    question: str = Field("Write the report of this study.", min_length=1, description="the instruction")
    context: tuple[Literal["examination", "indication", "history", "technique", "comparison"], ...] = Field(
        (), description="sections that are given beside the images"
    )
    max_images: int | None = Field(
        None, ge=1, description="images that are given of a study, frontal ones first; null: all"
    )

    def answer(self, found: Mapping[str, str]) -> str:
        """Return the text to be written, "" where the report lacks it; `found` is as `sections` gives it."""
        return _under_headers(found, _TARGETS) if self.target == "both" else found.get(self.target, "")

    def given(self, found: Mapping[str, str]) -> str:
        """Return the text that is given beside the images."""
        return _under_headers(found, self.context)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The sections of which one must be there."""
        return _TARGETS if self.target == "both" else (self.target,)

    @property
    def lacking(self) -> str:
        """The reason for leaving out a report without the wanted text."""
        return f"report has no {' or '.join(name.upper() for name in self.wanted)}"


def sections(text: str) -> dict[str, str]:
    """Cut a report into its sections.

    A header is a line's first words in capitals and a colon; variants and misspellings of MIMIC-CXR
    are known, other headers are sections of their own name. Of a section that occurs twice the last
    one with text counts. What stands before the first header is the "preamble", or the "addendum"
    if a line of underscores follows. A report with neither findings nor impression has a "last
    paragraph": all paragraphs but the first of its last section.

    Args:
        text: The report as written, with its line breaks.

    Returns:
        Canonical name in lower case to text in one line; sections without text are not in it.

    Source: Johnson et al., "MIMIC-CXR, a de-identified publicly available database of chest
        radiographs with free-text reports", Scientific Data 6:317 (2019).
    """
    *addenda, report = _ADDENDUM_END.split(re.sub(r"\r\n?", "\n", text))
    parts = [
        ("addendum" if name == "preamble" else name, part) for each in addenda for name, part in _cut(each)
    ]
    parts += _cut(report)
    if not any(name in _TARGETS and part.strip() for name, part in parts):
        parts += _last_paragraph(*parts.pop())
    tidy = ((name, re.sub(r"[\s\x00-\x1f\x7f]+", " ", part).strip()) for name, part in parts)
    return {name: part for name, part in tidy if part}


def _cut(text: str) -> list[tuple[str, str]]:
    text = _TITLE.sub("", text)
    headers = [match for match in _HEADER.finditer(text) if _is_header(match)]
    names = ["preamble", *(_canonical(match[1]) for match in headers)]
    starts = [0, *(match.end() for match in headers)]
    ends = [*(match.start() for match in headers), len(text)]
    return [(name, text[start:end]) for name, start, end in zip(names, starts, ends, strict=True)]


def _is_header(match: re.Match[str]) -> bool:
    return match.string[match.end() : match.end() + 1].strip() == "" or match[1].lower() in HEADERS


def _canonical(header: str) -> str:
    name = " ".join(header.lower().split())
    if name in HEADERS:
        return HEADERS[name]
    main = next((word for word in _MAIN if word in name), "")
    return main or ("findings" if _WHOLE_STUDY.search(name) else name)


def _last_paragraph(name: str, text: str) -> list[tuple[str, str]]:
    first, *rest = _BLANK_LINE.split(text.strip(), maxsplit=1)
    if name == "preamble" and not rest:  # no header at all, and one paragraph
        return [("last paragraph", first)]
    return [(name, first), ("last paragraph", "".join(rest))]


def _under_headers(found: Mapping[str, str], names: Iterable[str]) -> str:
    return "\n".join(f"{name.upper()}: {found[name]}" for name in names if name in found)
