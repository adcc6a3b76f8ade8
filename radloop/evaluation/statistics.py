"""Intervals and p values for scores whose samples come in groups (images, studies, patients).

Questions about one image rise and fall together. Whoever resamples single questions claims too
much: groups are resampled here, and signs are flipped by group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

_CELLS_AT_ONCE = 1 << 22  # of the (resamples, groups) matrix: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two systems on the same samples: its interval, and p that it is none."""

    difference: float
    low: float
    high: float
    p: float


class Groups:
    """The groups of n samples, ready to resample.

    Args:
        labels: (n,) the group of each sample.
        resamples: Number of bootstrap resamples and of random sign flips.
        confidence: Of the intervals, such as 0.95.
        seed: The same seed gives the same resamples, whatever is measured on them.
    """

    def __init__(self, labels: Sequence[str], resamples: int, confidence: float, seed: int) -> None:
        if not len(labels):
            raise ValueError("got no samples; statistics need at least one")
        _, codes = np.unique(np.asarray(labels), return_inverse=True)
        self._codes = codes
        self._sizes = np.bincount(codes).astype(float)
        self._resamples = resamples
        self._confidence = confidence
        self._seed = seed

    def __len__(self) -> int:
        return len(self._sizes)

    def mean(self, scores: Sequence[float], lowest: float = 0.0, highest: float = 1.0) -> Estimate:
        """Return the mean over samples of `scores` (n,) with its interval.

        Args:
            scores: (n,) each within `lowest` to `highest`.
            lowest: The least a score can be; it bounds the interval.
            highest: The most a score can be.

        Source: percentile bootstrap over clusters, expanded by sqrt(G / (G - 1)) t / z for G groups
        (Hesterberg 2015, What Teachers Should Know about the Bootstrap), since the plain one is too
        narrow for few groups. Where all groups agree, resampling sees no noise at all: then the
        exact binomial (Clopper-Pearson) bound of G agreeing groups is taken.
        """
        sums = np.bincount(self._codes, np.asarray(scores, dtype=float)).astype(float)
        value = float(sums.sum() / self._sizes.sum())
        if np.ptp(sums / self._sizes) < 1e-12:
            doubt = 1 - ((1 - self._confidence) / 2) ** (1 / len(self))
            return Estimate(value, value - doubt * (value - lowest), value + doubt * (highest - value))
        tail = self._expanded_tail()
        low, high = np.quantile(self._resampled_means(sums), [tail, 1 - tail])
        return Estimate(value, min(float(low), value), max(float(high), value))

    def compare(self, ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
        """Return the paired difference `ours - theirs` of two systems on the same samples.

        Both are (n,), 0 to 1. The p value is that of `sign_flip`.
        """
        differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
        estimate = self.mean(differences.tolist(), -1.0, 1.0)
        return Comparison(estimate.value, estimate.low, estimate.high, self.sign_flip(differences.tolist()))

    def sign_flip(self, differences: Sequence[float]) -> float:
        """Return the two-sided p value that paired differences (n,) are symmetric around 0.

        Exact over all sign patterns for up to 12 groups with a difference, by at least 10,000 random
        ones above. Groups without a difference say nothing and are left out, as in a sign test.
        """
        sums = np.bincount(self._codes, np.asarray(differences, dtype=float))
        sums = sums[np.abs(sums) > 1e-12]
        observed = abs(float(sums.sum())) - 1e-9
        if len(sums) <= 12:
            patterns = (np.arange(1 << len(sums))[:, None] >> np.arange(len(sums))) & 1
            return float(np.mean(np.abs((2 * patterns - 1) @ sums) >= observed))
        rng = np.random.default_rng(self._seed)
        flips = max(self._resamples, 10_000)
        as_extreme = 0
        for size in _chunks(flips, len(sums)):
            signs = rng.integers(0, 2, (size, len(sums)), dtype=np.int8) * 2 - 1
            as_extreme += int(np.sum(np.abs(signs @ sums) >= observed))
        return (as_extreme + 1) / (flips + 1)

    def _resampled_means(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        rng = np.random.default_rng(self._seed)
        means = []
        for size in _chunks(self._resamples, len(self)):
            drawn = rng.integers(0, len(self), (size, len(self)))
            means.append(sums[drawn].sum(1) / self._sizes[drawn].sum(1))
        return np.concatenate(means)

    def _expanded_tail(self) -> float:
        groups = len(self)
        quantile = stats.t.ppf((1 + self._confidence) / 2, groups - 1) * np.sqrt(groups / (groups - 1))
        return float(special.ndtr(-quantile))


def _chunks(total: int, width: int) -> list[int]:
    size = max(1, min(total, _CELLS_AT_ONCE // width))
    return [size] * (total // size) + [total % size] * (total % size > 0)
