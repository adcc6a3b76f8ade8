"""What a run is going to be, in words: parameters, memory, tokens, time, and the first batch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np
import torch

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.models.precision import QUANTIZED, choose_precision
from radloop.training.batching import pass_size
from radloop.training.estimate import Memory, Parameters, Setting, estimate_memory, sketch_with_lora
from radloop.training.examples import Examples, read_examples
from radloop.training.launch_file import is_divided, require_launchable
from radloop.training.loop import require_samples
from radloop.training.optimizers import make_optimizer
from radloop.training.plan import make_plan
from radloop.training.rehearsal import (
    Part,
    Timing,
    TokenCounts,
    count_tokens,
    long_step,
    read_row,
    time_steps,
)
from radloop.training.savings import image_savings, savings, size_in_words
from radloop.training.schedule import count_steps

_WIDTH = 100
_BAR = 40
_TAILS = 4  # of the first batch
_GAP = " ... "


def require_trainable(model: ModelConfig, config: FinetuneConfig) -> str:
    """Make sure that a base can be trained as a config says, without loading it or looking at data.

    Returns:
        The SHA-256 of its weights.

    Raises:
        ConfigError: Settings that cannot work with each other, the family or this machine.
        ModelError: There is no such base, it cannot be used, or has nothing to train.
    """
    make_plan(models.get_family(model.family), config)
    if config.launch is not None:
        require_launchable(config.launch, model, config)
    make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    return sketch_with_lora(model, config).reference.sha256


def preview(data: PreparedData, model: ModelConfig, config: FinetuneConfig, seed: int) -> Iterator[str]:
    """Yield the lines, each part as soon as it is known.

    Raises:
        RadloopError: What would stop the training, see `radloop.training.finetune`.
    """
    setting = Setting.of(data, model, config, seed)
    prompts = setting.sketch.prompts
    validation = read_examples(data, "validation", prompts, config.share_prefix, config.max_tokens)
    require_samples(setting.train, validation, config)
    num_steps = count_steps(config, setting.batches.steps_per_epoch)
    tokens, parameters = count_tokens(setting), Parameters.of(setting.sketch)
    yield from _of_parameters(setting, parameters)
    memory = estimate_memory(setting)
    yield from _of_memory(setting, memory)
    yield from _of_tokens(setting, tokens)
    yield from _of_first_batch(setting)
    yield from _of_time(setting, validation, tokens, parameters, memory, num_steps)


def _of_parameters(setting: Setting, parameters: Parameters) -> Iterator[str]:
    precision = choose_precision(setting.model, setting.sketch.family)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU, no GPU is found"
    yield f"base: {setting.sketch.reference.name}, family {setting.model.family}, {precision} on {device}"
    yield (
        f"parameters: {parameters.total:,}, of which {parameters.trained:,} are trained "
        f"({parameters.share:.2%}): {', '.join(setting.config.targets)}"
    )


def _of_memory(setting: Setting, memory: Memory) -> Iterator[str]:
    where = "the GPU" if torch.cuda.is_available() else "the CPU"
    yield f"memory: about {size_in_words(memory.total)} of {where}'s, {size_in_words(memory.free)} can be had"
    for name, size in memory.parts.items():
        yield f"    {name:<22}{size_in_words(size):>10}"
    yield f"    activations of the largest pass, {pass_size(memory.rows)}"
    if choose_precision(setting.model, setting.sketch.family) in QUANTIZED and not torch.cuda.is_available():
        yield "    more while the base is loaded: a CPU takes weights in 32 bits before it quantises them"
    if launch := setting.config.launch:
        if is_divided(launch, setting.model):
            yield "    of one whole copy, which the processes divide: each needs less of all but activations"
            return
        yield "    each of the processes needs this, with shorter passes"
    if memory.fits:
        return
    yield "warning: that does not fit; it would be about"
    for change, total in savings(setting, memory):
        yield f"    {size_in_words(total):>10} with {change}"
    if shrinks := image_savings(setting):
        yield f"    less with {shrinks}"


def _of_tokens(setting: Setting, tokens: TokenCounts) -> Iterator[str]:
    lengths = tokens.lengths
    limit = setting.config.max_tokens or setting.sketch.prompts.max_tokens
    smallest, median, most, longest = np.quantile(lengths, (0, 0.5, 0.95, 1)).astype(int)
    yield (
        f"tokens per sample: {smallest:,} to {longest:,}, median {median:,}, 95 % up to {most:,}; "
        f"{tokens.image_share:.0%} are of images"
    )
    bars = tokens.bars()
    largest = max(number for _, _, number in bars)
    for first, last, number in bars:
        bar = "#" * round(_BAR * number / largest) or "." * (number > 0)
        lengths_of_bar = f"{first:,}" if first == last else f"{first:,} - {last:,}"
        yield f"    {lengths_of_bar:>15}  {number:>9,}  {bar}".rstrip()
    cut = setting.train.num_cut
    yield (
        f"    longest: {tokens.longest}; the limit is {limit:,} tokens, "
        + (f"{cut:,} answers are cut to keep it" if cut else "nothing is cut")
    )
    yield (
        f"    an epoch: {tokens.epoch:,} tokens in {setting.batches.steps_per_epoch:,} steps, "
        f"{tokens.plain:,} with a row for each sample: {tokens.plain / tokens.epoch:.1f} x as many"
    )


def _of_first_batch(setting: Setting) -> Iterator[str]:
    batch = setting.batches.of(1)
    passes = batch.shares[0]
    what = "a forward pass" if len(passes) == 1 else "forward passes"
    yield (
        f"first batch: {batch.num_samples:,} samples in {what} of "
        f"{', '.join(map(pass_size, passes))}; its first image, with a loss on what is [in brackets]"
    )
    head, *tails = read_row(setting, passes[0][0])
    if shown := _shown(head):  # a model without image tokens reads images beside the text
        yield f"    {shown}"
    for tail in tails[:_TAILS]:
        yield f"        {_shown(tail)}"
    if len(tails) > _TAILS:
        yield f"        and {len(tails) - _TAILS:,} more about the same"


def _shown(parts: list[Part]) -> str:
    """Return text in one line; where it is too long, the middle of its longest parts is left out."""
    texts = [part.text.replace("\n", "\\n") for part in parts]
    room = _WIDTH - 10
    for left, number in enumerate(sorted(range(len(texts)), key=lambda n: len(texts[n])), start=-len(texts)):
        texts[number] = _clipped(texts[number], room // -left)
        room -= len(texts[number])
    marked = zip(texts, parts, strict=True)
    return "".join(f"[{text}]" if part.has_loss else text for text, part in marked)


def _clipped(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    end = (room - len(_GAP)) // 2
    return text[:end] + _GAP + text[-end:]


def _of_time(
    setting: Setting,
    validation: Examples,
    tokens: TokenCounts,
    parameters: Parameters,
    memory: Memory,
    num_steps: int,
) -> Iterator[str]:
    if not memory.fits:
        yield f"time: not measured, because it does not fit in one process; {num_steps:,} steps"
    elif seconds := long_step(setting, parameters.total, tokens):
        yield (
            f"time: not measured; by its operations each of {num_steps:,} steps takes this CPU about "
            f"{_duration(seconds)}, all of them {_duration(num_steps * seconds)}"
        )
    else:
        timing = time_steps(setting, validation, tokens)
        yield from _of_timing(timing, with_answers=setting.config.best_by == "exact_match")
        if setting.config.launch:
            yield "    in one process; those of finetune.launch share each step"


def _of_timing(timing: Timing, with_answers: bool) -> Iterator[str]:
    yield (
        f"time: about {_duration(timing.total)}, until {_end(timing.total)} if it started now, by "
        f"{timing.num_timed} timed steps"
    )
    yield f"    {timing.num_steps:,} steps of {timing.step:.2g} s, {timing.samples_per_s:,.0f} samples/s"
    yield (
        f"    {_duration(timing.features)} for image features, less where they are kept already; "
        f"{_duration(timing.validation)} for validation" + ", with its answers" * with_answers
    )


def _end(seconds: float) -> str:
    now = datetime.now().astimezone()
    end = now + timedelta(seconds=seconds)
    return end.strftime("%H:%M" if end.date() == now.date() else "%A %Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
