"""Identifiers in the text of English radiology reports, found by rules and replaced by "___".

Follows the Safe Harbor list of HIPAA: names, dates but for the year, ages over 89, addresses, telephone
and record numbers, e-mail, web and network addresses. Rules see a name by the words around it ("Dr.",
"Patient:", "signed by", "MD"); a bare name in a sentence, a town, a hospital or an employer they do not see.

In other languages numeric dates, numbers, e-mail and web addresses and names after Dr. and Prof. are found;
spelled-out months, other titles and labels are not.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

MARK = "___"  # as in MIMIC-CXR

_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_TWO_DIGITS = r"(?:[0-2]\d|3[01])"
_MONTH_NUMBER = r"(?:0?[1-9]|1[0-2])"
_YEAR = r"(?:19|20)\d\d"
# "may" and "mar" are also other words: those need their capital.
_MONTH = (
    r"(?:(?i:jan(?:uary)?|feb(?:ruary)?|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)|Mar(?:ch)?|MAR(?:CH)?|May|MAY)\b\.?"
)
_MONTH_ALONE = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December|JANUARY|FEBRUARY"
    r"|APRIL|JUNE|JULY|AUGUST|SEPTEMBER|OCTOBER|NOVEMBER|DECEMBER)\b"
)
_AT_TIME = (
    r"(?:,?[ T]?(?:\s?(?i:at|@)\s)?\s?\d{1,2}[:.]\d\d(?::\d\d)?(?:\s?(?i:[ap]m\b|[ap]\.m\.|hours|hrs|h\b))?)?"
)
_NO_FRACTION = r"(?![\d/]|\s?(?i:of|ribs?|images?|views?|packs?|cm|mm|vertebra))"

# Words that follow a title or label without being a name, mostly in reports typed in capitals.
_NO_NAME = (
    r"(?!(?i:and|are|as|at|by|cc|chest|comparison|conclusion|ct|date|department|did|dr|ed|emergency|er|exam"
    r"|examination|f|female|findings|for|from|had|has|he|history|icu|impression|in|indication|is|it|m|male|md|mri?"
    r"|n/?a|no|none|not|of|on|or|patient|pacs|per|phone|physician|prof|pt|regarding|report|service|she|study|surgery"
    r"|team|technique|telephone|that|the|there|they|this|to|unknown|via|was|we|were|who|will|with|x+)\b)"
)
_CAPITAL = "A-ZÀ-ÖØ-Þ"
_WORD = rf"{_NO_NAME}(?:[{_CAPITAL}]\.|(?:[A-Za-z]['’])?[{_CAPITAL}][\w'’-]{{0,30}})"
_PARTICLE = r"(?:(?:van|von|de|der|den|di|da|del|la|le|el|al|bin|dos)[ ]){0,3}"
_NAME = rf"{_PARTICLE}{_WORD}(?:[ ]{{1,2}}{_PARTICLE}{_WORD}){{0,3}}"
# Goes on in the next line, unless that starts with a label.
_WRAPPED_NAME = rf"{_PARTICLE}{_WORD}(?:(?:[ ]{{1,2}}|[ ]?\n[ ]?(?![^\n]{{0,30}}:)){_PARTICLE}{_WORD}){{0,3}}"
_TWO_NAMES = rf"{_WORD}(?:[ ]{{1,2}}{_PARTICLE}{_WORD}){{1,3}}"
_TITLE = r"(?:(?:Dr|DR|Prof|PROF|Mr|Mrs|Ms)\b\.?[ ]{1,2})?"
_DEGREE = r"(?:M\.?D\b|Ph\.?D\b|D\.O\b|MBBS|FRCR|FACR|R\.?N\b|PA-C|NP\b|RT\(R\))"
_CODE = r"(?=[A-Za-z/-]{0,10}\d)[A-Za-z0-9][A-Za-z0-9/-]{2,30}"
_NUMBER_SIGN = r"\s?(?i:numbers?|no\b\.?|num\b\.?|id\b|#)"
_STATE = (
    r"(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]"
    r"|W[AIVY])"
)
_STREET = (
    r"(?:Street|STREET|St\b\.?|Avenue|AVENUE|Ave\b\.?|Road|ROAD|Rd\b\.?|Boulevard|BOULEVARD|Blvd\b\.?|Lane|LANE"
    r"|Ln\b\.?|Drive|DRIVE|Court|COURT|Way\b|Place\b|Parkway|Highway|Terrace|Square)"
)

# Rules are: kind, what must stand before it and stays, the identifier. All repetitions are bounded, so
# that no text takes more than linear time.
LINKS = (
    ("email", "", r"(?<![\w.+-])[\w.+-]{1,64}+@[\w-]{1,63}+(?:\.[\w-]{1,63}+){1,5}"),
    ("url", "", r"(?i:\bhttps?://|\bwww\.)[^\s<>\"]{1,2000}[^\s<>\".,;:)]"),
    (
        "url",
        "",
        r"(?<![\w.-])[A-Za-z][\w-]{1,62}+(?:\.[\w-]{1,63}+){0,3}\.(?:com|org|edu|gov|net)\b(?:/\S{0,200})?",
    ),
)
# What starts with a digit: tried together, so that text without digits is passed over quickly.
NUMERIC = (
    ("uid", "", r"(?<![\w.])\d{1,39}+(?:\.\d{1,39}+){5,20}+"),
    ("ip", "", r"(?<![\w.])(?:(?:1?\d?\d|2[0-4]\d|25[0-5])\.){3}(?:1?\d?\d|2[0-4]\d|25[0-5])(?![\w.]\d)"),
    ("ssn", "", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"),
    (
        "date",
        "",
        rf"(?<![\w./-])(?:{_YEAR}(?P<iso>[-/.])\d{{1,2}}(?P=iso){_DAY}{_AT_TIME}(?!\d)"
        rf"|{_DAY}(?P<long>[-/.]){_DAY}(?P=long){_YEAR}{_AT_TIME}(?![\d/])"
        rf"|{_DAY}/{_DAY}/\d\d{_AT_TIME}(?![\d/])"
        rf"|(?<![Rr]ibs\s)(?<!RIBS\s){_DAY}-{_DAY}-\d\d(?![\d.-]|\s?(?i:ribs?|mm|cm)\b)"
        rf"|{_TWO_DIGITS}(?P<short>[-.]){_TWO_DIGITS}(?P=short)\d\d{_AT_TIME}(?![\d.]\d|[-\d])"
        rf"|{_MONTH_NUMBER}/{_YEAR}(?![\d/])"
        rf"|{_DAY}(?:st|nd|rd|th)?(?:\sof)?[\s.-]{{0,3}}{_MONTH}(?:,?[\s-]?(?:{_YEAR}|['’]?\d\d\b))?{_AT_TIME}(?!\d))",
    ),
    ("age", "", r"\b(?:9\d|1[0-2]\d)(?=[\s-]?(?i:years?[\s-]old|yrs?\b|y/?o\b|y\.\s?o\.|years?\sof\sage))"),
    (
        "phone",
        "",
        r"(?:(?<![\w.-])(?:\+?1[-. ])?(?:\(\d{3}\)\s?|\d{3}[-. ])\d{3}[-. ]\d{4}"
        r"(?:\s?(?i:x|ext\.?)\s?\d{1,6})?(?![\w-])"
        r"|(?<![\w+])\+\d{1,3}(?:[ -]?\(?\d{1,5}\)?){2,6}(?!\d)"
        r"|(?<![\w.-])[2-9]\d\d-\d{4}(?!\s?(?:HU|mm|cm|mL|ms)|[\w-]))",
    ),
    (
        "address",
        "",
        rf"\b\d{{1,5}}\s(?:(?:[A-Z][\w.'’]{{0,20}}|\d{{1,3}}(?:st|nd|rd|th))\s){{1,4}}{_STREET}"
        r"(?:,?\s(?i:apt|suite|unit|ste)\b\.?\s?#?\w{1,6})?(?:,\s[A-Z][\w .]{1,30})?"
        rf"(?:,?\s{_STATE}\b)?(?:\s\d{{5}}(?:-\d{{4}})?\b)?",
    ),
)
WORDED = (
    (
        "date",
        r"\b(?i:on|dated?:?|since|until|date of [a-z]{4,9}:?)\s",
        rf"{_MONTH_NUMBER}/{_DAY}{_AT_TIME}{_NO_FRACTION}",
    ),
    (
        "date",
        r"\b(?i:from|compared\s(?:to|with)|comparison:?|prior|study|exam(?:ination)?|radiographs?|CT|MRI?|x-ray)"
        r"(?:\sof)?\s",
        rf"{_MONTH_NUMBER}/(?:[12]\d|3[01]){_AT_TIME}{_NO_FRACTION}",
    ),
    (
        "date",
        "",
        rf"\b(?=[ADFJMNOSadfjnos]){_MONTH}\s{{1,3}}"
        rf"(?:{_DAY}(?:st|nd|rd|th)?\b(?:,?\s{{1,2}}{_YEAR}|,?\s?['’]\d\d)?{_AT_TIME}(?!\s?(?:mm|cm)\b)"
        rf"|(?:of\s)?{_YEAR})(?!\d)",
    ),
    (
        "date",
        r"\b(?i:in|since|of|last|from|until|early|late|mid|by)[ -]",
        rf"{_MONTH_ALONE}(?!\s(?:be|have|not)\b)",
    ),
    # Clock positions, as of the breast, are whole or half hours up to 12: those are no times of day.
    (
        "time",
        "",
        r"(?<![\w.:/])(?:\d{1,2}(?:[:.]\d\d)?(?::\d\d)?\s?(?i:[ap]m\b|[ap]\.m\.)"
        r"|(?:[01]\d|2[0-3]):?[0-5]\d(?::[0-5]\d)?\s?(?i:hours|hrs|h\b)"
        r"|(?:(?:1[3-9]|2[0-3]):[0-5]\d|[01]\d:(?![03]0)[0-5]\d)(?::[0-5]\d)?(?![\w:]|\.\d))",
    ),
    ("age", r"\b(?i:aged?)\s?(?i:is|of)?:?\s?", r"(?:9\d|1[0-2]\d)\b(?!\s?(?:mm|cm|%|days|weeks|months))"),
    (
        "age",
        "",
        r"\b(?i:ninety|one hundred)(?:[ -](?i:one|two|three|four|five|six|seven|eight|nine))?"
        r"(?=[ -]years?[ -]old)",
    ),
    (
        "phone",
        rf"\b(?i:phone|tel\b\.?|telephone|fax|pager|beeper|mobile|callback)(?:{_NUMBER_SIGN}){{0,2}}\s?[:=]?\s{{0,3}}"
        r"(?:(?i:at|is|on)\s)?",
        r"\(?\d{2,7}\)?(?:[-. /]{1,3}\d{2,7}){0,4}(?!\d)",
    ),
    ("phone", r"\b(?i:ext\b\.?|extension)\s?[:#]?\s?", r"\d{4,6}(?!\d|\s?mm)"),
    (
        "number",
        r"\b(?i:med(?:ical)?\.?\srec(?:ord)?|unit|hospital|acc\b\.?|account|patient|pt\b\.?|FIN|encounter|visit|case"
        r"|order|policy|member|beneficiary|licen[cs]e|certificate|serial|device|chart|record|requisition)\b\.?"
        rf"(?:{_NUMBER_SIGN}){{1,2}}\s?[:=]?\s{{0,3}}(?:is\s)?",
        _CODE,
    ),
    (
        "number",
        rf"\b(?i:MRN|accession|acct|acc(?=:)|SN(?=:)|NPI|UPIN|DEA|CSN)\b\.?(?:{_NUMBER_SIGN}){{0,2}}\s?[:=]?\s{{0,3}}(?:is\s)?",
        _CODE,
    ),
    ("number", "", r"\b[A-Z]{1,3}-?\d{6,40}(?!\w|\.\d)"),
    ("number", "", r"(?<![\w.])\d{6,40}(?!\w|\.\d)"),
    ("address", "", r"\b(?i:P\.?\s?O\.?\sBox)\s\d{1,7}"),
    ("address", "", rf"\b(?=[A-Z])(?:[A-Z][a-z]{{2,20}},\s)?{_STATE}\.?,?\s\d{{5}}(?:-\d{{4}})?\b"),
    ("address", r"\b(?i:zip)(?:\s(?i:code))?:?\s", r"\d{5}(?:-\d{4})?\b"),
    (
        "name",
        r"\b(?:Drs|DRS)\b\.?\s{1,3}",
        rf"{_WRAPPED_NAME}(?:,?\s(?:and|AND|&)\s{_NAME}|,\s{_NAME}){{0,4}}",
    ),
    (
        "name",
        r"\b(?:Dr|Doctor|Prof|Professor|Mr|Mrs|MRS|Ms|Miss|Mx|DR(?=\.)|PROF(?=\.))\b\.?\s{1,3}"
        r"(?:(?:Dr|Prof|med|h\.c)\b\.?\s){0,2}",
        _WRAPPED_NAME,
    ),
    # Elsewhere "MR." and "MS." are the modality or the disease before a full stop.
    ("name", r"(?:^|[.:,]\s|\n)(?:MR|MS)\.\s", _NAME),
    (
        "name",
        r"\b(?i:by|with|to|from|per)\s(?:DR|dr\.?|mr\.|mrs\.?|ms\.)\s",
        rf"{_NO_NAME}[A-Za-z][\w'’-]{{1,30}}",
    ),
    (
        "name",
        r"\b(?i:(?:patient|pt|first|last|full|family|maiden|mother|spouse)(?:['’]s)?(?:\sname)?|name|radiologist"
        r"|resident|fellow|technologist|sonographer|transcriptionist|attending|physician|provider|surgeon|PCP|cc"
        r"|(?:referring|ordering|requesting|attending|reading|primary\scare|interpreting)\s(?:doctor|md|clinician)"
        r"|(?:dictated|transcribed|interpreted|read|reviewed|reported|signed|verified|approved|authenticated"
        rf"|finalized|performed)(?:\sby)?)\s{{0,2}}:[ \t]{{0,8}}{_TITLE}",
        rf"{_NAME}(?:,[ ]?{_NAME})?",
    ),
    (
        "name",
        r"\b(?i:(?:dictated|transcribed|interpreted|reviewed|signed|verified|approved|authenticated|finalized)\sby"
        rf"|(?:referring|ordering|requesting|attending|primary\scare)\s(?:physician|provider))\s{{1,3}}(?:is\s)?{_TITLE}",
        rf"{_NAME}(?:,[ ]?{_NAME})?",
    ),
    (
        "name",
        r"\b(?i:discussed\swith|communicated\s(?:to|with)|spoke\s(?:to|with)|informed|notified|reported\sto"
        r"|called\sto|paged|conveyed\sto|relayed\sto|told\sto)\s"
        r"(?:(?i:nurse|physician assistant|resident|attending)\s)?",
        _TWO_NAMES,
    ),
    ("name", r"\b(?i:nurse)\s", _NAME),
    ("name", "", rf"\b(?=[{_CAPITAL}]){_TWO_NAMES}(?=,\s?{_DEGREE}|\s(?:M\.?D\b|Ph\.?D\b))"),
)


def scrub(text: str) -> tuple[str, Counter[str]]:
    """Replace each identifier by "___".

    Years alone stay, and so do marks of an earlier de-identification ("___", "XXXX").

    Args:
        text: A report or a part of it, in any mix of cases.

    Returns:
        The text, and how many identifiers of each kind were replaced: "name", "date", "time", "age",
        "phone", "number", "address", "email", "url", "ip", "uid", "ssn".

    Source: 45 CFR 164.514(b)(2), the Safe Harbor method.
    """
    found: Counter[str] = Counter()

    def replace(match: re.Match[str]) -> str:
        kind = str(match.lastgroup)
        found[kind] += 1
        return match.string[match.start() : match.start(kind)] + MARK

    for pattern in _patterns():
        text = pattern.sub(replace, text)
    return text, found


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    numeric = rf"(?=[\d(+])(?:{'|'.join(map(_source, NUMERIC))})"
    return tuple(map(re.compile, [*map(_source, LINKS), numeric, *map(_source, WORDED)]))


def _source(rule: tuple[str, str, str]) -> str:
    kind, before, identifier = rule
    return f"{before}(?P<{kind}>{identifier})"
