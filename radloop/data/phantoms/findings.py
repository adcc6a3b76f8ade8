"""The findings that a phantom can have: `FINDINGS` is the one list of them.

A new finding is one entry: how often it occurs, the values that questions can ask for, how it is
placed, how it is drawn, and how it is called. Questions, reports, captions and the masks that the
tiny base model learns from all follow from the entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from radloop.data.phantoms.anatomy import (
    MU_AIR,
    SIDES,
    Anatomy,
    Array,
    Scene,
    sigmoid,
    sign,
    texture,
)
from radloop.data.phantoms.imaging_chain import blur

ZONES = ("upper", "middle", "lower")
NODULE_MU = 0.28  # slightly calcified
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Present:
    """A finding of one phantom.

    Attributes:
        name: Name of its entry in `FINDINGS`.
        values: What can be asked for, such as `{"side": "left", "zone": "upper"}`.
        circles: (x, y, radius) in cm of what it covers, kept free by later findings.
        extent: Its size in cm (fluid height, gap, radius), no meaning across findings.
    """

    name: str
    values: dict[str, str] = field(default_factory=dict)
    circles: tuple[tuple[float, float, float], ...] = ()
    extent: float = 0.0


@dataclass(frozen=True)
class Finding:
    """One kind of finding.

    Attributes:
        name: Identifier, and the answer to open questions.
        site: `heart`, `lung` or `device`: which open question names it.
        probability: How often it is attempted.
        values: Attribute name to the values it can take, in order.
        place: Chooses values and geometry; None where there is no room.
        draw: Adds the finding to the scene and returns where it can be seen, shape (size, size).
        noun: As in "Is there NOUN?".
        brief: As in "Chest radiograph with BRIEF", with the values in braces.
        positive: Statement for a report, with the values in braces.
        negative: Statement of its absence.
        alter: Changes the anatomy before anything is drawn.
        plural: Whether the noun takes "are".
    """

    name: str
    site: str
    probability: float
    values: dict[str, tuple[str, ...]]
    place: Callable[[np.random.Generator, Anatomy, Sequence[Present]], Present | None]
    draw: Callable[[Scene, Present, np.random.Generator], Mask]
    noun: str
    brief: str
    positive: str
    negative: str
    alter: Callable[[Anatomy, Present], Anatomy] = lambda anatomy, _: anatomy
    plural: bool = False

    def describe(self, present: Present, template: str) -> str:
        """`brief` or `positive` with the values of a finding that is there."""
        text = template.format(**present.values)
        return text.replace("There are 1", "There is 1").replace("1 nodules", "1 nodule")


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _on_side(others: Sequence[Present], name: str, side: str) -> Present | None:
    return next((p for p in others if p.name == name and p.values.get("side") == side), None)


# --- cardiomegaly ---------------------------------------------------------------------------


def _place_cardiomegaly(rng: np.random.Generator, anatomy: Anatomy, others: Sequence[Present]) -> Present:
    return Present("cardiomegaly", extent=rng.uniform(0.57, 0.68))


def _enlarge_heart(anatomy: Anatomy, present: Present) -> Anatomy:
    return replace(anatomy, heart_ratio=present.extent)


def _draw_cardiomegaly(scene: Scene, present: Present, rng: np.random.Generator) -> Mask:
    return scene.anatomy.heart_level(scene.x, scene.y) < 1.0


# --- pneumothorax ---------------------------------------------------------------------------


def _place_pneumothorax(rng: np.random.Generator, anatomy: Anatomy, others: Sequence[Present]) -> Present:
    return Present("pneumothorax", {"side": _choose(rng, SIDES)}, extent=rng.uniform(2.2, 4.5))


def _collapsed_border(anatomy: Anatomy, present: Present, y: float | Array) -> Array:
    return anatomy.lung_border(np.asarray(y, np.float32) - 1.2 * present.extent) - present.extent


def _draw_pneumothorax(scene: Scene, present: Present, rng: np.random.Generator) -> Mask:
    edge = _collapsed_border(scene.anatomy, present, scene.y)
    half = scene.half(present.values["side"])
    gas = sigmoid((scene.distance - edge) / 0.12) * half
    scene.lung_mu += gas * np.float32(MU_AIR - 0.05) + (half - gas) * np.float32(0.012)
    scene.vessels *= 1.0 - gas
    pleura = np.exp(-(((scene.distance - edge) / 0.2) ** 2)) * half * np.clip(scene.air / 3.0, 0, 1)
    scene.extra = scene.extra + 0.16 * pleura
    return (gas > 0.5) & (scene.air > 1.5)


# --- pleural effusion -----------------------------------------------------------------------


def _place_effusion(rng: np.random.Generator, anatomy: Anatomy, others: Sequence[Present]) -> Present:
    side = _choose(rng, SIDES)
    if _on_side(others, "pneumothorax", side):  # its fluid level would be flat, without a meniscus
        side = SIDES[1 - SIDES.index(side)]
    return Present("pleural effusion", {"side": side}, extent=rng.uniform(3.2, 7.5))


def _fluid_level(anatomy: Anatomy, present: Present, distance: float | Array) -> Array:
    level = anatomy.dome(present.values["side"]) + 4.0 - present.extent
    return level - 0.045 * (np.asarray(distance, np.float32) - 3.0) ** 2 + 1.6


def _draw_effusion(scene: Scene, present: Present, rng: np.random.Generator) -> Mask:
    level = _fluid_level(scene.anatomy, present, scene.distance)
    fluid = sigmoid((scene.y - level) / 0.28) * scene.half(present.values["side"]) * np.float32(0.93)
    seen = (fluid > 0.4) & (scene.air > 1.0) & (scene.y < scene.diaphragm)
    scene.fill(fluid)
    scene.vessels *= 1.0 - fluid
    return seen


# --- pacemaker ------------------------------------------------------------------------------


def _place_pacemaker(rng: np.random.Generator, anatomy: Anatomy, others: Sequence[Present]) -> Present:
    side = "left" if rng.random() < 0.6 else "right"
    x, y = sign(side) * rng.uniform(8.6, 10.4), rng.uniform(-9.4, -7.6)
    return Present("pacemaker", {"side": side}, ((x, y, 2.4),), extent=rng.uniform(1.7, 2.1))


def _draw_pacemaker(scene: Scene, present: Present, rng: np.random.Generator) -> Mask:
    (x, y, _), *_ = present.circles
    outline = (np.abs(scene.x - x) / present.extent) ** 4 + (
        np.abs(scene.y - y) / (0.85 * present.extent)
    ) ** 4
    box = sigmoid((1.0 - outline) / 0.12)
    heart_x, heart_y, long, _ = scene.anatomy.heart_axes()
    tip = (heart_x + 0.55 * long, heart_y + 0.40 * long)
    lead = _wire(scene, [(x, y), (x * 0.55, y - 2.6), (-1.9, -9.0), (-2.6, -1.0), (-2.0, heart_y + 3.2), tip])
    scene.extra = scene.extra + 2.2 * box + 1.1 * np.minimum(lead, 1.0)
    return (box > 0.5) | (lead > 0.5)


def _wire(scene: Scene, points: list[tuple[float, float]]) -> Array:
    """A thin wire along a Bezier curve, about 1 at its axis."""
    control = np.array(points, np.float64)[:, :, None]
    steps = np.linspace(0.0, 1.0, 3 * scene.size)
    while len(control) > 1:  # de Casteljau, on all steps at once
        control = control[:-1] * (1 - steps) + control[1:] * steps
    columns = np.rint((control[0, 0] - scene.x[0, 0]) / scene.pixel_cm).astype(int)
    rows = np.rint((control[0, 1] - scene.y[0, 0]) / scene.pixel_cm).astype(int)
    inside = (columns >= 0) & (columns < scene.size) & (rows >= 0) & (rows < scene.size)
    track = np.zeros((scene.size, scene.size), np.float32)
    track[rows[inside], columns[inside]] = 1.0
    return blur(track, 0.13) * np.float32(0.33 / scene.pixel_cm)


# --- opacities in the lung ------------------------------------------------------------------


def _zone_range(anatomy: Anatomy, side: str, zone: str) -> tuple[float, float]:
    third = (anatomy.dome(side) - anatomy.apex) / 3
    top = anatomy.apex + third * ZONES.index(zone)
    return top, top + third


def _place_consolidation(
    rng: np.random.Generator, anatomy: Anatomy, others: Sequence[Present]
) -> Present | None:
    side, zone = _choose(rng, SIDES), _choose(rng, ZONES)
    radius = rng.uniform(2.5, 3.6)
    top, bottom = _zone_range(anatomy, side, zone)
    centre = _free_point(rng, anatomy, others, side, radius, (top + 2.3, bottom - 2.3))
    return centre and Present("consolidation", {"side": side, "zone": zone}, (centre,), rng.uniform(0.5, 0.8))


def _draw_consolidation(scene: Scene, present: Present, rng: np.random.Generator) -> Mask:
    (x, y, radius), *_ = present.circles
    reach = np.sqrt((scene.x - x) ** 2 + (1.15 * (scene.y - y)) ** 2)
    edge = radius * (1.0 + 0.16 * texture(rng, scene.size, 12))
    cloud = sigmoid((edge - reach) / 0.4) * (1.0 + 0.14 * texture(rng, scene.size, 24))
    fill = np.clip(present.extent * cloud, 0, 0.9) * (scene.distance > 2.0)
    seen = (fill > 0.3) & (scene.air > 2.0)
    scene.fill(fill)
    return seen


def _place_nodules(rng: np.random.Generator, anatomy: Anatomy, others: Sequence[Present]) -> Present | None:
    side, count = _choose(rng, SIDES), int(rng.integers(1, 4))
    placed: list[tuple[float, float, float]] = []
    for _ in range(count):
        here = [*others, Present("nodules", {}, tuple((x, y, r + 1.2) for x, y, r in placed))]
        rows = (anatomy.clavicle_y + 2.6, anatomy.dome(side) - 1.5)
        centre = _free_point(rng, anatomy, here, side, rng.uniform(1.15, 1.65), rows)
        if centre is None:
            return None
        placed.append(centre)
    return Present("nodules", {"count": str(count), "side": side}, tuple(placed))


def _draw_nodules(scene: Scene, present: Present, rng: np.random.Generator) -> Mask:
    seen = np.zeros((scene.size, scene.size), bool)
    for x, y, radius in present.circles:
        square = radius**2 - (scene.x - x) ** 2 - (scene.y - y) ** 2
        thickness = 2.0 * np.sqrt(np.maximum(square, 0))
        scene.extra = scene.extra + NODULE_MU * thickness
        seen |= square > 0
    return seen


def _free_point(
    rng: np.random.Generator,
    anatomy: Anatomy,
    others: Sequence[Present],
    side: str,
    radius: float,
    rows: tuple[float, float],
) -> tuple[float, float, float] | None:
    """A disc in aerated, open lung that nothing else covers; None after a fair number of tries."""
    gas, fluid = _on_side(others, "pneumothorax", side), _on_side(others, "pleural effusion", side)
    taken = [circle for other in others for circle in other.circles]
    for _ in range(40):
        distance, y = rng.uniform(3.2 + 0.8 * radius, 12.5), rng.uniform(*rows)
        x = sign(side) * distance
        border = _collapsed_border(anatomy, gas, y) if gas else anatomy.lung_border(y)
        floor = min(
            _fluid_level(anatomy, fluid, distance) if fluid else 99.0, anatomy.diaphragm(side, distance)
        )
        if (
            distance + 0.8 * radius + 0.4 < border
            and y + 0.8 * radius + 0.4 < floor
            and anatomy.heart_level(x, y) > (1.0 + 0.09 * radius) ** 2
            and all((x - a) ** 2 + (y - b) ** 2 > (radius + r + 0.5) ** 2 for a, b, r in taken)
        ):
            return x, y, radius
    return None


FINDINGS: dict[str, Finding] = {
    finding.name: finding
    for finding in (
        Finding(
            "cardiomegaly",
            "heart",
            0.40,
            {},
            _place_cardiomegaly,
            _draw_cardiomegaly,
            noun="cardiomegaly",
            brief="cardiomegaly",
            positive="The heart is enlarged.",
            negative="The heart size is normal.",
            alter=_enlarge_heart,
        ),
        Finding(
            "pneumothorax",
            "lung",
            0.30,
            {"side": SIDES},
            _place_pneumothorax,
            _draw_pneumothorax,
            noun="a pneumothorax",
            brief="a {side} pneumothorax",
            positive="There is a pneumothorax on the {side}.",
            negative="No pneumothorax.",
        ),
        Finding(
            "pleural effusion",
            "lung",
            0.36,
            {"side": SIDES},
            _place_effusion,
            _draw_effusion,
            noun="a pleural effusion",
            brief="a {side} pleural effusion",
            positive="There is a pleural effusion on the {side}.",
            negative="No pleural effusion.",
        ),
        Finding(
            "pacemaker",
            "device",
            0.33,
            {"side": SIDES},
            _place_pacemaker,
            _draw_pacemaker,
            noun="a pacemaker",
            brief="a pacemaker on the {side}",
            positive="A pacemaker lies on the {side}.",
            negative="No devices.",
        ),
        Finding(
            "consolidation",
            "lung",
            0.55,
            {"side": SIDES, "zone": ZONES},
            _place_consolidation,
            _draw_consolidation,
            noun="a consolidation",
            brief="a consolidation in the {side} {zone} zone",
            positive="There is a consolidation in the {zone} zone of the {side} lung.",
            negative="No consolidation.",
        ),
        Finding(
            "nodules",
            "lung",
            0.58,
            {"count": ("1", "2", "3"), "side": SIDES},
            _place_nodules,
            _draw_nodules,
            noun="lung nodules",
            brief="{count} nodules in the {side} lung",
            positive="There are {count} nodules in the {side} lung.",
            negative="No lung nodules.",
            plural=True,
        ),
    )
}
