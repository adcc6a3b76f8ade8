"""Splits by group that stay as they are when the data grows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "validation", "test")


def assign(groups: Iterable[str], seed: int, validation: float, test: float) -> dict[str, str]:
    """Give each group its split by a keyed hash of its name.

    New groups never move an old one to another split, neither does their order, and a larger test
    share keeps the old test groups. The price: the shares hold on average only (with n groups
    within about sqrt(share * (1 - share) / n)), and a split of few groups may come out empty.

    Args:
        groups: Names of what must not be torn apart: image, study or patient.
        seed: Another seed gives another, independent split.
        validation: Share of groups, 0 to 1.
        test: Share of groups, 0 to 1; `validation + test` is at most 1.

    Returns:
        Group name to "train", "validation" or "test".
    """
    if not (validation >= 0 and test >= 0 and validation + test <= 1):
        raise ValueError(
            f"got validation {validation} and test {test}; needed are shares with a sum of at most 1"
        )

    def split(group: str) -> str:
        place = _place(group, seed)
        if place < test:
            return "test"
        return "validation" if place < test + validation else "train"

    return {group: split(group) for group in groups}


def merge(memberships: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """Join groups that share a picture, so that no split can put it on both sides.

    A joined group takes the smallest of its names. A new group that shares a picture with an old
    one may therefore, alone among all additions, change the old one's split.

    Args:
        memberships: Pairs of a group and the pictures it uses.

    Returns:
        Each group's joined name; its own where it shares nothing.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    groups = []
    for group, pictures in memberships:
        groups.append(group)
        for node in [f"group:{group}", *(f"picture:{picture}" for picture in pictures)]:
            low, high = sorted((root(f"group:{group}"), root(node)))  # "group:" sorts before "picture:"
            parent[high] = low
    return {group: root(f"group:{group}").removeprefix("group:") for group in groups}


def _place(group: str, seed: int) -> float:
    """A number in [0, 1) that looks random but depends on the group's name and the seed only."""
    digest = hashlib.blake2b(group.encode(), key=str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
