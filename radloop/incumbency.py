"""Which version a run has to beat, and what makes two runs the same run."""

from __future__ import annotations

import hashlib
from typing import Any

from radloop import registry, source
from radloop.config import RunConfig
from radloop.errors import RegistryError


def resolve(run: RunConfig, fingerprint: str, base_sha256: str) -> tuple[str, dict[str, str]]:
    """Find the version to beat and describe where a new version comes from.

    A repeated run (same config, data and code as the champion's own) is held against what the
    champion had to beat, not against itself: all its steps then come from the cache.

    Returns:
        The incumbent as "name/version", empty when only the base is to be beaten; and the tags
        `fingerprint`, `recipe`, `incumbent`, `split`, `dataset` and `base` of the version to come.
    """
    # Where the data lie, who reads them and when the run is due do not make it another run.
    elsewhere: dict[str, Any] = {"sources": {"__all__": {"path"}}, "workers": True, "engine": True}
    settings = run.model_dump_json(exclude={"data": elsewhere, "schedule": True})
    text = "\n".join([settings, fingerprint, base_sha256, source.code_hash()])
    recipe = hashlib.sha256(text.encode()).hexdigest()[:16]
    champion = registry.champion(run.model_name)
    if champion is None:
        incumbent = ""
    elif champion.tags.get("recipe") == recipe:
        incumbent = champion.tags.get("incumbent", "")
    else:
        incumbent = f"{run.model_name}/{champion.version}"
    return incumbent, {
        "fingerprint": fingerprint,
        "recipe": recipe,
        "incumbent": incumbent,
        "split": run.preprocess.split,
        "dataset": " + ".join(source.adapter for source in run.data.sources),
        "base": f"tiny-{run.model.family}" if run.model.tiny else run.model.base,
    }


def split_to_keep(run: RunConfig, incumbent: str) -> str:
    """Return the version whose split this run must extend, "" where it makes its own.

    A champion that has trained on an image must not be compared on it.
    """
    if not incumbent or run.preprocess.split == "official":
        return ""
    return incumbent if version_of(incumbent).tags.get("split") == run.preprocess.split else ""


def require_reigning(model_name: str, incumbent: str, challenger: int) -> None:
    """Make sure that the version which the challenger was compared with is still the one to beat.

    Raises:
        RegistryError: Somebody moved the champion while the run was under way.
    """
    champion = registry.champion(model_name)
    reigning = "" if champion is None else f"{model_name}/{champion.version}"
    if reigning not in (incumbent, f"{model_name}/{challenger}"):
        raise RegistryError(
            f"the champion of {model_name!r} is now {reigning or 'nobody'}, but version {challenger} was "
            f"compared with {incumbent or 'the base'}; run again, to compare it with the new one"
        )


def version_of(incumbent: str) -> registry.Version:
    """Look up a version by "name/version"."""
    name, number = incumbent.rsplit("/", 1)
    return registry.version(name, int(number))
