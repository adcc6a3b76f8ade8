"""From attenuation to a grey picture: beam, scatter, quantum noise, detector blur, processing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from radloop.data.phantoms.anatomy import FIELD_CM, Array

SCATTER_FRACTION = 0.12  # behind the anti-scatter grid, of the smoothed primary
SCATTER_CM = 3.5
DETECTOR_CM = 0.16
EQUALISED = 0.42  # share of the coarse structure that the workstation's processing takes away
EQUALISED_CM = 4.5


def expose(attenuation: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Take the picture: Beer-Lambert, scatter, Poisson noise, logarithm, equalise, window to 8 bit.

    Args:
        attenuation: Line integrals of the attenuation, no unit, of shape (size, size).
        rng: Draws the exposure, the noise and the window.

    Returns:
        Pixels of shape (size, size): bone bright, air dark.
    """
    size = len(attenuation)
    primary = np.exp(-attenuation)
    signal = primary + SCATTER_FRACTION * blur(primary, SCATTER_CM)
    photons = rng.uniform(9e3, 3e4) * (FIELD_CM / size / 0.42) ** 0.5  # finer pixels, less noise reduction
    # Counts are in the hundreds and more, where the Poisson law is a normal one.
    signal += rng.standard_normal(signal.shape, np.float32) * np.sqrt(signal / np.float32(photons))
    film = -np.log(np.maximum(blur(signal, DETECTOR_CM), 1e-3))
    film -= EQUALISED * blur(film, EQUALISED_CM)
    chest = film[size // 5 : -size // 4, size // 6 : -size // 6][::3, ::3].ravel()
    ranks = [len(chest) // 33, len(chest) * 32 // 33]
    low, high = np.partition(chest, ranks)[ranks] + rng.uniform((-0.30, 0.05), (-0.12, 0.20))
    level = np.clip((film - low) / (high - low), 0.0, 1.0) ** rng.uniform(0.8, 1.0)
    return (level * 255.0 + 0.5).astype(np.uint8)


def blur(image: Array, sigma_cm: float) -> Array:
    """Gaussian blur, as two small matrix products."""
    kernel = _kernel(len(image), sigma_cm)
    return small_product(small_product(kernel, image), kernel.T)


def small_product(left: Array, right: Array) -> Array:
    """`left @ right` in strips that OpenBLAS leaves to one thread.

    It would wake all its threads for products of this size, and they wait for each other longer
    than they work, above all beside other processes.
    """
    return np.concatenate([left[row : row + 24] @ right for row in range(0, len(left), 24)])


@lru_cache(maxsize=16)
def _kernel(size: int, sigma_cm: float) -> Array:
    at = np.arange(size) * (FIELD_CM / size)
    weights = np.exp(-0.5 * ((at[:, None] - at[None, :]) / sigma_cm) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
