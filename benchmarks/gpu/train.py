"""Measures fine-tuning of 7 to 11 billion parameter models on a GPU, in three ways of laying out questions.

python benchmarks/gpu/train.py [--models llava,qwen,mllama] [--minutes N] [--json FILE]
python benchmarks/gpu/train.py --tiny --device cpu    the same with tiny models, in seconds

Needs torch, transformers, peft, accelerate and pillow, and bitsandbytes for NF4; no data, no download.
Weights are random, questions are as many and as long as VQA-RAD's. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run from a checkout that is not installed

import torch

from benchmarks._json_file import json_file, write
from benchmarks.gpu.attention import ATTENTIONS
from benchmarks.gpu.bench import RANK, Bench, Device, Figures, has_nf4
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.gpu.vqa_rad import NUM_PAIRS, QUESTIONS_OF_IMAGE, epoch
from benchmarks.gpu.work import Load, count, measure_peak
from radloop.models.packing import Row

LAYOUTS = ("plain", "packed", "packed + cache")
PRECISIONS = ("bf16", "nf4")
EPOCHS = 5
_RATE = 1e-4
_WARM_UP = 2  # steps
_FEWEST, _MOST = 3, 30  # timed steps
_FAILED, _NO_MEMORY = "failed", "out of memory"


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        layout: 'plain': each question with its image in a row of its own, in causal order. 'packed': all
            questions about an image behind one prefix, the image encoded once. 'packed + cache': its
            features are given.
        precision: Of the frozen weights.
        checkpointing: Whether activations are computed again in the backward pass.
    """

    layout: str
    precision: str
    checkpointing: bool


def variants(precisions: Sequence[str]) -> Iterator[Variant]:
    """Go through all that is measured, those of one precision in turn."""
    for precision in precisions:
        for checkpointing in (False, True):
            for layout in LAYOUTS:
                yield Variant(layout, precision, checkpointing)


def measure(bench: Bench, variant: Variant, rows: list[Row], seconds: float) -> Figures:
    """Train for so many seconds, in batches that fit into memory.

    Returns:
        All figures of the variant, raw; those of speed only where it fits at all.
    """
    shape = bench.shape
    batch = min(len(rows), shape.plain_rows if variant.layout == "plain" else shape.packed_rows)
    bench.lay_out(variant.layout == "plain")
    bench.checkpoint(variant.checkpointing)
    while True:
        try:
            return _timed(bench, variant, rows, batch, seconds)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        # The error is gone here, and with it the tensors of the frames that it came through.
        peak = bench.device.peak_bytes()
        bench.model.zero_grad(set_to_none=True)
        bench.device.free()
        if batch == 1:
            return {"status": _NO_MEMORY, "peak_bytes": peak}
        batch //= 2


def _timed(bench: Bench, variant: Variant, rows: list[Row], batch: int, seconds: float) -> Figures:
    cached = variant.layout.endswith("cache")
    if cached:
        bench.features  # noqa: B018 # are there before time and memory are measured
    bench.device.reset_peak()
    optimizer = torch.optim.AdamW(bench.trained, lr=_RATE, weight_decay=0.0, fused=True)
    times: list[float] = []
    done: list[Row] = []
    losses: list[torch.Tensor] = []
    for number in range(_WARM_UP + _MOST):
        start = number * batch % len(rows)
        chosen = [rows[(start + place) % len(rows)] for place in range(batch)]
        bench.device.synchronize()
        graphs, begin = _num_graphs(), time.perf_counter()
        loss = bench.step(chosen, cached, optimizer)
        bench.device.synchronize()
        # A kernel that is compiled for another shape of rows is compiled once in a run of hours.
        if number < _WARM_UP or _num_graphs() > graphs:
            continue
        times.append(time.perf_counter() - begin)
        losses.append(loss)
        done += chosen
        if sum(times) > seconds and len(times) >= _FEWEST:
            break
    measured: Figures = {"rows": batch, "loss": torch.stack(losses).mean().item()}
    measured["peak_bytes"] = bench.device.peak_bytes()
    return measured | _figures(bench, done, cached, times)


