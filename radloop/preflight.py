"""What can be known before training: it is said before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from radloop.config import DataConfig, JudgeConfig, RunConfig, SourceConfig, ValidationConfig
from radloop.errors import ConfigError, DataError, RadloopError
from radloop.tiny_run import provide_data, shrunk

if TYPE_CHECKING:
    from radloop.data.prepared import PreparedData
    from radloop.data.quality import ValidationReport


def base(config: RunConfig) -> str:
    """Find the base model, and make sure that it can be trained as the config says.

    Returns:
        The SHA-256 of its weights: another base under the same name is another input.

    Raises:
        ModelError: There is no such base, or it cannot be used.
        ConfigError: Settings that cannot work with each other, the family or this machine.
    """
    from radloop.training import preview  # brings torch, which checking data does not need

    return preview.require_trainable(config.model, config.finetune)


def judge(config: JudgeConfig) -> str:
    """Ask the config's judge one question, so that a run does not find out after its training.

    Returns:
        The judge's name, with model and host where it has them.

    Raises:
        JudgeError: It cannot be set up or reached.
    """
    from radloop.judging.judges import get_judge

    found = get_judge(config.judge)
    found.compare("Is this a chest radiograph?", ("yes",), "yes", "no")
    return found.name


def suites(config: ValidationConfig) -> None:
    """Read the expectations that the config adds, so that their faults show before the data are read.

    Raises:
        ConfigError: A file cannot be read, or holds faults; all of them are listed.
    """
    if config.suites:
        from radloop.data.quality.suites import load_suites

        load_suites([Path(path) for path in config.suites])


def packages() -> None:
    """Make sure that what the last step needs is installed.

    Raises:
        RadloopError: It is not; the message has the command that installs it.
    """
    if find_spec("bentoml") is None:
        raise RadloopError("BentoML is not installed; pip install 'radloop[serve]'")


def check_config(path: Path, folder: Path | None = None, *, tiny: bool = False) -> None:
    """Check a run config, what it needs, and its data; print what was found.

    Args:
        path: The config.
        folder: Where to put the data report, if anywhere.
        tiny: Check the run in small, as if the config said so.

    Raises:
        RadloopError: Something would stop the run.
    """
    from radloop.data.ingest import ingest
    from radloop.data.preprocess import preprocess
    from radloop.data.quality import validate

    settings = RunConfig.read(path)
    if tiny and not settings.tiny:
        settings = shrunk(settings).model_copy(update={"tiny": True})
    packages()
    provide_data(settings)
    corpus = _all_of(
        str(path),
        partial(suites, settings.validation),
        partial(judge, settings.judge),
        partial(base, settings),
        partial(ingest, settings.data),
    )
    report = validate(corpus, settings.validation)
    _show(report)
    _write(report, folder)
    report.require_accepted()
    prepared = preprocess(corpus, report, settings.preprocess, settings.seed)
    click.echo("splits: " + ", ".join(f"{name} {count:,}" for name, count in prepared.counts().items()))
    _show_training(prepared, settings)


def _all_of(where: str, *parts: Callable[[], Any]) -> Any:
    """Do all parts and return what the last one gives.

    Raises:
        RadloopError: Some failed; it has the messages of all that did, below `where`.
    """
    result, failed = None, []
    for part in parts:
        try:
            result = part()
        except RadloopError as error:
            failed.append(error)
    if failed:
        told = ["  - " + error.message.replace("\n", "\n    ") for error in failed]
        raise RadloopError("\n".join([f"{where}: cannot be run", *told]))
    return result


def check_dataset(
    adapter: str, path: Path, options: list[str], *, as_json: bool, deidentify: bool, folder: Path | None
) -> bool:
    """Check data by themselves and print what was found.

    Args:
        adapter: Name of the adapter.
        path: Of the data.
        options: "KEY=VALUE" of the adapter, values as in YAML.
        as_json: Print one JSON object and nothing else.
        deidentify: Take identifiers out first, so that none is printed.
        folder: Where to put the data report, if anywhere.

    Returns:
        Whether the data can be used as they are.

    Raises:
        RadloopError: They cannot be read at all; as JSON this is the object {"error": ...}.
    """
    from radloop.data.ingest import ingest
    from radloop.data.quality import validate

    try:
        # Not validated, because a path as typed is no template: the shell has replaced its variables.
        source = SourceConfig.model_construct(adapter=adapter, path=str(path), options=_parsed(options))
        config = DataConfig(sources=(source,), deidentify=deidentify)
        report = validate(ingest(config), ValidationConfig())
        _write(report, folder, quiet=as_json)
    except RadloopError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"error": error.message}))
        return False
    if as_json:
        click.echo(json.dumps(report.counts(), indent=2))
    else:
        _show(report)
    return not report.summary["rejected"]


def _show_training(data: PreparedData, settings: RunConfig) -> None:
    from radloop.training import preview

    for line in preview.preview(data, settings.model, settings.finetune, settings.seed):
        click.echo(line)


def _parsed(options: list[str]) -> dict[str, Any]:
    parsed = {}
    for text in options:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--option: got {text!r}; needed is KEY=VALUE")
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--option {name}: {' '.join(str(error).split())}") from None
    return parsed


def _show(report: ValidationReport) -> None:
    for key, value in report.facts().items():
        click.echo(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")
    for found in report.summary["reasons"]:
        click.echo(f"{found['severity']}: {found['samples']:,} samples: {found['reason']}; {found['remedy']}")
        click.echo(f"    first: {found['example']}")
    for reason, count in report.summary["left_out"].items():
        click.echo(f"left out: {count:,} rows: {reason}")
    for kind, count in report.summary["removed"].items():
        click.echo(f"identifiers removed: {count:,} {kind}")


def _write(report: ValidationReport, folder: Path | None, *, quiet: bool = False) -> None:
    """Put the report's pages and all its findings into a folder."""
    if folder is None:
        return
    from pyarrow import csv

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, page in report.pages.items():
            (folder / name).write_text(page, encoding="utf-8")
        csv.write_csv(report.findings, folder / "findings.csv")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); name another --report") from None
    if not quiet:
        click.echo(f"report: {folder / 'validation.html'}; every finding: {folder / 'findings.csv'}")
