"""Which shortcuts a run may take without changing what it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radloop.config import FinetuneConfig
from radloop.errors import ConfigError, unknown
from radloop.models.family import Family


@dataclass(frozen=True)
class Plan:
    """What null in a config comes to.

    Attributes:
        cache_features: An image's features are computed once.
        in_graph: They are computed with gradient, because layers before them are trained.
    """

    cache_features: bool
    in_graph: bool


def make_plan(family: Family, config: FinetuneConfig) -> Plan:
    """Settle what a config leaves open.

    Raises:
        ConfigError: A group of layers is unknown, or a shortcut is asked for that would not be exact; the
            message lists all faults.
    """
    faults = target_faults(family, config.targets)
    upstream = [name for name in config.targets if _group_of(name) in family.upstream]
    if config.cache_features and upstream:
        faults.append(
            f"finetune.cache_features: got true, but finetune.targets has {', '.join(upstream)}, whose "
            "training changes the features; leave it out, or train other groups"
        )
    if faults:
        raise ConfigError("\n".join(faults))
    exact = not upstream and not config.augment
    return Plan(
        cache_features=config.cache_features is not False and exact,
        in_graph=bool(upstream),
    )


def target_faults(family: Family, targets: Sequence[str]) -> list[str]:
    """Return what is wrong with the names of the groups of layers to train."""
    if not targets:
        return [f"finetune.targets: got none; known: {', '.join(family.targets)}"]
    return [
        f"finetune.targets: {unknown('group of layers', _group_of(name), family.targets)} (a single "
        "layer of a group is GROUP.LAYER)"
        for name in targets
        if _group_of(name) not in family.targets
    ]


def _group_of(target: str) -> str:
    """Return 'attention' of 'attention.q_proj'."""
    return target.partition(".")[0]
