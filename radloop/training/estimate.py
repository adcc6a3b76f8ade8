"""What a run will need: its parameters, and its memory by component, before anything of it is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch

from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.models import get_family
from radloop.models.packing import Row
from radloop.models.precision import QUANTIZED, choose_precision
from radloop.models.quiet import without_future_warnings
from radloop.models.sketch import Sketch, on_meta, sketch
from radloop.training.adapter import with_lora
from radloop.training.batching import Batches, arrangement, row_length
from radloop.training.examples import Examples, read_examples
from radloop.training.losses import FeaturesOf
from radloop.training.pictures import FeatureSource
from radloop.training.plan import Plan, make_plan
from radloop.training.schedule import count_steps
from radloop.training.simulation import PassMemory, simulate_pass

_CUDA_CONTEXT = 500_000_000  # bytes that a GPU's driver and libraries take before any tensor
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a number, its block's 8-bit scale, and that one's own scale
_STATE_BLOCK, _STATE_MIN = (
    256,
    4096,
)  # of 8-bit optimisers: numbers with one scale; tensors below keep 32 bits
# Measured with glibc: what cannot be used again between tensors that stay, per byte that came and went.
_GAPS = 0.08
_CGROUP, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# By the version of Linux' control groups: files of the limit and of what is used, and what of this is content
# of files that goes when its place is needed, as memory.stat names it.
_CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, as the adapter's record has them."""

    trained: int
    total: int

    @classmethod
    def of(cls, sketch: Sketch) -> Parameters:
        trained, total = sketch.model.get_nb_trainable_parameters()
        return cls(trained, total)

    @property
    def share(self) -> float:
        return self.trained / self.total


@dataclass(frozen=True)
class Memory:
    """What a run needs on its device, in bytes.

    Attributes:
        parts: Component to bytes; they are there at the same time.
        rows: Of the pass that needs most.
        free: What the device has for this process, what that holds already included.
    """

    parts: dict[str, int]
    rows: Sequence[Row]
    free: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.free


@dataclass(frozen=True)
class Setting:
    """What memory depends on.

    Attributes:
        sketch: The base with LoRA layers.
        data: Images.
        train: The train split.
        plan: Its shortcuts.
        model: Precision of the base.
        config: Optimiser, tokens in a pass, checkpointing.
        seed: Of the batches.
    """

    sketch: Sketch
    data: PreparedData
    train: Examples
    plan: Plan
    model: ModelConfig
    config: FinetuneConfig
    seed: int

    @classmethod
    def of(cls, data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int) -> Setting:
        """Read the train split for a base of which nothing is loaded.

        Raises:
            RadloopError: What would stop the training, see `radloop.training.finetune`.
        """
        plan = make_plan(get_family(model.family), config)
        base = sketch_with_lora(model, config)
        train = read_examples(data, "train", base.prompts, config.share_prefix, config.max_tokens)
        return cls(base, data, train, plan, model, config, seed)

    @cached_property
    def batches(self) -> Batches:
        return Batches(self.train, *arrangement(self.sketch, self.config), self.seed)

    def passes(self) -> Iterator[list[Row]]:
        """Yield the forward passes in one process: of all steps, or where they are bounded of an epoch."""
        num_steps = count_steps(self.config, self.batches.steps_per_epoch)
        if self.config.tokens_per_pass is not None:  # then other orders make little difference
            num_steps = min(num_steps, self.batches.steps_per_epoch)
        for step in range(1, num_steps + 1):
            yield from self.batches.of(step).shares[0]


def sketch_with_lora(model: ModelConfig, config: FinetuneConfig) -> Sketch:
    """Return a base with the LoRA layers that it is to have."""
    base = sketch(model)
    with on_meta():
        return dataclasses.replace(base, model=with_lora(base, config).model)


def estimate_memory(setting: Setting) -> Memory:
    """Return what a run needs on a GPU where there is one, else in the CPU's memory.

    The pass is gone through as the device would compute it: on a CPU in the precision of the weights, on a
    GPU with LoRA layers in 16 bits, if the weights are. On a CPU the sum is held to within 20 % of the
    measured peak of a process, but not where the base is quantised: that takes more while it is loaded, as
    `preview` says, because its weights come in 32 bits first. That of a GPU
    (`torch.cuda.max_memory_allocated` and the context) comes from the same count with the stock attention
    kernels; it has not been held against one.
    """
    sketch, config = setting.sketch, setting.config
    trained = [parameter for parameter in sketch.model.parameters() if parameter.requires_grad]
    rows, held = _largest_pass(setting)
    numbers = sum(parameter.numel() for parameter in trained)
    parts = {
        "base weights": base_bytes(sketch, setting.model),
        "LoRA weights": 4 * numbers,
        "gradients": 4 * numbers,
        "optimizer state": sum(_state_bytes(parameter.numel(), config) for parameter in trained),
        "activations": held.peak + _dequantised_bytes(sketch, setting.model),
    }
    if torch.cuda.is_available():
        return Memory(parts | {"CUDA itself": _CUDA_CONTEXT}, rows, _free_gpu_bytes())
    parts["gaps between tensors"] = round(_GAPS * held.made)
    process = psutil.Process().memory_info().rss
    return Memory(parts | {"libraries and data": process}, rows, process + _free_bytes())


