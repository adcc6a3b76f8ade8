"""What a run will need: its parameters, and its memory by component, before anything of it is loaded."""

from __future__ import annotations

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
from radloop.models.family import Features
from radloop.models.feature_cache import FeatureCache
from radloop.models.loading import without_future_warnings
from radloop.models.packing import Row
from radloop.models.precision import QUANTIZED, choose_precision
from radloop.models.sketch import Sketch
from radloop.training.batching import Batches, row_length
from radloop.training.examples import Examples
from radloop.training.losses import FeaturesOf
from radloop.training.plan import Plan
from radloop.training.simulation import PassMemory, simulate_pass

_CUDA_CONTEXT = 500_000_000  # bytes that a GPU's driver and libraries take before any tensor
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a number, its block's 8-bit scale, and that one's own scale
_STATE_BLOCK, _STATE_MIN = (
    256,
    4096,
)  # of 8-bit optimisers: numbers with one scale; tensors below keep 32 bits
# Measured with glibc: what cannot be used again between tensors that stay, per byte that came and went.
_GAPS = 0.08
_CGROUP = Path("/sys/fs/cgroup")


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

    @cached_property
    def batches(self) -> Batches:
        arrangement = (self.config.images_per_step, self.config.tokens_per_pass, self.config.share_prefix)
        return Batches(self.train, *arrangement, self.seed)

    def passes(self) -> Iterator[list[Row]]:
        """Yield the forward passes of the first epoch, in one process."""
        for step in range(1, self.batches.steps_per_epoch + 1):
            yield from self.batches.of(step).shares[0]


def estimate_memory(setting: Setting) -> Memory:
    """Return what a run needs on a GPU where there is one, else in the CPU's memory.

    The pass is gone through as the device would compute it: on a CPU in the precision of the weights, on
    a GPU with LoRA layers in 16 bits, if the weights are. On a CPU the sum is held to within 20 % of the
    measured peak of a process. That of a GPU (`torch.cuda.max_memory_allocated` and the context) comes from
    the same count with the stock attention kernels; it has not been held against one.
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
        return Memory(parts | {"CUDA itself": _CUDA_CONTEXT}, rows, torch.cuda.mem_get_info()[0])
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
    """Return the pass of the first epoch that needs most memory, and its bytes."""
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
            base.gradient_checkpointing_enable({"use_reentrant": False})
        found = simulate_pass(sketch, _features_of(setting), rows, setting.config)
        if setting.config.gradient_checkpointing:
            base.gradient_checkpointing_disable()
    sketch.model.eval()
    return found


def _features_of(setting: Setting) -> FeaturesOf:
    sketch, data = setting.sketch, setting.data
    if setting.plan.cache_features:
        return FeatureCache(sketch, None).of_data(data)
    encode = sketch.encode_in_graph if setting.plan.in_graph else sketch.encode

    def features(image_ids: Sequence[str]) -> list[Features]:
        distinct = list(dict.fromkeys(image_ids))
        encoded = encode([data.image(name) for name in distinct]) if distinct else []
        found = dict(zip(distinct, encoded, strict=True))
        return [found[name] for name in image_ids]

    return features


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


def _free_bytes() -> int:
    """Return what this machine, or the container that it is, has left in memory."""
    free = psutil.virtual_memory().available
    limit, used = (_read_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no container, or "max": no limit
        return None
