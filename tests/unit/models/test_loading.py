"""Which bases and adapters load, and in what words the others are refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from radloop import models
from radloop.config import FinetuneConfig, ModelConfig
from radloop.errors import ConfigError, ModelError, OutOfMemory
from radloop.models.base_files import config_sha256
from radloop.models.sketch import sketch
from radloop.training import finetune
from radloop.training.adapter import with_lora
from tests.unit.tiny import image, prepared, save_base


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
    with pytest.raises(ConfigError, match=r"unknown model family 'lava'; known: .*llava, "):
        models.get_family("lava")


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "a/b/c", "llava", "models/llava-med"])
def test_a_missing_folder_is_named_and_not_asked_for_elsewhere(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radloop.hub.fetch", lambda *_: pytest.fail("asks the hub"))
    with pytest.raises(ModelError, match=f"base model {name}: there is no such folder; .*model.revision"):
        models.load(ModelConfig(base=name))


def test_a_hub_id_without_the_hub_asks_for_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"someone/llava: is no folder here and cannot be fetched.*local folder"
    ):
        models.load(ModelConfig(base="someone/llava", revision="abc"))


def test_a_hub_id_is_fetched_at_its_revision(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "0123abcd")
    asked = []

    def fetch(name: str, kind: str, revision: str, patterns: list[str]) -> Path:
        asked.append((name, revision))
        assert kind == "model"
        assert "*.bin" not in patterns
        return tmp_path / "0123abcd"

    monkeypatch.setattr("radloop.hub.fetch", fetch)
    reference = models.find(ModelConfig(base="someone/llava", revision="0123abcd"))[1]
    assert asked == [("someone/llava", "0123abcd")]
    assert (reference.name, reference.revision) == ("someone/llava", "0123abcd")


@pytest.mark.parametrize("name", ["tiny", "llava", "./someone/llava", "someone/llava", "{folder}"])
def test_a_folder_has_no_revision(
    name: str, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a folder has the name of a hub id, so that neither is taken for the other."""
    monkeypatch.setattr("radloop.hub.fetch", lambda *_: pytest.fail("asks the hub"))
    monkeypatch.chdir(tmp_path)
    for place in ("llava", "someone/llava"):
        shutil.copytree(base, tmp_path / place)
    config = ModelConfig(base=name.format(folder=tmp_path / "llava"))
    with pytest.raises(ConfigError, match=r"model.revision: got 'abc'.* leave (it|model.revision) out"):
        models.find(config.model_copy(update={"revision": "abc"}))
    if name != "tiny":  # of another family
        assert models.find(config)[1].revision is None


def test_parts_without_the_index_are_told_as_such(tmp_path: Path) -> None:
    folder = save_base(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"has parts .*00001-of-00002.* not the .*index.json.*download that"):
        models.find(ModelConfig(base=str(folder)))


def test_a_whole_file_beside_parts_is_taken_as_transformers_does(tmp_path: Path) -> None:
    folder = save_base(tmp_path)
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert models.load(ModelConfig(base=str(folder))).model is not None


def test_too_little_memory_for_a_base_is_told_as_such(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", fail)
    with pytest.raises(OutOfMemory, match=r"first: out of memory while it was loaded; set .*nf4.*20\.00 GiB"):
        models.load(ModelConfig(base=str(base)))


@pytest.mark.parametrize("look", [models.load, models.find])
def test_weights_cut_short_are_found_before_anything_is_loaded(tmp_path: Path, look: Any) -> None:
    folder = save_base(tmp_path)
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelError, match=r"model.safetensors: is damaged or not whole .*download it again"):
        look(ModelConfig(base=str(folder)))


@pytest.mark.parametrize("look", [models.load, sketch])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_token_index": 5}, r"config.json has 5 for the token of an image, its processor \d+; mend"),
        ({"text_config": {"num_attention_heads": 0}}, "cannot be loaded"),
    ],
)
def test_a_config_that_does_not_fit_is_one_message(
    tmp_path: Path, look: Any, change: dict[str, Any], words: str
) -> None:
    file = save_base(tmp_path) / "config.json"
    content = json.loads(file.read_text())
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words):
        look(ModelConfig(base=str(file.parent)))


def test_importing_peft_says_nothing_of_kernels() -> None:
    program = "from radloop.training import merged_checkpoint"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr


def test_another_type_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama"}))
    with pytest.raises(ModelError, match=r"is of type 'mllama', but model\.family 'llava' needs 'llava'"):
        models.load(ModelConfig(base=str(tmp_path)))


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_a_folder_without_a_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config.json: cannot be read|holds no JSON object"):
        models.load(ModelConfig(base=str(tmp_path)))


