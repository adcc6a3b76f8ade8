"""Splits that share no group, hold the same mix of strata, and stay as they are when the data grows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def stratified(
    groups: Sequence[str],
    strata: Sequence[str],
    seed: int,
    validation: float,
    test: float,
    kept: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Put whole groups into splits so that each split has its share of each stratum.

    Groups are placed one by one, the largest first and equal ones in an order drawn by the seed,
    each where it brings the counts closest to what they should be (smallest chi-square). The
    order of the arguments does not matter.

    Args:
        groups: (n,) what must not be torn apart, of each sample: image, study or patient.
        strata: (n,) such as "closed, CHEST", of each sample.
        seed: Another seed gives another split.
        validation: Share of samples, 0 to 1.
        test: Share of samples, 0 to 1; `validation + test` is at most 1.
        kept: Splits of groups that stay where they are, as of an earlier, smaller data set.

    Returns:
        Group name to "train", "validation" or "test".
    """
    if not (validation >= 0 and test >= 0 and validation + test <= 1):
        raise ValueError(
            f"got validation {validation} and test {test}; needed are shares with a sum of at most 1"
        )
    names, group_of = np.unique(np.asarray(groups, object), return_inverse=True)
    kinds, kind_of = np.unique(np.asarray(strata, object), return_inverse=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (group_of, kind_of), 1)
    wanted = np.outer([1 - validation - test, validation, test], counts.sum(0))
    return _place(names.tolist(), counts, wanted, seed, dict(kept or {}))


def _place(
    names: list[str],
    counts: NDArray[np.float64],
    wanted: NDArray[np.float64],
    seed: int,
    kept: dict[str, str],
) -> dict[str, str]:
    """Place (groups, strata) counts into splits so that these get close to (splits, strata) `wanted`."""
    placed = {name: kept[name] for name in names if name in kept}
    held = np.zeros_like(wanted)
    for row, name in enumerate(names):
        if name in placed:
            held[SPLITS.index(placed[name])] += counts[row]
    open_splits = np.flatnonzero(wanted.sum(1) > 0)
    weight = 1 / np.maximum(wanted[open_splits], 1e-9)
    sizes = counts.sum(1)
    waiting = [row for row, name in enumerate(names) if name not in placed]
    for row in sorted(waiting, key=lambda row: (-sizes[row], _draw(names[row], seed))):
        present = np.flatnonzero(counts[row])
        more = counts[row, present]
        short = held[np.ix_(open_splits, present)] - wanted[np.ix_(open_splits, present)]
        costs = ((2 * short + more) * more * weight[:, present]).sum(1)
        best = int(open_splits[int(np.argmin(costs))])
        held[best] += counts[row]
        placed[names[row]] = SPLITS[best]
    return placed


def _draw(group: str, seed: int) -> bytes:
    """What looks random but depends on the group's name and the seed only."""
    return hashlib.blake2b(group.encode("utf-8", "replace"), key=str(seed).encode(), digest_size=8).digest()


def connected(members: Sequence[Sequence[str]], alone: Sequence[str]) -> list[str]:
    """Join samples that share a key, directly or through others, into groups.

    Args:
        members: Keys of each sample: pictures, a patient. No key may be in two groups.
        alone: Name of the group of each sample that has no key.

    Returns:
        The group of each sample: the smallest of its keys.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = sorted({key for some in members for key in some})
    code = {key: number for number, key in enumerate(keys)}
    edges = [(row, len(members) + code[key]) for row, some in enumerate(members) for key in some]
    size = len(members) + len(keys)
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), bool), (rows, columns)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    smallest: dict[int, str] = {}
    for key, label in zip(keys, labels[len(members) :].tolist(), strict=True):
        smallest.setdefault(label, key)
    return [
        smallest.get(label, name) for label, name in zip(labels[: len(members)].tolist(), alone, strict=True)
    ]