def _num_graphs() -> int:
    """Return how often PyTorch has compiled anything in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _figures(bench: Bench, rows: list[Row], cached: bool, times: list[float]) -> Figures:
    load = Load.of(rows, bench.shape, cached)
    work = count(bench.model, bench.shape, load)
    samples = sum(len(group.tails) for row in rows for group in row)
    total = sum(times)
    # The cache has to be filled once: every image of the split goes through the vision tower.
    filling = bench.seconds_to_encode() * sum(QUESTIONS_OF_IMAGE.values()) if cached else 0.0
    return {
        "status": "measured",
        "seconds": times,
        "samples": samples,
        "load": asdict(load),
        "samples_per_s": samples / total,
        "tokens_per_s": load.tokens / total,
        "flops": asdict(work),
        "flops_per_step": work.done / len(times),
        "flops_per_s": work.done / total,
        "flops_per_s_as_full": work.as_full / total,
        "filling_seconds": filling,
        "epochs_seconds": EPOCHS * NUM_PAIRS / samples * total + filling,
    }


def _is_out_of_memory(error: Exception) -> bool:
    """Tell a full card from other errors; libraries beneath PyTorch have errors of their own for it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(
        re.search(r"out of memory|ALLOC_FAILED", str(error), re.IGNORECASE)
    )


def run(
    shapes: Sequence[Shape],
    device: Device,
    attention: str | None,
    minutes: float,
    show: Callable[[str], None],
    keep: Callable[[Figures], None],
) -> Figures:
    """Measure all variants of all models.

    Args:
        shapes: The models.
        device: Where.
        attention: Of packed rows, a name of `ATTENTIONS`; None: what training takes here. Models that cannot
            use FlexAttention keep their own.
        minutes: About so long in all timed steps together.
        show: Gets each line of the table as soon as it is known.
        keep: Gets all figures so far after each variant.

    Returns:
        Device, versions and raw figures, in seconds, bytes and floating-point operations.
    """
    facts = device.facts()
    show(f"{facts['device']}; " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v))
    peaks = measure_peak(device.torch, device.synchronize, seconds=0.5 if device.is_gpu else 0.05)
    peak = max(peaks.values())
    show(f"matrix peak, bf16: {peak / 1e12:,.1f} TFLOP/s in {max(peaks, key=peaks.__getitem__)}")
    planned = list(variants([name for name in PRECISIONS if name != "nf4" or has_nf4()]))
    seconds = 60 * minutes / len(planned) / len(shapes)
    figures = facts | {"peaks_flops_per_s": peaks, "lora_rank": RANK, "epochs": EPOCHS, "results": []}
    for shape in shapes:
        show(f"\n{shape.name} shape, {_packing_of(shape)}\n{_HEADER}")
        for found in _measured(shape, planned, device, attention if shape.family.flex else None, seconds):
            figures["results"].append({"model": shape.name} | found)
            show(to_line(found, peak))
            keep(figures)
        show(_attending(figures["results"][-len(planned) :]))
    if not has_nf4():
        show("\nNF4 was left out: bitsandbytes is not installed, or cannot be imported")
    show(_LEGEND)
    return figures


def _measured(
    shape: Shape, planned: Sequence[Variant], device: Device, attention: str | None, seconds: float
) -> Iterator[Figures]:
    """Yield the figures of a model's variants; the failure of one is reported, the others are measured."""
    bench: Bench | None = None
    laid: dict[bool, list[Row]] = {}
    for variant in planned:
        try:
            if bench is None or bench.precision != variant.precision:
                bench = None  # makes room first
                device.free()
                bench = Bench(shape, variant.precision, device, attention)
            shared = variant.layout != "plain"
            if shared not in laid:
                laid[shared] = shape.rows(bench.base, epoch(), shared)
            found = measure(bench, variant, laid[shared], seconds)
        except Exception as error:
            traceback.print_exc()
            status = _NO_MEMORY if _is_out_of_memory(error) else _FAILED
            found = {"status": status, "error": str(error), "peak_bytes": device.peak_bytes()}
        yield asdict(variant) | {"attention": bench and bench.attention} | found
    bench = None
    device.free()


