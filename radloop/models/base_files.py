"""Finding the files of a base model, and refusing those that cannot or must not be loaded."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from radloop import hub
from radloop.config import ModelConfig
from radloop.errors import ConfigError, ModelError
from radloop.models.checkpoint_files import header, read_json, weight_files
from radloop.models.family import Family
from radloop.tiny_run import made_once

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
# Of config.json: what differs with who has saved or loaded it, and which token ends an answer or fills a row.
_VOLATILE = frozenset(
    {
        *("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype"),
        *("eos_token_id", "sep_token_id", "pad_token_id"),
    }
)


def name_of(config: ModelConfig) -> str:
    """Return 'tiny', 'tiny-FAMILY', the hub id, or the last part of the folder's name."""
    if config.tiny:
        return f"tiny-{config.family}"
    if config.base == "tiny" or is_from_hub(config):
        return config.base
    return Path(config.base).resolve().name


def is_from_hub(config: ModelConfig) -> bool:
    """Say whether `config.base` is a hub id: it is one where a revision is given, else a folder."""
    return not config.tiny and config.revision is not None


def locate(config: ModelConfig, family: Family) -> Path:
    """Return the folder that holds the base, fetched from the hub or made if it has to be.

    Raises:
        ConfigError: A revision is given, but the base is no hub id, or the name of a folder as well.
        ModelError: There is no such folder, or it cannot be fetched.
    """
    if config.tiny:
        return made_once(config.family, family.tiny)
    if is_from_hub(config):
        return _fetched(config)
    if config.base == "tiny":
        from radloop.models.tiny_base import tiny_base_folder

        return tiny_base_folder()
    folder = Path(config.base)
    if folder.is_dir():
        return folder
    # A missing folder such as models/llava reads like a hub id, under a name that anyone can register there.
    raise ModelError(
        f"base model {config.base}: there is no such folder; give 'tiny', a folder, or a hub id such as "
        "'llava-hf/llava-1.5-7b-hf' with its commit as model.revision, without which nothing is fetched"
    )


def _fetched(config: ModelConfig) -> Path:
    """Return the folder of a hub repository's snapshot."""
    if not _is_hub_id(config.base):
        raise ConfigError(
            f"model.revision: got {config.revision!r}, but model.base {config.base!r} is no hub id, and only "
            "those have revisions; leave it out"
        )
    if Path(config.base).is_dir():
        raise ConfigError(
            f"model.revision: got {config.revision!r}, so model.base {config.base!r} is a hub id, but a "
            "folder of that name is here, too; leave model.revision out for the folder, or rename that for "
            "the hub"
        )
    try:
        return hub.fetch(config.base, "model", config.revision, _HUB_FILES)
    except hub.HubError as error:
        raise ModelError(
            f"base model {config.base}: is no folder here and cannot be fetched from the hub "
            f"({error}); give a local folder with its config.json and safetensors files, or "
            "try the config out with random weights and simulated data: radloop run --tiny"
        ) from error


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~"))


def check_files(folder: Path, family: Family, config: ModelConfig) -> None:
    """Refuse what cannot or must not be loaded, in words of files rather than of Transformers.

    Raises:
        ModelError: There is no config, it is of another family or of an unsupported kind, or weights are
            missing, quantised, pickled, or elsewhere.
    """
    owner = f"base model {config.base}"
    content = read_json(folder / "config.json")
    model_type = content.get("model_type")
    if model_type != family.model_type:
        raise ModelError(
            f"{owner}: is of type {model_type!r}, but model.family {config.family!r} needs "
            f"{family.model_type!r}"
        )
    if content.get("quantization_config"):
        raise ModelError(
            f"{owner}: its weights are quantised already, as quantization_config in its config.json says; "
            "give the unquantised base, and model.precision nf4 or int8 to quantise it while loading"
        )
    if content.get("transformers_weights") or (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{owner}: its config.json names a file of weights (transformers_weights), or an adapter lies "
            "beside it, and Transformers would load those; give the folder of a base alone"
        )
    family.require_config(content)
    for file in weight_files(folder, owner):
        header(file)  # which a file cut short does not fit


def weights_sha256(folder: Path, config: ModelConfig) -> str:
    """Return the hash over the safetensors files of a folder.

    Raises:
        ModelError: It is not what the config says.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        state = file.stat()
        digest.update(_sha256(file.resolve(), state.st_size, state.st_mtime_ns, state.st_ino))
    found = digest.hexdigest()
    if config.sha256 not in (None, found) and not config.tiny:
        raise ModelError(
            f"base model {config.base}: its weights have the hash {found}, but model.sha256 is "
            f"{config.sha256}; they are others or damaged: fetch them again, or correct model.sha256"
        )
    return found


@cache
def _sha256(file: Path, _size: int, _mtime_ns: int, _inode: int) -> bytes:
    """Return a file's hash; a process that asks again reads it again only if it has changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def config_sha256(folder: Path) -> str:
    """Return the hash over config.json, which with the weights decides how a model answers."""
    content = json.dumps(_lasting(read_json(folder / "config.json")), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(part) for name, part in value.items() if name not in _VOLATILE}
    return value
