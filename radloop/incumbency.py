"""Which version a run has to beat, and what makes two runs the same run."""

from __future__ import annotations

import hashlib

from radloop import registry, source
from radloop.config import RunConfig


def resolve(run: RunConfig, fingerprint: str) -> tuple[str, dict[str, str]]:
    """Find the version to beat and describe where a new version comes from.

    A repeated run (same config, data and code as the champion's own) is held against what the
    champion had to beat, not against itself: all its steps then come from the cache.

    Returns:
        The incumbent as "name/version", empty when only the base is to be beaten; and the tags
        `fingerprint`, `recipe`, `incumbent`, `dataset` and `base` of the version to come.
    """
    text = "\n".join([run.model_dump_json(), fingerprint, source.code_hash()])
    recipe = hashlib.sha256(text.encode()).hexdigest()[:16]
    champion = registry.champion(run.model_name)
    if champion is None:
        incumbent = ""
    elif champion.tags.get("recipe") == recipe:
        incumbent = champion.tags["incumbent"]
    else:
        incumbent = f"{run.model_name}/{champion.version}"
    return incumbent, {
        "fingerprint": fingerprint,
        "recipe": recipe,
        "incumbent": incumbent,
        "dataset": run.data.adapter,
        "base": run.model.base,
    }


def version_of(incumbent: str) -> registry.Version:
    """Look up a version by "name/version"."""
    name, number = incumbent.rsplit("/", 1)
    return registry.version(name, int(number))
