"""Which bases and adapters load, and in what words the others are refused."""

import json
from pathlib import Path

import pytest
import torch

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError, ModelError
from radloop.training import finetune
from tests.unit.tiny import prepared, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "first")


def test_a_loaded_base_is_ready_to_answer_and_knows_its_weights(base: Path, tmp_path: Path) -> None:
    loaded = models.load(ModelConfig(base=str(base)))
    assert not loaded.model.training
    assert loaded.model.dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    assert (loaded.reference.name, loaded.reference.revision) == ("first", None)
    assert loaded.reference == models.load(ModelConfig(base=str(base))).reference
    other = models.load(ModelConfig(base=str(save_base(tmp_path, seed=1))))
    assert other.reference.sha256 != loaded.reference.sha256


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown model family 'lava'; known: llava"):
        models.get_family("lava")


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "a/b/c", "llava"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"base model {name}: there is no such folder"):
        models.load(ModelConfig(base=name))


def test_a_hub_id_without_the_hub_asks_for_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"someone/llava: is no folder here and cannot be fetched.*local folder"
    ):
        models.load(ModelConfig(base="someone/llava"))


def test_another_type_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama"}))
    with pytest.raises(ModelError, match=r"is of type 'mllama', but model\.family 'llava' needs 'llava'"):
        models.load(ModelConfig(base=str(tmp_path)))


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_a_folder_without_a_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config.json cannot be read|is of type None"):
        models.load(ModelConfig(base=str(tmp_path)))


def test_pickled_weights_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ModelError, match="has no weights"):
        models.load(ModelConfig(base=str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
        models.load(ModelConfig(base=str(tmp_path)))


def test_truncated_weights_are_one_message(tmp_path: Path) -> None:
    weights = save_base(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load(ModelConfig(base=str(tmp_path)))


def test_an_adapter_goes_on_its_own_base_only(base: Path, tmp_path: Path) -> None:
    adapter = finetune(prepared(2), ModelConfig(base=str(base)), FinetuneConfig(epochs=1, rank=2), seed=0)
    assert models.load(ModelConfig(base=str(base)), adapter.folder).model.peft_config
    other = save_base(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"was trained on base first with weights .* but this is other"):
        models.load(ModelConfig(base=str(other)), adapter.folder)


@pytest.mark.parametrize("left", [(), ("adapter_config.json",), ("adapter_model.safetensors",)])
def test_half_an_adapter_is_refused(base: Path, tmp_path: Path, left: tuple[str, ...]) -> None:
    for name in left:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match="lacks adapter_"):
        models.load(ModelConfig(base=str(base)), tmp_path)
