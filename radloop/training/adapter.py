"""The adapter: LoRA weights, which base they belong to, and the record of their training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from torch import nn

from radloop import __version__
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError, ModelError, TrainingError
from radloop.models.fast_attention import use_fast_attention
from radloop.models.loading import Loaded
from radloop.models.quiet import without_future_warnings
from radloop.training.plan import target_faults
from radloop.training.state import trained_weights

WEIGHTS = ("adapter_model.safetensors", "adapter_config.json")
FILES = (*WEIGHTS, "base.json", "record.json")
_VERSIONS = ("torch", "transformers", "peft", "accelerate")


def with_lora(loaded: Loaded, config: FinetuneConfig) -> Loaded:
    """Put fresh LoRA layers, drawn from torch's global seed, on the groups of layers of `config.targets`.

    Raises:
        ConfigError: The family has no group of such a name, or PEFT cannot train this model so.
        ModelError: No layer of this model is in one of the groups.
    """
    from peft import LoraConfig, get_peft_model

    from radloop.training.fused import fuse_layers
    from radloop.training.fused.lora_linear import LoraLinear

    if faults := target_faults(loaded.family, config.targets):
        raise ConfigError("\n".join(faults))
    if config.use_dora and loaded.precision == "int8" and loaded.device.type == "cpu":
        raise ConfigError(
            "finetune.use_dora: got true with model.precision int8, which PEFT cannot do on a CPU; use nf4, "
            "or leave it out"
        )
    _require_layers(loaded, config.targets)
    use_fast_attention(loaded.family, loaded.model, loaded.device)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        # One pattern, because PEFT writes a list of names in another order each time.
        target_modules="|".join(map(loaded.family.pattern, config.targets)),
        revision=loaded.reference.revision,
    )
    if loaded.is_exact:
        lora._register_custom_module({nn.Linear: LoraLinear})
    with without_future_warnings():
        model = get_peft_model(loaded.model, lora)
    fuse_layers(loaded.model.get_decoder())  # not in the vision tower: features are the same for all
    # PEFT puts the base's path here, which would differ from machine to machine.
    model.peft_config["default"].base_model_name_or_path = loaded.reference.name
    if not loaded.is_exact and not config.use_dora:  # DoRA computes norms in the precision of its input
        _leave_casting_to_autocast(model)
    return dataclasses.replace(loaded, model=model)


def _leave_casting_to_autocast(model: nn.Module) -> None:
    """Stop LoRA layers from casting their inputs to fp32 where autocast is on.

    Autocast would cast them back, so that each layer keeps a copy of its own for the backward pass, where
    query, key and value can share one.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_pre_hook(_cast_without_autocast)


def _cast_without_autocast(layer: Any, _inputs: tuple[Any, ...]) -> None:
    from radloop.training.fused.lora_linear import autocasts

    layer.cast_input_dtype_enabled = not autocasts(layer.get_base_layer().weight.device.type)


def _require_layers(loaded: Loaded, targets: Sequence[str]) -> None:
    names = [name for name, _ in loaded.model.named_modules()]
    for target in targets:
        pattern = re.compile(loaded.family.pattern(target))
        if not any(map(pattern.fullmatch, names)):
            raise ModelError(
                f"base model {loaded.reference.name}: has no layer to train in finetune.targets {target}; "
                "leave it out, or mend model.family"
            )


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter in a folder.

    Attributes:
        folder: Holds adapter_model.safetensors and adapter_config.json as PEFT writes them,
            base.json (which base) and record.json (settings, loss by step, versions).
    """

    folder: Path
    _owner: tempfile.TemporaryDirectory[str] | None = None  # deletes a folder that nobody has saved

    @classmethod
    def of(cls, loaded: Loaded, model: ModelConfig, record: dict[str, Any]) -> Self:
        """Write the LoRA layers of `loaded` into a temporary folder that lives as long as the result.

        Raises:
            TrainingError: It cannot be written; so for `save` and `copy`.
        """
        weights = trained_weights(loaded.model)  # whole, also where FSDP divides them
        trained, total = loaded.model.get_nb_trainable_parameters()
        parameters = {"trained": trained, "total": total, "share": trained / total}
        versions = {"radloop": __version__} | {name: version_of(name) for name in _VERSIONS}
        with _written_to(Path(tempfile.gettempdir())):
            owner = tempfile.TemporaryDirectory(prefix="radloop-adapter-")
            folder = Path(owner.name)
            # Without this argument PEFT asks the hub about the base's vocabulary.
            loaded.model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
            (folder / "README.md").unlink(missing_ok=True)
            _write_json(folder / "record.json", record | {"parameters": parameters, "versions": versions})
            _write_json(folder / "base.json", model.model_dump() | dataclasses.asdict(loaded.reference))
        return cls(folder, owner)

    def save(self, folder: Path) -> None:
        with _written_to(folder):
            for name in FILES:
                shutil.copyfile(self.folder / name, folder / name)

    def copy(self) -> Self:
        """Return a copy in a temporary folder that lives as long as it."""
        with _written_to(Path(tempfile.gettempdir())):
            owner = tempfile.TemporaryDirectory(prefix="radloop-adapter-")
        self.save(Path(owner.name))
        return type(self)(Path(owner.name), owner)

    @classmethod
    def load(cls, folder: Path) -> Self:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"adapter {folder}: lacks {', '.join(missing)}; give a folder that finetune has written"
            )
        return cls(folder)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Settings, `history` (one entry a step), `kept_step`, seconds, samples, parameters, versions."""
        record: dict[str, Any] = json.loads((self.folder / "record.json").read_text())
        return record

    @property
    def base(self) -> ModelConfig:
        """The base that the adapter was trained on, as the run's config named it."""
        content = json.loads((self.folder / "base.json").read_text())
        return ModelConfig(**{name: content[name] for name in ModelConfig.model_fields if name in content})

    @cached_property
    def sha256(self) -> str:
        """Hash of weights and LoRA settings: equal exactly when two adapters answer alike on one base."""
        digest = hashlib.sha256()
        for name in WEIGHTS:
            digest.update(hashlib.sha256((self.folder / name).read_bytes()).digest())
        return digest.hexdigest()

    def views(self) -> dict[str, str | bytes]:
        from radloop.training.plot import plot_history

        return {"training.png": plot_history(self.record)}

    def facts(self) -> dict[str, str | int | float]:
        history, record = self.record["history"], self.record
        kept = history[record["kept_step"] - 1]
        facts: dict[str, str | int | float] = {
            "sha256": self.sha256,
            "base": json.loads((self.folder / "base.json").read_text())["name"],
            "steps": len(history),
            "loss": kept["loss"],
            "samples": record["data"]["samples"],
            "images": record["data"]["images"],
            "seconds": round(record["seconds"], 1),
            "samples_per_s": round(record["samples_per_s"], 1),
            "trained_parameters": record["parameters"]["trained"],
        }
        return facts | {name: kept[name] for name in ("validation_loss", "exact_match") if name in kept}


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses in this block into a TrainingError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"finetune: the adapter cannot be written to {folder} ({error}); make room there (TMPDIR names "
            "the folder for temporary files). The same run, started again, goes on after its last checkpoint"
        ) from error


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
