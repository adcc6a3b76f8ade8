"""Several processes train as one would: the same losses and weights, the same going on after a kill."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from radloop import errors, models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError, RadloopError, TrainingError
from radloop.models.llava import Llava
from radloop.models.loading import Loaded
from radloop.models.packing import Group, Head, Tokens
from radloop.models.sketch import sketch
from radloop.training import finetune, job, processes
from radloop.training.adapter import Adapter
from radloop.training.batching import Batches, row_length
from radloop.training.examples import Examples, ImageSet
from radloop.training.preview import require_trainable
from radloop.training.processes import deal, make_accelerator
from tests.unit.tiny import prepared

ROOT = Path(__file__).parents[3]
LAUNCHES = ROOT / "configs" / "accelerate"
TWO = LAUNCHES / "two_processes_cpu.yaml"
# Seven images: the last step of an epoch has one, which leaves a process without any.
SETTINGS = {"images_per_step": 3, "max_steps": 9, "rank": 4, "tokens_per_pass": 80, "checkpoint_every": 2}
DATA = prepared(7, validation=3)


@pytest.mark.parametrize("file", sorted(LAUNCHES.iterdir()), ids=lambda file: file.stem)
def test_accelerate_takes_the_configs_that_are_supplied(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes >= 1
    assert config.distributed_type.value in file.read_text()
    assert config.mixed_precision == "no"  # which is the model's to say


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("base")
    Llava().tiny(folder)
    return ModelConfig(base=str(folder))


@pytest.fixture(scope="module")
def two(base: ModelConfig) -> Adapter:
    """What two processes make of it."""
    return finetune(DATA, base, FinetuneConfig(**SETTINGS, launch=TWO), seed=0)


def require_alike(two: Adapter, one: Adapter, of_largest: float = 1e-5) -> None:
    for ours, theirs in zip(two.record["history"], one.record["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for name in {"loss", "grad_norm", "validation_loss"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (name, ours["step"])
    name = "adapter_model.safetensors"
    ours, theirs = load_file(two.folder / name), load_file(one.folder / name)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.allclose(ours[key], value, rtol=0, atol=of_largest * value.abs().max().item()), (
            (ours[key] - value).abs().max()
        )
    assert two.record["merge"]["agrees"]
    assert two.record["data"] == one.record["data"]


def test_two_processes_train_as_one(base: ModelConfig, two: Adapter) -> None:
    require_alike(two, finetune(DATA, base, FinetuneConfig(**SETTINGS), seed=0))


# By the process itself: a signal from here would come some steps late, or after the last one.
KILLED = """
import os, signal
if os.environ.get("RANK") == "1":
    from radloop.training import trainer

    step = trainer.Trainer._step
    def killed(self, number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, number)
    trainer.Trainer._step = killed
"""


def test_a_killed_process_ends_them_all_and_the_next_start_goes_on(
    base: ModelConfig,
    two: Adapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = FinetuneConfig(**SETTINGS, launch=TWO)
    steps: list[int] = []
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        with pytest.raises(TrainingError, match=r"process 1 of .* was killed by signal 9; .*goes on"):
            finetune(DATA, base, config, seed=0, on_step=lambda facts: steps.append(int(facts["step"])))
    assert not any("RANK" in child.environ() for child in psutil.Process().children(recursive=True))
    assert steps[:3] == [1, 2, 3]
    steps.clear()
    with caplog.at_level(logging.INFO, "radloop"):
        again = finetune(DATA, base, config, seed=0, on_step=lambda facts: steps.append(int(facts["step"])))
    # By whether the checkpoint of step 4 was written when the kill came.
    assert any(f"going on after step {step} of" in caplog.text for step in (2, 4))
    assert steps == list(range(1, SETTINGS["max_steps"] + 1))  # it tells of those before as well
    assert again.sha256 == two.sha256
    assert [h["loss"] for h in again.record["history"]] == [h["loss"] for h in two.record["history"]]


# What `accelerate launch` with fsdp.yaml does, which accelerate does on GPUs only. The run is stopped after
# six steps and started again.
FSDP = """
import os, sys
from pathlib import Path
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
PartialState(cpu=True)
from torch.distributed.tensor import DTensor
from radloop.config import FinetuneConfig, ModelConfig
from radloop.training import loop, processes, trainer
from tests.unit.training.test_processes import DATA, SETTINGS

make = processes.make_accelerator
def make_accelerator(loaded):
    accelerator = make(loaded)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False)
    accelerator.state.fsdp_plugin.set_mixed_precision("bf16")  # as accelerate does on GPUs
    return accelerator
trainer.make_accelerator = make_accelerator

