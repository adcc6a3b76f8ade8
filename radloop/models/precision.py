"""In which numbers a base model's frozen weights are kept."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import torch

from radloop.config import ModelConfig
from radloop.errors import ConfigError
from radloop.models.family import Family

QUANTIZED = ("int8", "nf4")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def name_of(dtype: torch.dtype) -> str:
    """Return the name of one of `DTYPES`."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def choose_precision(config: ModelConfig, family: Family) -> str:
    """Return `config.precision`, with auto settled: fp32 on a CPU, bf16 on a GPU.

    Raises:
        ConfigError: The family does not allow it, or it needs a GPU or a library that is not there.
    """
    on_gpu = torch.cuda.is_available()
    if config.precision == "auto":
        return "bf16" if on_gpu and "bf16" in family.precisions else "fp32"
    if config.precision not in family.precisions:
        raise ConfigError(
            f"model.precision: got {config.precision!r}, but family {config.family} allows "
            f"{', '.join(family.precisions)}"
        )
    if config.precision == "fp16" and not on_gpu:
        raise ConfigError(
            "model.precision: got 'fp16', which needs a GPU, and PyTorch finds none; use fp32, or bf16 to "
            "save memory"
        )
    if config.precision in QUANTIZED and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.precision: {config.precision} needs bitsandbytes; run pip install 'radloop[quantized]', "
            "or use fp32 or bf16"
        )
    return config.precision


def precision_options(precision: str, family: Family) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that load a model in this precision.

    Quantised models compute in bf16 on a GPU and in fp32 on a CPU, and keep the layers of
    `family.kept_exact` in that, so that images look as they do to the model at full precision.
    """
    if precision not in QUANTIZED:
        return {"dtype": DTYPES[precision]}
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    # Transformers matches names from their start, so the part's place in the model has to be left open.
    skipped = [rf"(.*\.)?{re.escape(name)}" for name in family.kept_exact]
    settings = BitsAndBytesConfig(
        load_in_8bit=precision == "int8",
        load_in_4bit=precision == "nf4",
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"dtype": compute, "quantization_config": settings}


def keep_trainable(model: Any) -> None:
    """Stop 4-bit layers from changing for good when they are first asked without gradient on a CPU.

    On processors with AVX512-BF16 bitsandbytes would pack their weights for a kernel that rounds to
    bf16, takes no layer of other than certain widths, and gives no gradient any more.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
