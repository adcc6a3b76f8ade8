"""How a run would need less memory, and how much then."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.errors import ConfigError
from radloop.models.precision import choose_precision
from radloop.training.batching import row_length
from radloop.training.estimate import Memory, Setting, estimate_memory, sketch_with_lora
from radloop.training.launch_file import is_divided


def estimate_in_words(data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int) -> str:
    """Say what a run that did not fit is estimated to need, and with which changes it would need less."""
    setting = Setting.of(data, model, config, seed)
    memory = estimate_memory(setting)
    less = [f"{size_in_words(total)} with {change}" for change, total in savings(setting, memory)]
    where = "in all"
    if config.launch is not None:
        divided = is_divided(config.launch, model)
        where = "for one copy, which the processes divide" if divided else "in each process"
    return f"It is estimated to need {size_in_words(memory.total)} {where}" + "".join(
        f"; {part}" for part in less
    )


def savings(setting: Setting, memory: Memory) -> Iterator[tuple[str, int]]:
    """Yield changes of the config that save at least a twentieth, with the memory that is needed then."""
    config, model, family = setting.config, setting.model, setting.sketch.family
    num_tokens = max(len(rows) * max(map(row_length, rows)) for rows in setting.passes())
    changes: list[tuple[str, dict[str, Any]]] = []
    if not config.gradient_checkpointing:
        checkpointing = config.model_copy(update={"gradient_checkpointing": True})
        changes.append(("finetune.gradient_checkpointing: true", {"config": checkpointing}))
    for part in (2, 4, 8):
        fewer = config.model_copy(update={"tokens_per_pass": num_tokens // part})
        changes.append((f"finetune.tokens_per_pass: {num_tokens // part}", {"config": fewer}))
    for precision in ("bf16", "nf4"):
        if precision in family.precisions and choose_precision(model, family) not in (precision, "nf4"):
            smaller = model.model_copy(update={"precision": precision})
            changes.append((f"model.precision: {precision}", {"model": smaller}))
    for name, change in changes:
        try:
            total = estimate_memory(_changed(setting, change)).total
        except ConfigError:  # what it needs is not installed
            continue
        if total < 0.95 * memory.total:
            yield name, total


def _changed(setting: Setting, change: dict[str, Any]) -> Setting:
    if "model" not in change:
        return dataclasses.replace(setting, **change)
    return dataclasses.replace(setting, sketch=sketch_with_lora(change["model"], setting.config), **change)


def image_savings(setting: Setting) -> str:
    """Return what half as large images would do to the longest head, if it does anything."""
    prompts, data = setting.sketch.prompts, setting.data
    sizes = {
        data.size(name) for found in setting.train.sets for group in found.groups for name in group.image_ids
    }
    if not sizes:
        return ""
    now = {size: sum(prompts.placement(size).runs) for size in sizes}
    width, height = max(sizes, key=now.__getitem__)
    half = sum(prompts.placement((width // 2, height // 2)).runs)
    most = now[width, height]
    if half >= most:
        return ""
    return f"half the preprocess.image_size: {half:,} tokens an image in place of {most:,}"


def size_in_words(num_bytes: int) -> str:
    """Return a number of bytes as MB or GB."""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.1f} GB"
