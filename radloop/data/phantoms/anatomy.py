"""Normal anatomy of a phantom chest: its measures, and the length of every tissue along the beam.

Coordinates are centimetres in the detector plane: x from the centre to the picture's right, y from
the centre downwards. The picture follows the radiograph convention, as if the patient faced the
reader: **the patient's right is on the picture's left** (x < 0). Sides are always the patient's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

FIELD_CM = 40.0  # edge of the square detector
SIDES = ("left", "right")

# Linear attenuation in 1/cm at about 70 keV effective.
MU_TISSUE = 0.20
MU_LUNG = 0.05
MU_AIR = 0.004


def sign(side: str) -> float:
    """+1 for the patient's left (the picture's right half), -1 for the patient's right."""
    return 1.0 if side == "left" else -1.0


@dataclass(frozen=True)
class Anatomy:
    """The measures of one patient, in cm unless said otherwise."""

    shift_x: float
    shift_y: float
    scale: float  # patient size, 1 is the average adult
    half_width: float  # of the rib cage
    apex: float  # y of the lung apices
    dome_right: float  # y of the top of the right hemidiaphragm
    dome_left: float
    depth: float  # of the chest from front to back
    fat: float  # soft tissue outside the rib cage
    heart_ratio: float  # cardiothoracic ratio
    heart_tilt: float  # radians
    rib_spacing: float
    rib_offset: float
    clavicle_y: float
    breast: float  # thickness, 0 for none
    stomach_bubble: float  # thickness of the gas, 0 for none
    vessel_phase: tuple[float, float, float]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Anatomy:
        dome = rng.uniform(6.5, 9.5)
        return cls(
            shift_x=rng.uniform(-0.8, 0.8),
            shift_y=rng.uniform(-0.8, 0.8),
            scale=rng.uniform(0.94, 1.05),
            half_width=rng.uniform(13.2, 15.0),
            apex=rng.uniform(-15.2, -13.6),
            dome_right=dome,
            dome_left=dome + rng.uniform(0.4, 1.5),
            depth=rng.uniform(18.0, 23.0),
            fat=rng.uniform(1.6, 3.6),
            heart_ratio=rng.uniform(0.40, 0.47),
            heart_tilt=rng.uniform(0.45, 0.75),
            rib_spacing=rng.uniform(2.45, 2.9),
            rib_offset=rng.uniform(0.0, 2.9),
            clavicle_y=rng.uniform(-12.0, -10.6),
            breast=rng.uniform(0.8, 2.0) if rng.random() < 0.35 else 0.0,
            stomach_bubble=rng.uniform(1.5, 4.0) if rng.random() < 0.7 else 0.0,
            vessel_phase=(rng.uniform(0, 6.3), rng.uniform(0, 6.3), rng.uniform(0, 6.3)),
        )

    def dome(self, side: str) -> float:
        """Height y of the top of one hemidiaphragm."""
        return self.dome_left if side == "left" else self.dome_right

    def lung_border(self, y: float | Array) -> Array:
        """Distance from the midline to the lateral border of the lungs at height y."""
        rise = np.clip((5.0 - np.asarray(y, np.float32)) / (5.0 - self.apex), 0.0, 1.0)
        return self.half_width * (1.0 - rise**2.4) ** (1 / 2.0)

    def diaphragm(self, side: str, distance: float | Array) -> Array:
        """Height y of the hemidiaphragm at a distance from the midline."""
        return self.dome(side) + 4.6 * ((np.asarray(distance, np.float32) - 6.8) / 7.4) ** 2

    def heart_axes(self) -> tuple[float, float, float, float]:
        """Centre x, centre y, long and short half axis of the heart's ellipse."""
        half_extent = self.heart_ratio * self.half_width
        cos, sin = np.cos(self.heart_tilt), np.sin(self.heart_tilt)
        long = half_extent / float(np.sqrt(cos**2 + (0.78 * sin) ** 2))
        return 0.30 * half_extent, self.dome_left - 0.55 * long, long, 0.78 * long

    def heart_level(self, x: float | Array, y: float | Array) -> Array:
        """Squared elliptic radius: below 1 inside the heart."""
        centre_x, centre_y, long, short = self.heart_axes()
        cos, sin = np.float32(np.cos(self.heart_tilt)), np.float32(np.sin(self.heart_tilt))
        dx, dy = np.asarray(x - centre_x, np.float32), np.asarray(y - centre_y, np.float32)
        return ((dx * cos + dy * sin) / long) ** 2 + ((dy * cos - dx * sin) / short) ** 2