restore = trainer.Trainer.restore
def restored(self, checkpoint):
    assert all(isinstance(parameter, DTensor) for parameter in self._trained)
    assert checkpoint["state"]["step"] == 6
    restore(self, checkpoint)
trainer.Trainer.restore = restored

class Stop(Exception):
    pass
config = FinetuneConfig(**SETTINGS | {"best_by": "exact_match", "validate_every": 3})
first = os.environ["RANK"] == "0"
step = trainer.Trainer._step
def stopping(self, number):
    if number == 7:
        raise Stop
    return step(self, number)
trainer.Trainer._step = stopping
try:
    loop.finetune(DATA, ModelConfig(base=sys.argv[1]), config, 0, None)
except Stop:
    pass
trainer.Trainer._step = step
adapter = loop.finetune(DATA, ModelConfig(base=sys.argv[1]), config, 0, None)
if first:
    adapter.save(Path(sys.argv[2]))
"""


def test_a_model_that_fsdp_divides_is_trained_the_same(base: ModelConfig, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (tmp_path / "program.py").write_text(FSDP)
    (tmp_path / "adapter").mkdir()
    subprocess.run(
        [*torchrun, tmp_path / "program.py", base.base, tmp_path / "adapter"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RADLOOP_HOME": str(tmp_path / "home")},
        check=True,
    )
    divided = Adapter.load(tmp_path / "adapter")
    config = FinetuneConfig(**SETTINGS, best_by="exact_match", validate_every=3)
    # LoRA layers whose weights are divided compute by PEFT's own formula, which rounds otherwise.
    require_alike(divided, finetune(DATA, base, config, seed=0), of_largest=1e-3)


# One process


def of_one(base: ModelConfig, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the losses of a run that finds no checkpoint of another."""
    monkeypatch.setenv("RADLOOP_HOME", str(home))
    config = FinetuneConfig(rank=4, images_per_step=3, max_steps=3, tokens_per_pass=80, learning_rate=1e-2)
    return [entry["loss"] for entry in finetune(DATA, base, config, seed=0).record["history"]]


