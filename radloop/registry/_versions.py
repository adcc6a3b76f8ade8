"""What is registered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from radloop.errors import RegistryError
from radloop.registry._client import connect

CHAMPION, CHALLENGER = "champion", "challenger"
SPLIT_FILE = "split.json"
METRICS = ("exact_match", "exact_match_base", "exact_match_blind", "exact_match_shuffled", "n")


@dataclass(frozen=True)
class Version:
    """One registered version: what it is made of, how it scored, what was decided on it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    metrics: dict[str, Any]
    run_id: str | None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the corpus it was trained on; empty if it was registered without one."""
        return self.tags.get("fingerprint", "")


def names() -> list[str]:
    """Return the names of all registered models."""
    with connect() as client:
        return sorted(model.name for model in client.search_registered_models())


def versions(model_name: str) -> list[Version]:
    """Return all versions, newest first; an empty list if the model is unknown."""
    with connect() as client:
        return find(client, model_name)


def version(model_name: str, number: int) -> Version:
    """Return one version.

    Raises:
        RegistryError: There is none of that number; the message lists the known ones.
    """
    with connect() as client:
        return get(client, model_name, number)


def champion(model_name: str) -> Version | None:
    """Return the version that serves, or None while none was promoted."""
    return next((row for row in versions(model_name) if CHAMPION in row.aliases), None)


def adapter_folder(version: Version) -> Path:
    """Return a local folder with the version's adapter files and its `answer.json`."""
    with connect() as client:
        source = client.get_model_version_download_uri(version.name, str(version.version))
        return Path(mlflow.artifacts.download_artifacts(f"{source}/artifacts/adapter"))


def split_of(version: Version) -> dict[str, str]:
    """Return the split by key of picture or person, as the version was trained and tested."""
    with connect() as client:
        source = client.get_model_version_download_uri(version.name, str(version.version))
        file = mlflow.artifacts.download_artifacts(f"{source}/artifacts/{SPLIT_FILE}")
    split: dict[str, str] = json.loads(Path(file).read_text())
    return split


def describe(version: Version) -> dict[str, Any]:
    """Return the facts on a version that `radloop models --json` prints."""
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "metrics": {name: version.metrics.get(name) for name in METRICS},
        "fingerprint": version.fingerprint,
        "bento": version.tags.get("bento"),
        "promoted": version.tags.get("promoted") == "true",
        "reason": version.tags.get("reason", ""),
    }


def find(client: mlflow.MlflowClient, model_name: str) -> list[Version]:
    """Return all versions, newest first."""
    try:
        model = client.get_registered_model(model_name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    aliases = {alias: int(number) for alias, number in model.aliases.items()}
    found: list[ModelVersion] = []
    page: str | None = None
    while page != "":
        batch = client.search_model_versions(f"name='{model_name}'", max_results=1000, page_token=page)
        found += batch
        page = batch.token or ""
    rows = [_read(row, aliases) for row in found]
    return sorted(rows, key=lambda row: row.version, reverse=True)


def _read(row: ModelVersion, aliases: dict[str, int]) -> Version:
    tags = dict(row.tags)
    metrics = json.loads(tags.pop("metrics", "{}"))
    number = int(row.version)
    return Version(
        name=row.name,
        version=number,
        aliases=tuple(sorted(alias for alias, of in aliases.items() if of == number)),
        tags=tags,
        metrics=metrics,
        run_id=row.run_id or None,
    )


def get(client: mlflow.MlflowClient, model_name: str, number: int) -> Version:
    """Return one version of `find`, or fail with the known ones."""
    for row in find(client, model_name):
        if row.version == number:
            return row
    raise RegistryError(f"{model_name!r} has no version {number}; {list_known(client, model_name)}")


def list_known(client: mlflow.MlflowClient, model_name: str) -> str:
    numbers = [str(row.version) for row in find(client, model_name)]
    if numbers:
        return f"known versions: {', '.join(numbers)}"
    models = [model.name for model in client.search_registered_models()]
    return f"known models: {', '.join(models)}" if models else "no model is registered yet; run `make demo`"


def champion_number(client: mlflow.MlflowClient, model_name: str) -> int | None:
    return next((row.version for row in find(client, model_name) if CHAMPION in row.aliases), None)


def set_tags(client: mlflow.MlflowClient, model_name: str, number: int, **tags: str) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(model_name, str(number), key, value)