class Scene:
    """A chest on the detector: maps, of shape (size, size), that findings add to.

    Attributes:
        anatomy: The patient's measures.
        x, y: Coordinates in cm in the patient's frame, of shape (1, size) and (size, 1).
        distance: |x|, distance from the midline.
        air: cm of aerated lung along the beam.
        lung_mu: Attenuation of what `air` holds, in 1/cm.
        extra: Attenuation to add (bone, metal, nodules), no unit.
        vessels: Attenuation of the lung's vessels, no unit; goes where the lung goes.
    """

    def __init__(self, anatomy: Anatomy, size: int) -> None:
        self.anatomy = anatomy
        axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(FIELD_CM / size) - FIELD_CM / 2
        self.size = size
        self.pixel_cm = FIELD_CM / size / anatomy.scale
        self.x: Array = ((axis - anatomy.shift_x) / anatomy.scale)[None, :].astype(np.float32)
        self.y: Array = ((axis - anatomy.shift_y) / anatomy.scale)[:, None].astype(np.float32)
        self.distance: Array = np.abs(self.x)
        self.border = anatomy.lung_border(self.y)
        self.diaphragm: Array = np.where(
            self.x < 0, anatomy.diaphragm("right", self.distance), anatomy.diaphragm("left", self.distance)
        )
        self.lung_mu: Array = np.full((size, size), MU_LUNG, np.float32)
        self.body = self._body()
        self.air = self._air()
        self.vessels = self._vessels()
        self.extra = self._bones() + self._soft_parts()

    def half(self, side: str) -> NDArray[np.bool_]:
        """The columns, of shape (1, size), on one side of the patient's midline."""
        return self.x >= 0 if side == "left" else self.x < 0

    def fill(self, fraction: Array) -> None:
        """Replace that fraction of the air, per pixel, by fluid."""
        self.air *= 1.0 - fraction

    def attenuation(self) -> Array:
        """Total attenuation along the beam, no unit, of shape (size, size)."""
        lung = self.air * (self.lung_mu - np.float32(MU_TISSUE))
        return MU_TISSUE * self.body + lung + self.extra + self.vessels

    def _body(self) -> Array:
        a = self.anatomy
        shoulders = 9.0 * sigmoid(-(self.y + 8.5) / 1.1)
        width = a.half_width + a.fat + shoulders + 0.04 * np.maximum(self.y, 0)
        depth = a.depth * (0.62 + 0.38 * sigmoid((self.y + 9.0) / 3.0)) + 0.12 * np.maximum(self.y - 5, 0)
        section = np.sqrt(np.clip(1.0 - (self.distance / width) ** 4, 0, 1))
        top = -18.6 + 0.022 * np.maximum(self.distance - 4.8, 0) ** 2
        top = np.where(self.distance < 5.2, -40.0, top)
        return depth * section * np.sqrt(np.clip((self.y - top) / 4.0, 0, 1))

    def _air(self) -> Array:
        a = self.anatomy
        inner = 2.2 + 0.9 * sigmoid(-(self.y + 6.5) / 1.5)
        middle, half = (self.border + inner) / 2, np.maximum((self.border - inner) / 2, 0.05)
        section = np.sqrt(np.clip(1.0 - np.abs((self.distance - middle) / half) ** 3, 0, 1))
        depth = 0.74 * a.depth * np.sqrt(np.clip((self.y - a.apex) / 12.0, 0, 1))
        lungs = depth * section * sigmoid((self.diaphragm - self.y) / 0.22)
        heart = 13.0 * np.sqrt(np.clip(1.0 - a.heart_level(self.x, self.y), 0, 1))
        knob = 9.0 * np.sqrt(np.clip(1.0 - ((self.x - 2.6) ** 2 + (self.y + 5.6) ** 2) / 3.2, 0, 1))
        lungs = np.maximum(lungs - heart - knob, 0.12 * lungs)
        trachea = 1.8 * np.exp(-((self.x / 0.8) ** 2)) * sigmoid(-(self.y + 4.6) / 0.6)
        bubble = (self.x - 6.8) ** 2 / 9.0 + (self.y - a.dome_left - 2.6) ** 2 / 1.9
        return lungs + trachea + a.stomach_bubble * np.sqrt(np.clip(1.0 - bubble, 0, 1))

    def _vessels(self) -> Array:
        """Branches that leave the hila, thinner and fainter towards the periphery."""
        dx, dy = self.distance - 3.4, self.y + 0.4
        reach = np.sqrt(dx * dx + dy * dy)
        angle = np.arctan2(dy, dx) + np.where(self.x < 0, 0.35, 0.0).astype(np.float32)
        first, second, third = self.anatomy.vessel_phase
        branches = np.cos(7 * angle + first + 0.25 * reach) + np.cos(11 * angle + second - 0.4 * reach)
        branches += 0.6 * np.cos(23 * angle + third + 0.9 * reach)
        hilum = 0.45 * np.exp(-((dx / 1.3) ** 2) - (dy / 2.2) ** 2)
        vessels = 0.24 * np.maximum(branches - 0.3, 0) * np.exp(-reach / 6.0) + hilum
        return vessels * np.clip(self.air / 6.0, 0, 1)

    def _bones(self) -> Array:
        a, y, distance = self.anatomy, self.y, self.distance
        spine = (
            0.45
            * np.sqrt(np.clip(1.0 - (distance / 2.0) ** 2, 0, 1))
            * (0.82 + 0.18 * np.cos(2.4 * y + a.rib_offset))
        )
        cage = sigmoid((self.border + 0.7 - distance) / 0.18) * np.clip((14.0 - y) / 2.0, 0, 1)
        cage = cage * np.clip((y - a.apex - 0.6) / 1.5, 0, 1)
        posterior = self._ribs(0.03 * distance + 0.015 * distance**2) * np.clip((distance - 1.6) / 0.8, 0, 1)
        anterior = self._ribs(-0.50 * (distance - 14.0) + 0.9) * np.clip((distance - 5.5) / 2.0, 0, 1)
        ribs = cage * (0.30 * posterior + 0.17 * anterior)
        bow = a.clavicle_y - 0.17 * (distance - 2.0) + 0.45 * np.sin(distance * 0.45)
        clavicle = np.sqrt(np.clip(1.0 - ((y - bow) / 0.72) ** 2, 0, 1))
        clavicle = (
            0.42 * clavicle * np.clip((distance - 1.6) / 0.5, 0, 1) * np.clip((15.5 - distance) / 0.8, 0, 1)
        )
        head = np.clip(1.0 - ((distance - 17.8) ** 2 + (y + 12.5) ** 2) / 8.5, 0, 1)
        scapula = 0.16 * sigmoid((distance - 12.6 - 0.22 * (y + 3)) / 0.25) * sigmoid((16.2 - distance) / 0.5)
        scapula = scapula * sigmoid((-1.0 - y) / 0.6) * sigmoid((y + 13.0) / 0.8)
        return spine + ribs + clavicle + 0.8 * np.sqrt(head) + scapula

    def _ribs(self, slope: Array) -> Array:
        """Tubes at equal spacing below each other, with a brighter cortex, along `slope`."""
        spacing = self.anatomy.rib_spacing
        phase = (self.y - slope + self.anatomy.rib_offset) / spacing
        across = ((phase - np.floor(phase)) - 0.5) * (spacing / 0.62)
        inside = np.clip(1.0 - across**2, 0, 1)
        return np.sqrt(inside) * (1.25 - 0.6 * inside)

    def _soft_parts(self) -> Array:
        a = self.anatomy
        if not a.breast:
            return np.zeros((1, 1), np.float32)
        outline = ((self.distance - 8.2) / 5.4) ** 2 + ((self.y - 4.6) / 5.2) ** 2
        return MU_TISSUE * a.breast * np.sqrt(np.clip(1.0 - outline, 0, 1))


def sigmoid(values: Array) -> Array:
    """A soft step from 0 to 1."""
    return 0.5 + 0.5 * np.tanh(0.5 * values)


def texture(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth noise of unit variance, of shape (size, size), with `cells` bumps along an edge."""
    weights = _bumps(size, cells)
    return weights @ rng.standard_normal((cells + 2, cells + 2), np.float32) @ weights.T


@lru_cache(maxsize=16)
def _bumps(size: int, cells: int) -> Array:
    centres = np.arange(cells + 2, dtype=np.float32) - 0.5
    at = (np.arange(size, dtype=np.float32) + 0.5) * (cells / size)
    weights = np.exp(-(((at[:, None] - centres[None, :]) / 0.7) ** 2))
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)