def test_pickled_weights_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ModelError, match="has no weights"):
        models.load(ModelConfig(base=str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
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


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    folder = save_base(tmp_path)
    shards = {"a": "model-00001-of-00003.safetensors", "b": "model-00003-of-00003.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards | {"c": "model-00002-of-00003.safetensors"}}))
    with pytest.raises(
        ModelError, match=r"names files that are not there: model-00001.*, model-00003[^,]*; copy"
    ):
        models.load(ModelConfig(base=str(folder)))
    index.write_text("[]")
    with pytest.raises(ModelError, match=r"index.json: holds no JSON object"):
        models.load(ModelConfig(base=str(folder)))


def test_a_base_in_shards_loads_once_they_are_all_there(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "whole")
    model = models.load(ModelConfig(base=str(folder))).model
    shutil.copytree(folder, tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = models.load(ModelConfig(base=str(tmp_path / "shards"))).model
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_weights_that_are_not_those_of_the_hash_are_refused(base: Path) -> None:
    config = ModelConfig(base=str(base))
    found = models.find(config)[1].sha256
    assert models.load(config.model_copy(update={"sha256": found})).reference.sha256 == found
    with pytest.raises(
        ModelError, match=f"its weights have the hash {found}, but model.sha256 is {'0' * 64}"
    ):
        models.load(config.model_copy(update={"sha256": "0" * 64}))


def test_weights_are_hashed_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_base(tmp_path)
    hashed = []
    stock = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: hashed.append(given) or stock(*given))
    first, again = (models.find(ModelConfig(base=str(folder)))[1].sha256 for _ in range(2))
    assert first == again
    assert len(hashed) == 1
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as before
    assert models.find(ModelConfig(base=str(folder)))[1].sha256 != first
    assert len(hashed) == 2


def test_random_weights_stand_in_for_any_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "state"))
    config = ModelConfig(base="nobody/has-this-7b", revision="abc", sha256="0" * 64, tiny=True)
    folder, reference = models.find(config)
    assert folder.parent == tmp_path / "state" / "tiny"
    assert (reference.name, reference.revision) == ("tiny-llava", None)
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert models.load(config).reference == reference
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "other"))
    assert models.find(config)[1] == reference


def test_a_limit_of_pixels_goes_to_the_family(base: Path) -> None:
    with pytest.raises(
        ConfigError, match="max_pixels: got 1000, but family llava scales images to sizes of its own"
    ):
        models.load(ModelConfig(base=str(base), max_pixels=1000))


Weights = dict[str, torch.Tensor]


def change_weights(file: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(file)), file, {"format": "pt"})


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {name: value for name, value in weights.items() if "projector" not in name},
            r"not those of its config\.json: missing model\.multi_modal_projector\.linear_1\.bias, ",
        ),
        (
            lambda weights: weights | {"language_model.model.layers.7.mlp.up_proj.weight": torch.zeros(1)},
            r"config\.json: unknown model\.language_model\.layers\.7\.mlp\.up_proj\.weight; mend",
        ),
        (
            lambda weights: weights | {"multi_modal_projector.linear_1.bias": torch.zeros(3)},
            r"config\.json: misshapen model\.multi_modal_projector\.linear_1\.bias; mend",
        ),
    ],
    ids=["missing", "unknown", "other shape"],
)
@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_no_layer_is_left_as_drawn(
    base: Path, tmp_path: Path, change: Callable[[Weights], Weights], message: str, precision: str
) -> None:
    if precision == "nf4":
        pytest.importorskip("bitsandbytes")
    folder = copied(base, tmp_path / "base")
    change_weights(folder / "model.safetensors", change)
    with pytest.raises(ModelError, match=message):
        models.load(ModelConfig(base=str(folder), precision=precision))


def test_what_older_checkpoints_keep_beside_the_weights_is_ignored(base: Path, tmp_path: Path) -> None:
    folder = copied(base, tmp_path / "base")
    ids = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(16)[None]}
    change_weights(folder / "model.safetensors", lambda weights: weights | ids)
    assert models.load(ModelConfig(base=str(folder)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, r"quantised already.* give the unquantised base"),
        ({"transformers_weights": "sub/other.safetensors"}, r"names a file of weights"),
        ({"vision_config": {"model_type": "pixtral"}}, "vision tower is a Pixtral"),
        ({"text_config": []}, "cannot be loaded: .*text_config"),
        ({"text_config": {"model_type": "llama", "hidden_size": "32"}}, "cannot be loaded: .*hidden_size"),
    ],
)
def test_a_config_that_cannot_be_loaded_is_one_message(
    base: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    folder = copied(base, tmp_path / "base")
    change_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=f"(?s){message}"):
        models.load(ModelConfig(base=str(folder)))


