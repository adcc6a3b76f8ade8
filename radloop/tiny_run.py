"""A run in small: the same pipeline on phantoms in the same layout and a random model of the same family.

It proves without a GPU, offline and in minutes, that a config for a large GPU and gated data does
what it says; its scores mean nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from radloop import __version__, workspace

if TYPE_CHECKING:
    from radloop.config import RunConfig, SourceConfig

_STUDIES = {"train": 8, "validation": 2, "test": 4}
_LAYOUTS = {"roco": "roco:chest"}  # where not the first of a data set's; see configs/systems
_TEST_SHARE = 0.2  # of a handful of studies, at least
_STEPS = 4
_IMAGES_PER_STEP = 4
# Random weights are ten times as large as trained ones; so has to be what is learnt, else it is lost where
# merged weights are rounded to bf16.
_RATE = 10
_PIXELS = 96
_NEW_TOKENS = 8
_RESAMPLES = 200
_ELSEWHERE = ("reports", "database", "images")  # options that name places; the phantoms' are found without


def shrunk(config: RunConfig) -> RunConfig:
    """Return the config with phantoms, a random model and few steps, for any machine and without a network.

    The model's name gets an end of its own. Smaller are images, batches, answers and the number of
    resamples; larger are the learning rate and, where it is below a fifth, the test split. `model.max_pixels`
    and `finetune.launch` are left out, and the judge is the offline one. All else stays as it is,
    precision and optimiser included, which may need the extra `quantized`.
    """
    sources = tuple(_phantoms(source, number) for number, source in enumerate(config.data.sources))
    preprocess, finetune, evaluation = config.preprocess, config.finetune, config.evaluation
    num_steps = min(finetune.max_steps or _STEPS, _STEPS)
    few: dict[str, Any] = {
        "images_per_step": min(finetune.images_per_step, _IMAGES_PER_STEP),
        "max_steps": num_steps,
        "learning_rate": _RATE * finetune.learning_rate,
        "launch": None,
    }
    for name in ("warmup_steps", "validate_every"):
        if (count := getattr(finetune, name)) is not None:
            few[name] = min(count, num_steps // 2 or 1)
    small = {
        "image_size": min(preprocess.image_size, _PIXELS),
        "test": max(preprocess.test, min(_TEST_SHARE, (1 - preprocess.validation) / 2)),
    }
    less = {
        "max_new_tokens": min(evaluation.max_new_tokens, _NEW_TOKENS),
        "resamples": min(evaluation.resamples, _RESAMPLES),
    }
    changes = {
        "model_name": f"{config.model_name[:45]}-tiny",
        "data": config.data.model_copy(update={"sources": sources}),
        "preprocess": preprocess.model_copy(update=small),
        "model": config.model.model_copy(update={"tiny": True, "max_pixels": None}),
        "finetune": finetune.model_copy(update=few),
        "evaluation": evaluation.model_copy(update=less),
        "judge": config.judge.model_copy(update={"judge": "offline"}),
    }
    return config.model_copy(update=changes)


def shrink_file(file: Path) -> Path:
    """Write a copy of a config file that has `tiny: true`, below the state folder, and return its path.

    Raises:
        ConfigError: The file holds faults, which are named by their places in it.
    """
    from radloop.config import RunConfig

    RunConfig.read(file)
    content = yaml.safe_load(file.read_text())
    content["parameters"]["config"]["tiny"] = True
    text = yaml.safe_dump(content, sort_keys=False)
    # Another config may have the same name, and the same config another.
    digest = hashlib.sha256(f"{file.name}\n{text}".encode()).hexdigest()[:12]
    folder = made_once(f"config-{digest}", lambda empty: (empty / file.name).write_text(text))
    return folder / file.name


def provide_data(config: RunConfig) -> None:
    """Write the phantoms that a shrunk config reads, unless they are there already."""
    from radloop.data.phantoms import formats

    if not config.tiny:
        return
    for number, source in enumerate(config.data.sources):
        if source.adapter in formats.REGISTRY:
            layout = _LAYOUTS.get(source.adapter, source.adapter)
            cohort = formats.Cohort(**_STUDIES, seed=number)
            made_once(_name(source.adapter, number), partial(formats.write, layout, cohort=cohort))


def made_once(name: str, write: Callable[[Path], object]) -> Path:
    """Return a folder of this version's below the state folder, written when first asked for.

    Args:
        name: Of the folder.
        write: Gets an empty folder and fills it, always with the same.

    Raises:
        RadloopError: The state folder cannot be written.
    """
    folder = _place(name)
    if folder.is_dir():
        return folder
    workspace.require_writable()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved, so that a killed run leaves no half of it, and others may do so meanwhile.
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        write(scratch)
        scratch.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, and wrote the same
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _phantoms(source: SourceConfig, number: int) -> SourceConfig:
    from radloop.data.phantoms import formats

    if source.adapter not in formats.REGISTRY:
        return source
    options = {name: value for name, value in source.options.items() if name not in _ELSEWHERE}
    place = str(_place(_name(source.adapter, number)))
    return source.model_copy(update={"path": place, "options": options})


def _name(adapter: str, number: int) -> str:
    return f"{adapter}-{number}"


def _place(name: str) -> Path:
    return workspace.home() / "tiny" / f"{name}-{__version__}"
