"""The adapter as an artifact: what is in its folder, what its hash covers, what it shows."""

import json
from pathlib import Path

import pytest
import torch

from radloop import models
from radloop.artifact import Artifact
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ModelError
from radloop.models.packing import Batch, groups
from radloop.training import finetune
from radloop.training.adapter import FILES, Adapter
from tests.unit.tiny import image, prepared, save_base


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    base = save_base(tmp_path_factory.mktemp("bases") / "first")
    config = FinetuneConfig(epochs=3, images_per_step=2, rank=2)
    return finetune(prepared(4, validation=2), ModelConfig(base=str(base)), config, seed=0)


def test_it_lives_in_a_folder(adapter: Adapter, tmp_path: Path) -> None:
    assert isinstance(adapter, Artifact)
    adapter.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    again = Adapter.load(tmp_path)
    assert (again.sha256, again.record, again.facts()) == (adapter.sha256, adapter.record, adapter.facts())


def test_a_reloaded_adapter_changes_what_the_base_says(adapter: Adapter) -> None:
    base, tuned = models.load(adapter.base), models.load(adapter.base, adapter.folder)
    prompts = base.prompts.questions(["Which side?"], [[(48, 48)]])
    batch = Batch.of([(group,) for group in groups(["0"], prompts)])
    logits = [
        loaded.family.logits(loaded.model, batch, loaded.encode([image(0)])) for loaded in (base, tuned)
    ]
    assert not torch.allclose(*logits, atol=1e-2)


def test_no_file_but_base_json_knows_where_the_base_lay(adapter: Adapter) -> None:
    config = json.loads((adapter.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "first"
    where = adapter.base.base.encode()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert where not in (adapter.folder / name).read_bytes()
    assert adapter.base.family == "llava"


def test_the_hash_covers_weights_and_settings_but_not_the_record(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path)
    (tmp_path / "record.json").write_text("{}")
    assert Adapter.load(tmp_path).sha256 == adapter.sha256
    weights = bytearray((tmp_path / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    assert Adapter.load(tmp_path).sha256 != adapter.sha256


def test_the_record_tells_the_run(adapter: Adapter) -> None:
    record = adapter.record
    assert record["settings"]["rank"] == 2
    assert record["seed"] == 0
    assert record["data"] == {
        "fingerprint": "0123456789abcdef",
        "images": 4,
        "samples": 10,
        "cut_answers": 0,
        "validation_samples": 3,
    }
    assert record["parameters"]["trained"] == 2 * 2 * (4 * (32 + 32) + 3 * (32 + 64))
    assert [entry["step"] for entry in record["history"]] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in record["history"] if "validation_loss" in entry] == [2, 4, 6]
    facts = adapter.facts()
    assert facts["steps"] == 6
    assert facts["validation_loss"] == record["history"][-1]["validation_loss"]


def test_it_shows_a_plot(adapter: Adapter) -> None:
    views = adapter.views()
    assert list(views) == ["training.png"]
    assert bytes(views["training.png"]).startswith(b"\x89PNG")  # type: ignore[arg-type]


def test_an_unsaved_adapter_leaves_nothing_behind(adapter: Adapter) -> None:
    unsaved = finetune(prepared(2), adapter.base, FinetuneConfig(epochs=1, rank=1), seed=0)
    folder = unsaved.folder
    assert folder.is_dir()
    del unsaved
    assert not folder.exists()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_a_file_is_refused(adapter: Adapter, tmp_path: Path, name: str) -> None:
    adapter.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=f"lacks {name}"):
        Adapter.load(tmp_path)