_LEGEND = """
tokens/s: without padding. TFLOP/step: operations of matrix products that LoRA needs, 4 for each frozen
parameter and token; what checkpointing computes again is not among them. of peak: their share of the measured
matrix peak. as full: the same with 6 for each parameter and token, as if all were trained. 5 epochs: of
VQA-RAD's 1,793 training pairs, with the filling of the cache."""
_HEADER = (
    f"{'rows':<15}{'weights':<8}{'ckpt':<5}{'rows/step':>9}{'samples/s':>11}{'tokens/s':>10}{'TFLOP/step':>12}"
    f"{'of peak':>10}{'as full':>10}{'peak GB':>9}{'5 epochs':>11}"
)


def to_line(found: Figures, peak: float) -> str:
    """Return a variant's line of the table; `peak` in operations a second."""
    line = f"{found['layout']:<15}{found['precision']:<8}{'on' if found['checkpointing'] else 'off':<5}"
    memory = "-" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e9:.1f}"
    if found["status"] != "measured":
        words = found["status"] + (f": {found['error']}" if found["status"] == _FAILED else "")
        return f"{line}{' '.join(words.split())[:_COLUMNS_OF_SPEED]:<{_COLUMNS_OF_SPEED}}{memory:>9}"
    return (
        f"{line}{found['rows']:>9}{found['samples_per_s']:>11,.1f}{found['tokens_per_s']:>10,.0f}"
        f"{found['flops_per_step'] / 1e12:>12,.1f}{found['flops_per_s'] / peak:>10.1%}"
        f"{found['flops_per_s_as_full'] / peak:>10.1%}{memory:>9}{_duration(found['epochs_seconds']):>11}"
    )


_COLUMNS_OF_SPEED = 9 + 11 + 10 + 12 + 10 + 10


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _attending(results: Sequence[Figures]) -> str:
    """Say how the rows of a model's variants attended."""
    names = {found["layout"] == "plain": found["attention"] for found in results if found["attention"]}
    return ", ".join(f"{'plain' if plain else 'packed'} rows by {name}" for plain, name in names.items())


def _packing_of(shape: Shape) -> str:
    packed = (
        "one image a packed row"
        if shape.row_tokens == 1
        else f"packed rows of up to {shape.row_tokens:,} tokens"
    )
    seen = f"{shape.vision.states:,} states" if shape.vision.states else f"{shape.image_tokens} image tokens"
    return f"{seen} an image, {packed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 1 if a variant failed for another reason than memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(SHAPES), help="some of llava,qwen,mllama")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--attention", choices=tuple(ATTENTIONS), help="of packed rows; default: as in training"
    )
    parser.add_argument("--minutes", type=float, default=15, help="of timed steps, about; default 15")
    parser.add_argument("--json", type=json_file, help="write all figures into this file")
    args = parser.parse_args(arguments)
    names = args.models.split(",")
    if unknown := set(names) - set(SHAPES):
        parser.error(f"--models: unknown {', '.join(sorted(unknown))}; known: {', '.join(SHAPES)}")
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu: is for --tiny only; models of 7 billion parameters need a GPU")
    if args.device == "cpu" and args.attention == "flex":
        parser.error("--attention flex: has no backward pass on a CPU; leave it out")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; --tiny --device cpu tries the script out")
    shapes = [SHAPES[name](args.tiny) for name in names]
    warnings.simplefilter("ignore", FutureWarning)  # what PEFT and Transformers tell each other

    def keep(figures: Figures) -> None:
        if args.json is not None:
            write(args.json, figures)

    show = partial(print, flush=True)
    figures = run(shapes, Device(args.device), args.attention, args.minutes, show, keep)
    if any(found["status"] == _FAILED for found in figures["results"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
