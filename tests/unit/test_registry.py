"""Versions, decisions and their audit, in a real MLflow on a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from radloop import registry, workspace
from radloop.answering import AnswerConfig
from radloop.config import EvaluationConfig, PreprocessConfig
from radloop.errors import ModelError, RegistryError

METRICS = {"exact_match": 0.94, "exact_match_base": 0.26, "n": 300, "intervals": {"exact_match": [0.9, 0.97]}}
ANSWERING = AnswerConfig.of(PreprocessConfig(), EvaluationConfig())
MERGE = {"precision": "fp32", "max_difference": 1e-6, "tolerance": 1e-4, "carried": 1.0, "agrees": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in workspace.variables(folder).items():
            patch.setenv(name, value)
        (folder / "elsewhere").mkdir()
        patch.chdir(folder / "elsewhere")
        yield folder
    mlflow.end_run()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_config.json", "base.json", "record.json"):
        (tmp_path / name).write_text('{"name": "tiny"}')
    (tmp_path / "record.json").write_text(json.dumps({"merge": MERGE}))
    (tmp_path / "optimizer.pt").write_text("not part of an adapter")
    return tmp_path


def register(adapter: Path, name: str, fingerprint: str = "abcd", **tags: str) -> registry.Version:
    provenance = {"fingerprint": fingerprint, "recipe": "r1", **tags}
    return registry.register(name, adapter, ANSWERING, tags=provenance, metrics=METRICS)


def audit(home: Path, name: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (home / "audit.log").read_text().splitlines()]
    return [line for line in lines if line["model"] == name]


def test_a_version_carries_its_evidence(home: Path, adapter: Path) -> None:
    version = register(adapter, "evidence", git_commit="c0ffee")
    assert (version.version, version.aliases, version.metrics) == (1, ("challenger",), METRICS)
    assert version.tags["git_commit"] == "c0ffee"
    assert registry.versions("evidence") == [version]
    assert registry.describe(version) == {
        "name": "evidence",
        "version": 1,
        "aliases": ["challenger"],
        "metrics": {
            "exact_match": 0.94,
            "exact_match_base": 0.26,
            "exact_match_blind": None,
            "exact_match_shuffled": None,
            "n": 300,
        },
        "fingerprint": "abcd",
        "bento": None,
        "promoted": False,
        "reason": "",
    }


def test_the_files_are_complete_and_none_is_pickled(home: Path, adapter: Path) -> None:
    version = register(adapter, "files")
    folder = registry.adapter_folder(version)
    assert {file.name for file in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "base.json",
        "record.json",
        "answer.json",
    }
    assert AnswerConfig.read(folder) == ANSWERING
    model = folder.parents[1]
    assert home in model.parents
    suffixes = {file.suffix for file in model.rglob("*") if file.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".joblib", ".pt", ".bin", ".pyc"}
    assert (model / "code" / "radloop" / "inference" / "engine.py").is_file()


def test_nothing_is_written_to_the_current_folder_or_the_terminal(
    home: Path, adapter: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    register(adapter, "quiet")
    assert list(Path.cwd().iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_same_adapter_is_registered_once(home: Path, adapter: Path) -> None:
    first, again = register(adapter, "once"), register(adapter, "once")
    assert again == first
    other_data = register(adapter, "once", fingerprint="ef01")
    (adapter / "adapter_model.safetensors").write_text("other weights")
    other_weights = register(adapter, "once")
    assert [other_data.version, other_weights.version] == [2, 3]
    assert [version.aliases for version in registry.versions("once")] == [("challenger",), (), ()]


def test_a_kill_before_the_version_leaves_none(
    home: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_model_version", killed)
        with pytest.raises(KeyboardInterrupt):
            register(adapter, "killed")
    assert registry.versions("killed") == []
    assert registry.champion("killed") is None
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            register(adapter, "killed")
    (whole,) = registry.versions("killed")
    assert (whole.metrics, whole.fingerprint, whole.aliases) == (METRICS, "abcd", ())
    assert register(adapter, "killed").aliases == ("challenger",)


def test_promotion_and_rollback(home: Path, adapter: Path) -> None:
    for fingerprint in ("a", "b", "c"):
        register(adapter, "moves", fingerprint)
    assert registry.promote("moves", 1, "first").aliases == ("champion",)
    second = registry.promote("moves", 2, "better")
    assert (second.aliases, second.tags["promoted"], second.tags["reason"]) == (
        ("champion",),
        "true",
        "better",
    )
    third = registry.promote("moves", 3, "best")
    assert third.aliases == ("champion",)  # and no longer challenger

    assert registry.rollback("moves").version == 2
    assert registry.version("moves", 3).tags["promoted"] == "false"
    assert registry.rollback("moves").version == 1
    champion = registry.champion("moves")
    assert champion is not None
    assert champion.version == 1
    with pytest.raises(RegistryError, match=r"version 1 .*first champion.*known versions: 3, 2, 1"):
        registry.rollback("moves")

    moves = [(line["action"], line["from"], line["to"]) for line in audit(home, "moves")]
    assert moves == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]
    assert all(line["who"] and str(line["time"]).endswith("+00:00") for line in audit(home, "moves"))


def test_promoting_the_champion_again_keeps_its_predecessor(home: Path, adapter: Path) -> None:
    for fingerprint in ("a", "b"):
        register(adapter, "twice", fingerprint)
    for number in (1, 2, 2):
        registry.promote("twice", number, "gates passed")
    assert registry.rollback("twice").version == 1


def test_a_refusal_is_kept_with_its_reason(home: Path, adapter: Path) -> None:
    register(adapter, "refused")
    version = registry.refuse("refused", 1, "does not look at the image")
    assert registry.describe(version)["reason"] == "does not look at the image"
    assert (version.tags["promoted"], version.aliases) == ("false", ("challenger",))
    assert registry.champion("refused") is None


def test_unknown_names_and_numbers_list_the_known_ones(home: Path, adapter: Path) -> None:
    register(adapter, "known")
    with pytest.raises(RegistryError, match=r"'known' has no version 7; known versions: 1"):
        registry.promote("known", 7, "")
    with pytest.raises(RegistryError, match=r"'unknown' has no version 1; known models: .*known"):
        registry.set_bento("unknown", 1, "x:y")
    with pytest.raises(RegistryError, match=r"'unknown' has no champion.*known models"):
        registry.rollback("unknown")
    assert registry.versions("unknown") == []
    assert "known" in registry.names()


def test_a_folder_that_is_no_adapter_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks adapter_model\.safetensors"):
        register(tmp_path, "nothing")
    assert "nothing" not in registry.names()


@pytest.mark.parametrize(
    ("record", "why"),
    [({"merge": MERGE | {"agrees": False}}, "it says something else"), ({}, "earlier versions of radloop")],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    home: Path, adapter: Path, record: dict[str, object], why: str
) -> None:
    (adapter / "record.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=f"{why}.*fine-tune again"):
        register(adapter, "unmerged")
    assert "unmerged" not in registry.names()


def test_the_files_of_an_experiment_lie_in_the_project(home: Path) -> None:
    found = mlflow.MlflowClient().get_experiment(registry.experiment("train_pipeline"))
    assert found.artifact_location == (home / "mlartifacts" / "train_pipeline").as_uri()
    assert registry.experiment("train_pipeline") == found.experiment_id


def test_a_registry_that_cannot_be_opened_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(RegistryError, match=r"registry at sqlite:.* failed: .*; check that .* RADLOOP_HOME"):
        registry.versions("radloop")


def test_a_password_in_the_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError) as error:
        registry.versions("radloop")
    assert "secret" not in str(error.value)
    assert "127.0.0.1:1" in str(error.value)
