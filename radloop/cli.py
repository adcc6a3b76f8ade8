"""The `radloop` command: starts runs, shows and moves model versions, serves the champion."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from radloop import workspace
from radloop.config import DEFAULT_CONFIG, RunConfig
from radloop.errors import ConfigError, RadloopError
from radloop.tiny_run import shrink_file

app = typer.Typer(
    help="From radiology images and questions to a promoted, served vision-language model, and around again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ConfigPath = Annotated[Path, typer.Option("--config", "-c", help="run config, a file of configs/")]
Tiny = Annotated[
    bool, typer.Option("--tiny", help="in small, offline: simulated data, a random model of the same family")
]
ModelName = Annotated[str, typer.Option("--name", help="registered model")]
RESTART = "A running `radloop serve` keeps its version until it is started again."
SERVING = ("bentoml", "gradio", "httpx")
DEFAULT_NAME = RunConfig.model_fields["model_name"].default


@app.callback()
def _before_any_command() -> None:
    workspace.require_writable()


@app.command()
def run(config: ConfigPath = DEFAULT_CONFIG, tiny: Tiny = False) -> None:
    """Run the training pipeline and print what came out."""
    from pipelines.train import train_pipeline
    from radloop import summary

    file = shrink_file(config) if tiny else config
    finished = train_pipeline.with_options(config_path=str(file))()
    if finished is None:
        typer.echo("the orchestrator took the run; follow it in ZenML's dashboard")
    else:
        summary.show_run(finished, config, tiny=tiny)


@app.command()
def check(
    place: Annotated[
        Path, typer.Argument(help="run config; with --dataset the data themselves", show_default=True)
    ] = DEFAULT_CONFIG,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="check data without a config: name of an adapter")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="of the adapter, such as language=zh; repeatable"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines; with --dataset")] = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="take identifiers out first; with --dataset")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="folder for the data report (HTML) and all findings (CSV)"),
    ] = None,
    tiny: Tiny = False,
) -> None:
    """Check a run config and its data, or data alone, without training: all faults, exit code 2."""
    from radloop import preflight

    if dataset is None:
        if option or as_json or deidentify:
            raise ConfigError(
                "--option, --json and --deidentify belong to --dataset NAME; a config holds its own options"
            )
        preflight.check_config(place, report, tiny=tiny)
    elif tiny:
        raise ConfigError("--tiny belongs to a run config; data are checked as they are")
    elif not preflight.check_dataset(
        dataset, place, option or [], as_json=as_json, deidentify=deidentify, folder=report
    ):
        raise typer.Exit(RadloopError.exit_code)


@app.command()
def phantoms(
    folder: Annotated[Path, typer.Argument(help="new folder")],
    layout: Annotated[str, typer.Option("--format", help="data set, or DATASET:LAYOUT")],
    train: Annotated[int, typer.Option(min=1, help="studies")] = 20,
    validation: Annotated[int, typer.Option(min=0, help="studies")] = 4,
    test: Annotated[int, typer.Option(min=0, help="studies")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    size: Annotated[int, typer.Option(min=48, max=1024, help="edge in pixels, a multiple of 12")] = 96,
) -> None:
    """Write simulated patients to disk in the layout of a published data set."""
    from radloop.data.phantoms import formats

    if size % 12:
        raise ConfigError(f"--size: got {size}; needed is a multiple of 12")
    cohort = formats.Cohort(train, validation, test, seed, size)
    formats.write(layout, folder, cohort)
    dataset = layout.partition(":")[0]
    typer.echo(f"{folder}: {train + validation + test:,} studies as {layout}")
    typer.echo(f"read them with: radloop check --dataset {dataset} {folder}")


@app.command()
def models(
    name: Annotated[str | None, typer.Option("--name", help="only this registered model")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """List model versions with aliases, scores, data fingerprint, Bento and verdict."""
    from radloop import registry, summary

    names = [name] if name else registry.names()
    found = [version for known in names for version in registry.versions(known)]
    if as_json:
        typer.echo(json.dumps([registry.describe(version) for version in found], indent=2))
    elif found:
        summary.list_versions(found)
    else:
        typer.echo("no model is registered yet; `make demo` trains the first")


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="version number, see `radloop models`")],
    reason: Annotated[str, typer.Option(help="kept in the audit log")] = "promoted by hand",
    name: ModelName = DEFAULT_NAME,
) -> None:
    """Make a version the champion by hand; the audit log keeps who, when and why."""
    from radloop import registry

    champion = registry.champion(name)
    if champion is not None and champion.version == version:
        typer.echo(f"{name} version {version} is the champion already; nothing changed")
        return
    verdict = registry.version(name, version).tags.get("reason", "no verdict of the gates")
    registry.promote(name, version, f"{reason}; before that: {verdict}")
    typer.echo(f"{name} version {version} is the champion now, by hand; of the run it has: {verdict}")
    typer.echo(f"`radloop rollback` undoes it. {RESTART}")


@app.command()
def rollback(name: ModelName = DEFAULT_NAME) -> None:
    """Give the champion's place back to its predecessor."""
    from radloop import registry

    typer.echo(f"{name} version {registry.rollback(name).version} is the champion again. {RESTART}")


