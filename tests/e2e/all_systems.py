"""Runs every config of configs/systems in small, in one process; prints what came out, a line of JSON each.

It is run inside a project: a start of ZenML and MLflow for each config would take longer than the runs.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from zenml.client import Client

from radloop import cli, registry
from radloop.models.loading import Loaded
from radloop.training import loop, trainer

SEEN: dict[str, Any] = {}


def watch_training() -> None:
    """Note what a record does not say: the optimiser that was made, and the layers that were trained."""
    make_optimizer, with_lora = trainer.make_optimizer, loop.with_lora

    def making(*arguments: Any) -> torch.optim.Optimizer:
        made = make_optimizer(*arguments)
        SEEN["optimizer"] = f"{type(made).__module__.split('.')[0]}.{type(made).__name__}"
        return made

    def putting(*arguments: Any) -> Loaded:
        loaded = with_lora(*arguments)
        bases = [module.get_base_layer() for module in loaded.model.modules() if hasattr(module, "lora_A")]
        SEEN["layers"] = sorted({f"{type(layer).__name__} {layer.weight.dtype}" for layer in bases})
        return loaded

    trainer.make_optimizer, loop.with_lora = making, putting


def facts(model_name: str) -> dict[str, Any]:
    """Return what the last run left in the stores."""
    run = Client().list_pipeline_runs(size=1, sort_by="desc:created").items[0]
    output = {name: found[0].load() for step in run.steps.values() for name, found in step.outputs.items()}
    prepared, report, adapter = output["prepared_data"], output["validation_report"], output["adapter"]
    samples = prepared.samples.to_pylist()
    with safe_open(adapter.folder / "adapter_model.safetensors", "pt") as weights:
        trained = sorted({name.split(".lora_")[0].split(".")[-1] for name in weights.keys()})  # noqa: SIM118
        blocks = sorted({name.split(".layers.")[0].split(".layer.")[0] for name in weights.keys()})  # noqa: SIM118
        ranks = sorted({min(weights.get_slice(name).get_shape()) for name in weights.keys()})  # noqa: SIM118
    (version,) = registry.versions(model_name)
    return {
        "steps": {name: str(step.status) for name, step in run.steps.items()},
        "record": adapter.record,
        "base": json.loads((adapter.folder / "base.json").read_text()),
        "trained": trained,
        "blocks": blocks,
        "ranks": ranks,
        "datasets": sorted({sample["dataset"] for sample in samples}),
        "tasks": sorted({sample["task"] for sample in samples}),
        "languages": sorted({sample["language"] for sample in samples}),
        "prompts": sorted({sample["prompt"] for sample in samples})[:20],
        "splits": Counter(sample["split"] for sample in samples),
        "images": Counter(len(sample["image_ids"]) for sample in samples),
        "published_test": sum(sample["published_test"] for sample in samples),
        "published_in_training": sum(
            sample["published_test"] and sample["split"] in ("train", "validation") for sample in samples
        ),
        "contexts": sum(bool(sample["context"]) for sample in samples),
        "patients": sorted({sample["patient"] for sample in samples}),
        "size": max(max(row["width"], row["height"]) for row in prepared.images.to_pylist()),
        "counts": report.counts(),
        "metrics": output["evaluation_report"].metrics,
        "answered": sorted(set(output["evaluation_report"].predictions["system"].to_pylist())),
        "judge": output["judge_report"].facts()["judge"],
        "promoted": output["promotion_decision"].promoted,
        "split": registry.split_of(version),
        "version": registry.describe(version) | {"tags": version.tags},
    }


def main() -> None:
    watch_training()
    for name in sys.argv[1:]:
        SEEN.clear()
        config = Path("configs") / "systems" / f"{name}.yaml"
        try:
            cli.app(["run", "-c", str(config), "--tiny"], standalone_mode=False)
            settings = cli.RunConfig.read(config)
            found = SEEN | facts(f"{settings.model_name}-tiny")
            found["adapters"] = [source.adapter for source in settings.data.sources]
        except Exception as error:  # the others are to run all the same
            found = {"error": f"{type(error).__name__}: {error}"}
        print("FACTS " + json.dumps({"name": name} | found, default=str), flush=True)


if __name__ == "__main__":
    main()
