"""Questions, reports and captions that follow from a phantom's findings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radloop.data.phantoms.anatomy import SIDES
from radloop.data.phantoms.findings import FINDINGS, Finding
from radloop.data.phantoms.phantom import Phantom

QUESTION_TYPES = ("presence", "side", "zone", "count", "location", "open")
NONE = "none"

_PRESENCE = ("{be} there {noun}?", "Does the radiograph show {noun}?", "Can you see {noun}?")
_PRESENCE_SIDE = ("{be} there {noun} on the {side}?", "Does the {side} side show {noun}?")
_VALUES = {
    "side": ("On which side {be} the {bare}?", "Which side shows the {bare}?"),
    "zone": ("In which lung zone {be} the {bare}?", "Which lung zone shows the {bare}?"),
}
_COUNT = ("How many {bare} are there?", "What is the number of {bare}?")
_LOCATION = ("Where {be} the {bare}?", "Give the side and zone of the {bare}.")
_ABNORMALITY = ("What abnormality is seen in the {side} lung?", "Name the abnormality of the {side} lung.")
_DEVICE = ("Name the devices.", "What device can be seen?")
_HEART = ("What is the size of the heart?", "How large is the heart?")


@dataclass(frozen=True)
class Question:
    """One question about a phantom with its only right answer."""

    text: str
    answer: str
    type: str

    @property
    def answer_type(self) -> str:
        return "closed" if self.answer in ("yes", "no") else "open"


def questions(phantom: Phantom) -> list[Question]:
    """Seven or eight questions, the same at every call.

    The mix of types, and of present and absent findings, is such that the most frequent answer to
    each question text is right in about 59 % of the cases: that is what never looking scores.
    """
    author = _Author(phantom, phantom.rng())
    special = author.about_counts() + author.about_details() + author.about_regions()
    chosen = author.some(special, 4)
    chosen += author.some(author.about_presence(), int(author.rng.integers(7, 9)) - len(chosen))
    return author.some(chosen, len(chosen))


def caption(phantom: Phantom) -> str:
    """One sentence that names every finding."""
    briefs = [FINDINGS[name].describe(p, FINDINGS[name].brief) for name, p in phantom.findings.items()]
    if not briefs:
        return "Normal chest radiograph."
    listed = briefs[0] if len(briefs) == 1 else ", ".join(briefs[:-1]) + " and " + briefs[-1]
    return f"Chest radiograph with {listed}."


def report(phantom: Phantom) -> str:
    """A short report with its two usual sections."""
    sentences = statements(phantom)
    found = [name.capitalize() + "." for name in phantom.findings]
    impression = " ".join(found) if found else "No acute abnormality."
    return f"FINDINGS: {' '.join(sentences)}\nIMPRESSION: {impression}"


def statements(phantom: Phantom) -> list[str]:
    """A sentence on every entry of `FINDINGS`, in its order, present or not."""
    return [
        finding.describe(phantom.findings[name], finding.positive)
        if name in phantom.findings
        else finding.negative
        for name, finding in FINDINGS.items()
    ]


class _Author:
    """Words the questions about one phantom."""

    def __init__(self, phantom: Phantom, rng: np.random.Generator) -> None:
        self.present = phantom.findings
        self.rng = rng

    def some(self, among: list[Question], number: int) -> list[Question]:
        """At most that many of them, in random order."""
        return [among[i] for i in self.rng.permutation(len(among))[:number]]

    def about_presence(self) -> list[Question]:
        asked = []
        for name, finding in FINDINGS.items():
            there = name in self.present
            asked.append(self._ask(_PRESENCE, "yes" if there else "no", "presence", finding))
            if "side" in finding.values and self.rng.random() < (0.3 if there else 0.18):
                side = self._pick(SIDES)
                right = there and self.present[name].values["side"] == side
                answer = "yes" if right else "no"
                asked.append(self._ask(_PRESENCE_SIDE, answer, "presence", finding, side=side))
        return asked

    def about_counts(self) -> list[Question]:
        return [
            self._ask(
                _COUNT, self.present[name].values["count"] if name in self.present else "0", "count", finding
            )
            for name, finding in FINDINGS.items()
            if "count" in finding.values
        ]

    def about_details(self) -> list[Question]:
        asked = []
        for name, present in self.present.items():
            finding = FINDINGS[name]
            for key, templates in _VALUES.items():
                if key in present.values and self.rng.random() < 0.8:
                    asked.append(self._ask(templates, present.values[key], key, finding))
            if {"side", "zone"} <= present.values.keys() and self.rng.random() < 0.3:
                answer = f"{present.values['side']} {present.values['zone']} zone"
                asked.append(self._ask(_LOCATION, answer, "location", finding))
        return asked

    def about_regions(self) -> list[Question]:
        """Open questions, where they have one answer: at most one finding in the region."""
        asked = []
        for side in SIDES:
            names = [
                name
                for name, present in self.present.items()
                if FINDINGS[name].site == "lung" and present.values["side"] == side
            ]
            if len(names) < 2 and self.rng.random() < (0.55 if names else 0.8):
                asked.append(self._ask(_ABNORMALITY, names[0] if names else NONE, "open", side=side))
        devices = [name for name in self.present if FINDINGS[name].site == "device"]
        if len(devices) < 2 and self.rng.random() < 0.4:
            asked.append(self._ask(_DEVICE, devices[0] if devices else NONE, "open"))
        if self.rng.random() < 0.4:
            size = "enlarged" if "cardiomegaly" in self.present else "normal"
            asked.append(self._ask(_HEART, size, "open"))
        return asked

    def _ask(
        self,
        templates: tuple[str, ...],
        answer: str,
        kind: str,
        finding: Finding | None = None,
        side: str = "",
    ) -> Question:
        words = {"side": side}
        if finding:
            bare = finding.noun.removeprefix("a ")
            words |= {"noun": finding.noun, "bare": bare, "be": "are" if finding.plural else "is"}
        text = self._pick(templates).format(**words)
        return Question(text[0].upper() + text[1:], answer, kind)

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]