def base_bytes(sketch: Sketch, model: ModelConfig) -> int:
    """Return the bytes of the base's weights in the precision that the config comes to."""
    precision = choose_precision(model, sketch.family)
    quantised = _quantised(sketch, precision)
    tensors = [
        (name, tensor)
        for named in (sketch.base_model.named_parameters(), sketch.base_model.named_buffers())
        for name, tensor in named
        if not tensor.requires_grad
    ]
    return round(sum(_tensor_bytes(tensor, precision, name in quantised) for name, tensor in tensors))


def _tensor_bytes(tensor: torch.Tensor, precision: str, is_quantised: bool) -> float:
    if not is_quantised:
        return tensor.nbytes
    if precision == "nf4":
        return tensor.numel() * _NF4_BYTES
    return tensor.numel() + 4 * tensor.shape[0]  # int8, with a scale for each row


def _quantised(sketch: Sketch, precision: str) -> set[str]:
    """Return the names of the weights that are kept in 4 or 8 bits."""
    if precision not in QUANTIZED:
        return set()
    exact = re.compile("|".join(rf"(.*\.)?{re.escape(name)}" for name in sketch.family.kept_exact))
    return {
        f"{name}.weight"
        for name, module in sketch.base_model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name and not exact.match(name)
    }


def _dequantised_bytes(sketch: Sketch, model: ModelConfig) -> int:
    """Return what the largest quantised layer takes while it computes."""
    names = _quantised(sketch, choose_precision(model, sketch.family))
    return max((sketch.base_model.get_parameter(name).nbytes for name in names), default=0)


def _state_bytes(numbers: int, config: FinetuneConfig) -> int:
    if not config.optimizer.endswith("8bit") or numbers < _STATE_MIN:
        return 8 * numbers
    return 2 * (numbers + 4 * -(-numbers // _STATE_BLOCK))


def _largest_pass(setting: Setting) -> tuple[Sequence[Row], PassMemory]:
    """Return the pass that needs most memory, and its bytes."""
    passes = list(setting.passes())
    candidates = {id(rows): rows for size in _SIZES for rows in [max(passes, key=size)]}
    found = [(rows, _pass_memory(setting, rows)) for rows in candidates.values()]
    return max(found, key=lambda item: item[1].peak)


def _num_tokens(rows: Sequence[Row]) -> int:
    return len(rows) * max(map(row_length, rows))


def _mask_size(rows: Sequence[Row]) -> int:
    return len(rows) * max(map(row_length, rows)) ** 2


def _num_predicted(rows: Sequence[Row]) -> int:
    return sum(group.num_answer_tokens for row in rows for group in row)


def _num_images(rows: Sequence[Row]) -> int:
    return len({image_id for row in rows for group in row for image_id in group.image_ids})


# Any of these may decide which pass needs most; how much each costs is up to the model.
_SIZES: tuple[Callable[[Sequence[Row]], int], ...] = (_num_tokens, _mask_size, _num_predicted, _num_images)


def _pass_memory(setting: Setting, rows: Sequence[Row]) -> PassMemory:
    sketch, base = setting.sketch, setting.sketch.base_model
    sketch.model.train()
    with without_future_warnings(), _autocast(sketch):
        if setting.config.gradient_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        found = simulate_pass(sketch, _features_of(setting), rows, setting.config)
        if setting.config.gradient_checkpointing:
            base.gradient_checkpointing_disable()
    sketch.model.eval()
    return found


def _features_of(setting: Setting) -> FeaturesOf:
    sketch, data, plan, config = setting.sketch, setting.data, setting.plan, setting.config
    return FeatureSource(sketch, data, plan, config, setting.seed, keep=False).training(0)


@contextmanager
def _autocast(sketch: Sketch) -> Iterator[None]:
    """Let LoRA layers compute as autocast has them do it on a GPU: in 16 bits, on copies of their inputs."""
    dtype = sketch.base_model.dtype
    if not torch.cuda.is_available() or dtype == torch.float32:
        yield
        return
    named = sketch.model.named_modules()
    layers = [layer for name, layer in named if ".lora_" in name and isinstance(layer, torch.nn.Linear)]
    hooks = [
        layer.to(dtype).register_forward_pre_hook(lambda _module, inputs: inputs[0].clone())
        for layer in layers
    ]
    try:
        yield
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            layer.float()


def _free_gpu_bytes() -> int:
    """Return what the GPU has left, with what this process holds of it: PyTorch's share and CUDA itself."""
    left: int = torch.cuda.mem_get_info()[0]
    return left + torch.cuda.memory_reserved() + _CUDA_CONTEXT


def _free_bytes() -> int:
    """Return what this machine, or the container that it is, has left in memory."""
    of_groups = [_left_in(folder, version) for folder, version in _cgroups()]
    return min([psutil.virtual_memory().available, *(left for left in of_groups if left is not None)])


def _cgroups() -> Iterator[tuple[Path, int]]:
    """Yield the folders of the control groups that bound this process' memory, with their version."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root, version = (_CGROUP / "memory", 1) if controllers else (_CGROUP, 2)
            own = root / path.lstrip("/")
            yield from ((folder, version) for folder in (own, *own.parents) if folder.is_relative_to(root))


def _left_in(folder: Path, version: int) -> int | None:
    *names, droppable = _CGROUP_FILES[version]
    try:
        limit, used = (int((folder / name).read_text()) for name in names)
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit - used + int(stat[droppable])
    except (OSError, ValueError, KeyError):  # none that is seen from in here, or "max": no limit
        return None
