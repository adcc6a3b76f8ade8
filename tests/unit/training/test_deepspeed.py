"""What DeepSpeed gets to know of a run. It is not installed here: accelerate's own code hands it over."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator, accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils import deepspeed as accelerate_deepspeed

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.models.loading import Loaded
from radloop.training import trainer
from radloop.training.adapter import with_lora
from radloop.training.batching import Batches
from radloop.training.examples import read_examples
from radloop.training.optimizers import make_optimizer
from radloop.training.pictures import FeatureSource
from radloop.training.plan import make_plan
from radloop.training.processes import make_accelerator, prepare
from tests.unit.tiny import prepared, save_base

CONFIG = Path(__file__).parents[3] / "configs" / "accelerate" / "deepspeed_zero2.yaml"
DATA = prepared(4)


@pytest.fixture
def base(tmp_path: Path) -> ModelConfig:
    return ModelConfig(base=str(save_base(tmp_path)))


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a stand-in for `deepspeed.initialize` is called with."""
    found: dict[str, Any] = {}

    def initialize(**arguments: Any) -> tuple[Any, ...]:
        found.update(arguments)
        optimizer = SimpleNamespace(overflow=False, param_groups=arguments["optimizer"].param_groups)
        return SimpleNamespace(get_global_grad_norm=lambda: 2.5), optimizer, None, None

    module, schedules = ModuleType("deepspeed"), ModuleType("deepspeed.runtime.lr_schedules")
    module.initialize = initialize  # type: ignore[attr-defined]
    schedules.VALID_LR_SCHEDULES = []  # type: ignore[attr-defined]
    module.runtime = SimpleNamespace(lr_schedules=schedules)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    for name in dir(accelerate_deepspeed):  # which accelerate imports where deepspeed is installed
        if name.startswith(("DeepSpeed", "Dummy")):
            monkeypatch.setattr(accelerator, name, getattr(accelerate_deepspeed, name), raising=False)
    monkeypatch.setattr(accelerator, "compare_versions", lambda *_: True)
    yield found
    AcceleratorState._reset_state(reset_partial_state=True)


def deepspeed(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """Return an accelerator as `accelerate launch` with deepspeed_zero2.yaml sets it up."""
    settings = load_config_from_file(str(CONFIG)).deepspeed_config
    named = {"gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"}
    named |= {"gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING"}
    for name, variable in named.items():
        if name in settings:
            monkeypatch.setenv(variable, str(settings[name]))
    made = make_accelerator(loaded)
    made.deepspeed_engine_wrapped = None
    made.state.distributed_type = PartialState().distributed_type = DistributedType.DEEPSPEED
    made.state.deepspeed_plugins = DeepSpeedPlugin(zero_stage=settings["zero_stage"])
    return made


def test_deepspeed_is_told_to_clip_and_what_a_pass_is(
    base: ModelConfig, handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_lora(models.load(base), FinetuneConfig(rank=4))
    made = deepspeed(loaded, monkeypatch)
    prepare(made, loaded.model, partial(make_optimizer, FinetuneConfig()), 0.25)
    told = handed["config_params"]
    assert told["gradient_clipping"] == 0.25
    assert told["train_micro_batch_size_per_gpu"] == told["gradient_accumulation_steps"] == 1
    assert told["train_batch_size"] == made.num_processes
    assert told["zero_optimization"]["stage"] == 2
    assert "auto" not in told.values()


def test_what_deepspeed_skips_by_overflow_is_said(
    base: ModelConfig, handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(rank=4)
    loaded = with_lora(models.load(base), config)
    monkeypatch.setattr(trainer, "make_accelerator", lambda loaded: deepspeed(loaded, monkeypatch))
    batches = Batches(read_examples(DATA, "train", loaded.prompts, True), 3, 80, "one row", 0)
    source = FeatureSource(loaded, DATA, make_plan(loaded.family, config), config, 0)
    taking = trainer.Trainer(loaded, config, batches, source, None, 0)
    assert handed["optimizer"]
    assert taking._update(batches.of(1), "here") == {"grad_norm": 2.5}
    taking.optimizer.optimizer.overflow = True  # DeepSpeed then has no norm of this step
    assert taking._update(batches.of(1), "here") == {"skipped": 1.0}
