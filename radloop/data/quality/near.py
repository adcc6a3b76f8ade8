"""Near-duplicates among any number of images: the same picture under another name.

Two steps. Candidates come from sorting: images are near each other in one of several orders of their
low-frequency sign bits. Each candidate pair is then aligned, in position and in its grey curve, and kept
if next to nothing of the one picture is left unexplained by the other.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from radloop.data.imaging.hashing import HASH_BYTES, SIDE

MAX_UNEXPLAINED = 0.0005  # share of the variance; the most alike of millions of phantom pairs are about there
_HOPELESS = 10 * MAX_UNEXPLAINED  # after one step of alignment
_TABLES, _BUCKET_BITS, _WINDOW = 16, 16, 16
_MAX_DISTANCE = 32  # of 128 bits; images of nothing in common have 64
_NEAREST = 8  # candidates verified an image: bounds the time where all images look alike
_TRIMMED, _MARGIN, _DEGREE = 0.15, 2, 3
_MAX_SHIFT = 0.06 * SIDE  # pixels of the hash
_MIN_CONTRAST = 0.03  # of the range from black to white
_CHUNK = 1024  # pairs


def near_groups(hashes: pa.Array) -> np.ndarray:
    """Number the groups of images that show the same picture; see `near_duplicates`.

    Args:
        hashes: Of `perceptual_hash`, binary, without nulls.

    Returns:
        The group of each image, counted from 0, or -1 where no other image shows the same; int64, shape (n,).

    Raises:
        pyarrow.ArrowInvalid: A hash has another length.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(hashes)
    fixed = hashes.cast(pa.binary(HASH_BYTES))
    start, stop = fixed.offset * HASH_BYTES, (fixed.offset + count) * HASH_BYTES
    flat = np.frombuffer(fixed.buffers()[1], np.uint8)[start:stop] if count else np.empty(0, np.uint8)
    first, second = near_duplicates(flat.reshape(count, HASH_BYTES)).T
    labels = connected_components(
        coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count)), directed=False
    )[1]
    paired = np.isin(np.arange(count), [first, second])
    groups = np.full(count, -1, np.int64)
    groups[paired] = np.unique(labels[paired], return_inverse=True)[1]
    return groups


def near_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Pairs of images that show the same picture, re-encoded, resized, cropped, re-windowed or marked.

    Of many copies not all pairs are returned, but enough to connect them (`near_groups`). Blank images
    (hashes of zeros only) are in no pair. A mirrored picture is no duplicate. The time grows with
    n log n, also where all images look alike.

    Args:
        hashes: Of `perceptual_hash`, uint8, shape (n, HASH_BYTES).

    Returns:
        Rows of the pairs, int64, shape (m, 2), smaller number first, sorted.

    Raises:
        ValueError: `hashes` has another shape or type.
    """
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != HASH_BYTES:
        raise ValueError(f"got {hashes.dtype} of shape {hashes.shape}; needed is uint8 of (n, {HASH_BYTES})")
    identical = _identical(hashes, np.flatnonzero(hashes.any(axis=1)))
    distinct = np.flatnonzero(hashes.any(axis=1) & ~np.isin(np.arange(len(hashes)), identical[:, 1]))
    candidates = distinct[_candidates(_signs(hashes, distinct))]
    verified = [candidates[:0]]
    for start in range(0, len(candidates), _CHUNK):
        chunk = candidates[start : start + _CHUNK]
        verified.append(chunk[same_picture(hashes[chunk[:, 0]], hashes[chunk[:, 1]])])
    pairs: np.ndarray = np.unique(np.concatenate([identical, *verified]), axis=0)
    return pairs


def same_picture(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether either picture explains the other, row by row.

    Both ways are tried, since a narrow window loses what a wide one shows.

    Args:
        first: Hashes, uint8, shape (m, HASH_BYTES).
        second: As `first`.

    Returns:
        Booleans, shape (m,).
    """
    one, other = (x.reshape(-1, SIDE, SIDE).astype(np.float32) / 255 - 0.5 for x in (first, second))
    same = np.zeros(len(one), bool)
    for source, target in ((one, other), (other, one)):
        rest = np.flatnonzero(~same)
        hopeful = rest[unexplained(source[rest], target[rest], steps=1) < _HOPELESS]
        same[hopeful] = unexplained(source[hopeful], target[hopeful]) < MAX_UNEXPLAINED
    return same