def test_a_base_with_an_adapter_beside_it_is_refused(base: Path, tmp_path: Path) -> None:
    folder = copied(base, tmp_path / "base")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "another/base"}')
    with pytest.raises(ModelError, match="or an adapter lies beside it"):
        models.load(ModelConfig(base=str(folder)))


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/model.safetensors", "a.bin", 3])
def test_an_index_names_files_of_its_own_folder_only(base: Path, tmp_path: Path, name: object) -> None:
    copied(base, tmp_path / "other")
    folder = copied(base, tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"does not give each weight the name of a \*\.safetensors file"):
        models.find(ModelConfig(base=str(folder)))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "first"
    loaded = with_lora(models.load(ModelConfig(base=str(base))), FinetuneConfig(rank=2))
    loaded.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "base.json").write_text(json.dumps(vars(loaded.reference)))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: {name: value for name, value in weights.items() if "layers.0" in name},
            r"missing base_model\.model\.model\.language_model\.layers\.1\.[^;]*; give",
        ),
        (
            lambda weights: {name.replace("layers", "blocks"): value for name, value in weights.items()},
            r"missing base_model.*; unknown base_model\.model\.model\.language_model\.blocks",
        ),
    ],
    ids=["half", "renamed"],
)
def test_an_adapter_brings_all_its_layers_and_no_others(
    base: Path, adapter: Path, tmp_path: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    folder = copied(adapter, tmp_path / "adapter")
    change_weights(folder / "adapter_model.safetensors", change)
    with pytest.raises(ModelError, match=message):
        models.load(ModelConfig(base=str(base)), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "XLORA", "adapters": {"0": "someone/adapter"}}, "peft_type 'XLORA'"),
        ({"peft_type": None}, "peft_type None, but radloop loads 'LORA' only"),
        ({"bias": "all"}, "sets bias, which"),
        ({"modules_to_save": ["lm_head"], "target_parameters": ["x"]}, "sets modules_to_save, target_param"),
        ({"megatron_config": {"x": 1}, "megatron_core": "os"}, "sets .*megatron_core"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights"),
    ],
)
def test_an_adapter_is_lora_layers_and_nothing_else(
    base: Path, adapter: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    folder = copied(adapter, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(dict(sorted((json.loads(file.read_text()) | changes).items()))))
    with pytest.raises(ModelError, match=message):
        models.load(ModelConfig(base=str(base)), folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": "first", "sha256": 3}'])
def test_a_spoilt_base_json_is_one_message(base: Path, adapter: Path, tmp_path: Path, content: str) -> None:
    folder = copied(adapter, tmp_path / "adapter")
    (folder / "base.json").write_text(content)
    with pytest.raises(ModelError, match=r"base\.json"):
        models.load(ModelConfig(base=str(base)), folder)


def test_equal_weights_with_another_config_are_another_base(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = copied(base, tmp_path / "base")
    change_json(folder / "config.json", transformers_version="0", dtype="bfloat16", _name_or_path="x")
    assert config_sha256(folder) == config_sha256(base)
    change_json(folder / "config.json", vision_feature_layer=-1)
    config = ModelConfig(base=str(folder))
    with pytest.raises(ModelError, match=r"was trained on base first with another config\.json than base "):
        models.load(config, adapter)
    older = copied(adapter, tmp_path / "older")
    change_json(older / "base.json", config_sha256=None)
    assert models.load(config, older).model.peft_config


def test_training_goes_on_after_an_image_that_cannot_be_read(base: Path) -> None:
    loaded = models.load(ModelConfig(base=str(base)))
    loaded.model.train()
    tower = loaded.model.model.vision_tower.eval()  # by whoever wants it so
    loaded.processor.num_additional_image_tokens = 5
    with pytest.raises(ModelError, match="tokens of an image"):
        loaded.encode([image(0)])
    assert loaded.model.training
    assert loaded.model.get_decoder().layers[0].training
    assert not tower.training


def test_nothing_is_random_while_features_are_computed(base: Path) -> None:
    loaded = models.load(ModelConfig(base=str(base)))
    loaded.model.train()
    with loaded.frozen():
        assert not any(module.training for module in loaded.model.modules())
        assert not torch.is_grad_enabled()
    assert all(module.training for module in loaded.model.modules())