@app.command()
def merge(
    version: Annotated[int, typer.Argument(help="version number, see `radloop models`")],
    folder: Annotated[Path, typer.Argument(help="new folder for the checkpoint")],
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; default: the one that the base computes in")
    ] = None,
    name: ModelName = DEFAULT_NAME,
) -> None:
    """Write a version as one stock checkpoint, adapter and base in one, checked to answer as the two do."""
    from radloop import registry
    from radloop.answering import AnswerConfig
    from radloop.training import merged_checkpoint
    from radloop.training.adapter import Adapter

    adapter = Adapter.load(registry.adapter_folder(registry.version(name, version)))
    found = merged_checkpoint.merge(adapter, folder, precision, AnswerConfig.read(adapter.folder))
    typer.echo(
        f"{folder}: {name} version {version} in {found.precision}, for AutoModelForImageTextToText; its "
        f"logits are within {found.max_difference:.1e} of base and adapter, rounding explains "
        f"{found.tolerance:.1e}"
    )


@app.command()
def serve(
    name: ModelName = DEFAULT_NAME,
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 opens it to the network")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
) -> None:
    """Serve the champion: POST /answer, GET /model, health at /readyz. Stops with Ctrl+C."""
    from deployment.serve import run_service

    run_service(name, host=host, port=port)


@app.command("app")
def page(
    endpoint: Annotated[str, typer.Option(help="where `radloop serve` listens")] = "http://127.0.0.1:3000",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """Open the chat page on a served model: upload an image, ask, read the answer."""
    from deployment.app import run_app

    run_app(endpoint, host=host, port=port)


@app.command()
def retrain(
    config: ConfigPath = DEFAULT_CONFIG,
    if_new_data: Annotated[bool, typer.Option("--if-new-data", help="only if the data changed")] = False,
) -> None:
    """Run the loop once more: the new version has to beat the champion."""
    from radloop import registry
    from radloop.data.ingest import ingest

    settings = RunConfig.read(config)
    champion = registry.champion(settings.model_name)
    if if_new_data and champion is not None:
        now = ingest(settings.data).fingerprint
        if now == champion.fingerprint:
            typer.echo(f"nothing to do: the data are those of champion version {champion.version} ({now})")
            return
        typer.echo(
            f"retraining: the data are {now}, champion version {champion.version} saw {champion.fingerprint}"
        )
    else:
        typer.echo(
            "retraining: "
            + (
                "asked to; what has not changed comes from the cache"
                if champion
                else "there is no champion yet"
            )
        )
    run(config)


@app.command()
def schedule(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Register the config's cron expression with the active stack's orchestrator."""
    from pipelines.schedule import register_schedule

    typer.echo(register_schedule(config))


def main() -> None:
    """Run the command; what the user can mend is one message on standard error, exit code 2."""
    if not sys.stdout.isatty():
        os.environ.setdefault("ZENML_LOGGING_COLORS_DISABLED", "true")
    try:
        app()
    except RadloopError as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in SERVING:
            raise
        sys.exit(f"Error: {error.name} is not installed; pip install 'radloop[serve]'")