def unexplained(source: np.ndarray, target: np.ndarray, steps: int = 5) -> np.ndarray:
    """Share of the target's variance that the source, aligned to it, leaves unexplained.

    Alternates between a cubic grey curve and Lucas-Kanade's step for shift and scale of both axes. The
    worst 15 % of pixels do not count: a label, an arrow or a marker has no counterpart.

    Args:
        source: Pictures, float32, -0.5 to 0.5, shape (m, SIDE, SIDE).
        target: As `source`.
        steps: Of the alignment.

    Returns:
        0 to 1, shape (m,); infinite where hardly any contrast is left to compare.

    Source: Lucas and Kanade, An iterative image registration technique, IJCAI 1981.
    """
    wanted = _inner(target).reshape(len(target), (SIDE - 2 * _MARGIN) ** 2)
    weights = np.ones_like(wanted)
    motion = np.zeros((len(target), 4), np.float32)
    moved = source
    for _ in range(steps):
        curved = _grey_curve(moved, wanted, weights)
        weights = _trim(wanted - curved)
        motion = (motion + _motion_step(curved, target, weights)).clip(-_MAX_SHIFT, _MAX_SHIFT)
        moved = _move(source, motion)
    left = wanted - _grey_curve(moved, wanted, weights)
    weights = _trim(left)
    count = weights.sum(axis=1)
    mean = (weights * wanted).sum(axis=1) / count
    variance = (weights * (wanted - mean[:, None]) ** 2).sum(axis=1) / count
    enough = variance > _MIN_CONTRAST**2
    share: np.ndarray = np.where(enough, (weights * left**2).sum(axis=1) / count, np.inf)
    return share / np.where(enough, variance, 1)


def _inner(pictures: np.ndarray) -> np.ndarray:
    return pictures[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]  # a border or crop spoils the edge


def _grey_curve(moved: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The polynomial of the moved picture's grey values that fits best, shape of `wanted`."""
    grey = _inner(moved).reshape(wanted.shape)
    powers = np.stack([grey**power for power in range(_DEGREE + 1)], axis=1)
    curved: np.ndarray = (_solve(powers, wanted, weights, 1e-5)[:, None] @ powers)[:, 0]
    return curved


def _motion_step(curved: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shift along x and y and scale along x and y that reduce the difference, shape (m, 4)."""
    side = SIDE - 2 * _MARGIN
    grey = curved.reshape(-1, side, side)
    # The mean of both pictures' slopes converges faster than one alone.
    slope_y, slope_x = ((np.gradient(grey, axis=k) + _inner(np.gradient(target, axis=k))) / 2 for k in (1, 2))
    x = _inner(np.broadcast_to(_POSITION, target.shape))
    y = _inner(np.broadcast_to(_POSITION[:, None], target.shape))
    slopes = np.stack([np.ones_like(grey), slope_x, slope_y, x * slope_x, y * slope_y], axis=1)
    slopes = slopes.reshape(len(grey), 5, side * side)
    left = _inner(target).reshape(curved.shape) - curved
    return _solve(slopes, left, weights, 1e-4)[:, 1:]


def _solve(terms: np.ndarray, wanted: np.ndarray, weights: np.ndarray, ridge: float) -> np.ndarray:
    """Weighted least squares: coefficients of shape (m, p) for terms of (m, p, k)."""
    weighted = terms * weights[:, None]
    normal = weighted @ terms.transpose(0, 2, 1) + ridge * np.eye(terms.shape[1], dtype=np.float32)
    solution: np.ndarray = np.linalg.solve(normal, weighted @ wanted[..., None])[..., 0]
    return solution


def _trim(left: np.ndarray) -> np.ndarray:
    error = np.abs(left)
    kept = int((1 - _TRIMMED) * error.shape[1])
    return (error <= np.partition(error, kept, axis=1)[:, kept, None]).astype(np.float32)


def _move(pictures: np.ndarray, motion: np.ndarray) -> np.ndarray:
    across, down = (_interpolation(motion[:, k, None], motion[:, k + 2, None]) for k in (0, 1))
    moved: np.ndarray = down @ pictures @ across.transpose(0, 2, 1)
    return moved


def _interpolation(shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Catmull-Rom weights, shape (m, SIDE, SIDE), for new places in old pixels; edges are repeated."""
    places = (np.arange(SIDE, dtype=np.float32) + shift + scale * _POSITION).clip(0, SIDE - 1)
    d = np.abs(places[..., None] - np.arange(SIDE, dtype=np.float32))
    outer = np.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0)
    weights = np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, outer)
    normalised: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return normalised


