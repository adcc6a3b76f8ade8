"""What the processes of a run share: its steps, its sums, and the forward passes of its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from radloop.models.family import base_of
from radloop.models.loading import Loaded
from radloop.models.packing import Group

_P = ParamSpec("_P")
_T = TypeVar("_T")


def make_accelerator(loaded: Loaded) -> Accelerator:
    """Return the accelerator of this process: alone, or one of those that `accelerate launch` started."""
    # What accelerate knows outlives a run, and a later one of the same process may be in another precision.
    # Several processes are started anew for each run, and what they have set up cannot be set up again.
    if AcceleratorState._shared_state.get("distributed_type") == DistributedType.NO:
        AcceleratorState._reset_state()
    # A question without an image leaves the vision layers without a gradient, where those are trained.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        cpu=loaded.device.type == "cpu",
        mixed_precision=loaded.mixed_precision,
        # Passes are weighted where they are computed. Left out, this comes from the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[unused],
    )


class ForwardPass(torch.nn.Module):
    """Calls any function as the forward pass of a model.

    DDP, FSDP and DeepSpeed act on the forward pass of the module that they are given, while here the
    parts of a model are called one by one: first what makes features, then what reads them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        # What FSDP divides layer by layer, for which all processes have to come to a layer equally often:
        # the language model, and not what makes features of however many images a process has. Not by the
        # model's own list, where BLIP's has embeddings and no layers.
        lists = (
            item for item in base_of(model).get_decoder().modules() if isinstance(item, torch.nn.ModuleList)
        )
        self._no_split_modules = sorted({type(layer).__name__ for layer in max(lists, key=len)})

    def forward(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return function(*args, **kwargs)


def prepare(
    accelerator: Accelerator,
    model: torch.nn.Module,
    make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    max_grad_norm: float,
) -> tuple[Any, Any]:
    """Return a `ForwardPass` of the model and its optimiser, as the processes need them.

    Args:
        accelerator: Of this process.
        model: With its LoRA layers.
        make_optimizer: Of the parameters to train.
        max_grad_norm: To which DeepSpeed, which clips in a step of its own, is to clip.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    forward, optimizer = ForwardPass(model), make_optimizer(trained)
    if accelerator.distributed_type == DistributedType.NO:
        # Without a scaler accelerate's optimiser only looks for a package on disk, at each step.
        return forward, optimizer if accelerator.scaler is None else accelerator.prepare(optimizer)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # A sample in DeepSpeed's count is a forward pass here, and how many make a step is said with each.
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_batch_size": accelerator.num_processes,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
        }
    if accelerator.distributed_type == DistributedType.FSDP:
        # Autocast chooses precisions, as in one process. Accelerate's own policy would sum gradients in 16
        # bits, and round the losses to them.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    prepared: tuple[Any, Any] = accelerator.prepare(forward, optimizer)
    return prepared


def steps_itself(accelerator: Accelerator) -> bool:
    """Say whether the optimiser's step is taken in the last backward pass: DeepSpeed does."""
    takes: bool = accelerator.distributed_type == DistributedType.DEEPSPEED
    return takes


def can_checkpoint(accelerator: Accelerator) -> bool:
    """Say whether the first process can get at the whole state of the optimiser: not under DeepSpeed."""
    is_whole: bool = accelerator.distributed_type != DistributedType.DEEPSPEED
    return is_whole


def deal(groups: Sequence[Group], num_processes: int) -> list[list[Group]]:
    """Deal groups to processes so that each gets about as many tokens; some may get none.

    The longest first, each to whoever has least. One process gets all in their order.
    """
    if num_processes == 1:
        return [list(groups)]
    hands: list[list[Group]] = [[] for _ in range(num_processes)]
    tokens = [0] * num_processes
    for group in sorted(groups, key=len, reverse=True):
        least = tokens.index(min(tokens))
        hands[least].append(group)
        tokens[least] += len(group)
    return hands


def total(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Return the sums of `values` over the processes, the same in each of them."""
    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    summed: list[float] = accelerator.reduce(tensor, "sum").tolist()
    return summed


def whole(value: Any) -> Any:
    """Return a nest of values with all of each tensor of which FSDP keeps a part in each process."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def divided_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return this process' part of a whole tensor, as FSDP divides `parameter`."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