def test_a_process_trains_in_one_precision_after_the_other(
    base: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = of_one(base, tmp_path / "first", monkeypatch)
    with monkeypatch.context() as patch:  # as on a GPU
        patch.setattr(Loaded, "mixed_precision", "bf16")
        mixed = of_one(base.model_copy(update={"precision": "bf16"}), tmp_path / "mixed", monkeypatch)
    assert first != mixed == pytest.approx(first, rel=0.1)
    assert of_one(base, tmp_path / "again", monkeypatch) == first


def test_gradients_are_not_scaled_by_the_environment(
    base: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = of_one(base, tmp_path / "first", monkeypatch)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1000")
    assert of_one(base, tmp_path / "second", monkeypatch) == first
    assert make_accelerator(models.load(base)).gradient_accumulation_steps == 1


def test_what_training_raises_reaches_the_caller_as_it_is(base: ModelConfig, tmp_path: Path) -> None:
    alone = tmp_path / "alone.yaml"  # faster than two
    alone.write_text("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    wrong = FinetuneConfig(targets=("attention", "ears"), launch=alone)
    with pytest.raises(ConfigError, match=r"^finetune.targets: unknown group of layers .ears.; known:"):
        finetune(DATA, base, wrong, seed=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["one_gpu", "multi_gpu", "fsdp", "deepspeed_zero2"])
def test_processes_on_gpus_are_refused_without_one(base: ModelConfig, name: str) -> None:
    file = LAUNCHES / f"{name}.yaml"
    with pytest.raises(ConfigError, match=r"asks for a GPU \(use_cpu: false\).*two_processes_cpu.yaml"):
        finetune(DATA, base, FinetuneConfig(launch=file), seed=0)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ({"precision": "int8"}, {}, "model.precision: got int8, whose weights FSDP cannot divide"),
        (
            {},
            {"optimizer": "adamw_8bit"},
            "finetune.optimizer: got adamw_8bit, whose state FSDP",
        ),
        ({}, {"optimizer": "paged_adamw"}, "finetune.optimizer: got paged_adamw"),
    ],
)
def test_what_fsdp_cannot_divide_is_refused_before_anything_starts(
    base: ModelConfig, tmp_path: Path, model: dict[str, str], settings: dict[str, str], words: str
) -> None:
    launch = tmp_path / "fsdp.yaml"
    launch.write_text((LAUNCHES / "fsdp.yaml").read_text().replace("use_cpu: false", "use_cpu: true"))
    wrong = base.model_copy(update=model)
    config = FinetuneConfig(launch=launch, **settings)
    for start in (lambda: finetune(DATA, wrong, config, seed=0), lambda: require_trainable(wrong, config)):
        with pytest.raises(ConfigError, match=rf"^{words}.*multi_gpu.yaml"):
            start()


@pytest.mark.parametrize("family", models.REGISTRY)
def test_fsdp_divides_the_layers_of_the_language_model(family: str) -> None:
    found = processes.ForwardPass(sketch(ModelConfig(family=family, tiny=True)).model)._no_split_modules
    assert found
    assert all(re.fullmatch(r"\w+(DecoderLayer|TextLayer)", name) for name in found)


def test_a_config_file_that_is_not_there_is_named(base: ModelConfig) -> None:
    config = FinetuneConfig(launch=Path("nowhere.yaml"))
    with pytest.raises(ConfigError, match=r"finetune.launch: nowhere.yaml is no file; .*configs/accelerate"):
        finetune(DATA, base, config, seed=0)


def test_an_interrupt_ends_the_launched_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    job._stop(process)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("kind", RadloopError.__subclasses__())
def test_every_kind_of_error_reaches_the_caller(tmp_path: Path, kind: type[RadloopError]) -> None:
    content = {"kind": kind.__name__, "message": "what to do"}
    (tmp_path / "error-0.json").write_text(json.dumps(content))
    found = job._failure(tmp_path, 1)
    assert (type(found), found.message) == (kind, "what to do")


def test_a_failure_shows_the_last_lines_of_the_process_that_failed_first(tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").write_text("connection closed by peer\n")
    (tmp_path / "rank-1.log").write_text("x\n" * 50 + "CUDA error: an illegal memory access\n")
    (tmp_path / "launcher.log").write_text(
        "Failures:\n[1]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : 1\n"
        "Root Cause (first observed failure):\n[0]:\n  time : now\n  rank      : 1 (local_rank: 1)\n"
        "  exitcode  : 1 (pid: 7)\n"
    )
    error = job._failure(tmp_path, 1)
    assert isinstance(error, TrainingError)
    assert "process 1 of the launched ones ended with code 1" in error.message
    assert error.message.endswith("x\nCUDA error: an illegal memory access")
    assert "connection closed" not in error.message
    for rank, kind in ((1, "DataError"), (0, "TrainingError")):
        file = tmp_path / f"error-{rank}.json"
        file.write_text(json.dumps({"kind": kind, "message": "as it was"}))
        os.utime(file, (0, rank))
    first: RadloopError = job._failure(tmp_path, 1)
    assert type(first) is errors.TrainingError
    assert first.message == "as it was"


def groups(lengths: list[int]) -> list[Group]:
    head = Head.counted((1, 2))
    return [
        Group((str(n),), head, (Tokens(head, (3,) * length, 1),), (0,)) for n, length in enumerate(lengths)
    ]


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12), num_processes=st.integers(1, 5))
def test_groups_are_dealt_evenly_and_each_once(lengths: list[int], num_processes: int) -> None:
    dealt = groups(lengths)
    hands = deal(dealt, num_processes)
    assert len(hands) == num_processes
    found = [group.image_ids for hand in hands for group in hand]
    assert sorted(found) == sorted(group.image_ids for group in dealt)
    tokens = [sum(map(len, hand)) for hand in hands]
    assert max(tokens) - min(tokens) <= max(map(len, dealt))
    assert deal(dealt, 1) == [dealt]


def test_a_process_without_work_keeps_the_others_company_in_a_small_pass() -> None:
    head = Head.counted((1, 2))
    pairs = tuple(Tokens(head, (3, 4), 1) for _ in range(20))
    examples = Examples([ImageSet([Group(("0",), head, pairs, (*range(20),))], ["0"])], 20, 0)
    batch = Batches(examples, 1, 8, "one row", 0, num_processes=2).of(1)
    own, company = batch.passes_of(0), batch.passes_of(1)
    assert len(own) == len(company) > 1
    for rows, counts in company:
        assert counts == 0
        assert sum(map(row_length, rows)) <= 8


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9),
    num_processes=st.integers(1, 4),
    tokens_per_pass=st.integers(10, 100),
)
def test_processes_have_equally_many_passes_and_all_that_counts_once(
    lengths: list[int], num_processes: int, tokens_per_pass: int
) -> None:
    sets = [ImageSet([group], [group.image_ids[0]]) for group in groups(lengths)]
    examples = Examples(sets, len(sets), 0)
    batch = Batches(examples, len(sets), tokens_per_pass, "shared rows", 0, num_processes).of(1)
    passes = [batch.passes_of(process) for process in range(num_processes)]
    assert len(set(map(len, passes))) == 1
    counted = [
        group.image_ids[0]
        for own in passes
        for rows, counts in own
        for row in rows
        for group in row
        for _ in range(counts)
    ]
    assert sorted(counted) == sorted(str(n) for n in range(len(lengths)))
    assert batch.total_weight("token") == len(lengths)