_POSITION = ((np.arange(SIDE) - (SIDE - 1) / 2) / (SIDE / 2)).astype(np.float32)  # -1 to 1


def _identical(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pairs of a hash's first row and each later row with the same bytes."""
    factors = np.random.default_rng(0).integers(1, 2**63, HASH_BYTES // 4, dtype=np.uint64)
    prints = np.zeros(len(hashes), np.uint64)
    for column, factor in zip(np.ascontiguousarray(hashes).view(np.uint32).T, factors, strict=True):
        prints += column.astype(np.uint64) * factor
    order = rows[np.argsort(prints[rows], kind="stable")]
    starts = np.r_[True, prints[order[1:]] != prints[order[:-1]]] if len(order) else np.empty(0, bool)
    firsts = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]] if len(order) else order
    pairs = np.stack([firsts, order], axis=1)[~starts]
    same = np.array([(hashes[i] == hashes[j]).all() for i, j in pairs], dtype=bool)
    identical: np.ndarray = pairs[same]
    return identical


def _signs(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Signs of the 128 lowest cosine coefficients but the mean, booleans, shape (len(rows), 128)."""
    frequency = np.arange(SIDE)[:, None]
    waves = np.cos(np.pi * frequency * (np.arange(SIDE) + 0.5) / SIDE)
    order = sorted(((u, v) for u in range(SIDE) for v in range(SIDE)), key=lambda p: (sum(p), p))[1:129]
    basis = np.stack([np.outer(waves[u], waves[v]).ravel() for u, v in order], axis=1).astype(np.float32)
    signs = np.empty((len(rows), 128), bool)
    for start in range(0, len(rows), 1 << 15):
        part = slice(start, start + (1 << 15))
        signs[part] = hashes[rows[part]].astype(np.float32) @ basis > 0
    return signs


def _candidates(signs: np.ndarray) -> np.ndarray:
    """Pairs with at most `_MAX_DISTANCE` different signs, those few of each image with the fewest.

    Each table sorts by another order of the lowest 64 signs, and compares each image with the
    next few that share its first 16. So a bucket of a million images costs no more than others.
    """
    count = len(signs)
    words = np.packbits(signs, axis=1).view(np.uint64)
    shuffle = np.random.default_rng(1)
    pairs, distances = np.empty((0, 2), np.int64), np.empty(0, np.uint8)
    for _ in range(_TABLES):
        shuffled = np.packbits(np.ascontiguousarray(signs[:, shuffle.permutation(64)]), axis=1)
        keys = shuffled.view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        buckets, sorted_words = keys[order] >> np.uint64(64 - _BUCKET_BITS), words[order]
        alive = np.arange(count)
        for step in range(1, _WINDOW + 1):
            alive = alive[alive + step < count]
            alive = alive[buckets[alive] == buckets[alive + step]]
            different = np.bitwise_count(sorted_words[alive] ^ sorted_words[alive + step]).sum(1, np.uint8)
            close = alive[different <= _MAX_DISTANCE]
            found = np.sort(np.stack([order[close], order[close + step]], axis=1), axis=1)
            pairs = np.concatenate([pairs, found])
            distances = np.concatenate([distances, different[different <= _MAX_DISTANCE]])
        pairs, distances = _nearest(pairs, distances, count)
    return pairs


def _nearest(pairs: np.ndarray, distances: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Drop repeated pairs, and those that are among the nearest of neither of their images."""
    _, once = np.unique(pairs[:, 0] * count + pairs[:, 1], return_index=True)
    pairs, distances = pairs[once], distances[once]
    ends = pairs.T.ravel()
    order = np.lexsort((np.tile(distances, 2), ends))
    first_place = np.searchsorted(ends[order], ends[order])
    kept = np.empty(len(ends), bool)
    kept[order] = np.arange(len(ends)) - first_place < _NEAREST
    either = kept[: len(pairs)] | kept[len(pairs) :]
    return pairs[either], distances[either]
