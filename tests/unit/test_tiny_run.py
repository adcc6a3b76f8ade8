"""What `tiny: true` changes of a config, and what it leaves."""

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from radloop import cli, preflight
from radloop.config import RunConfig
from radloop.data.ingest import ingest
from radloop.data.phantoms import formats
from radloop.data.phantoms.formats import REGISTRY
from radloop.errors import ConfigError, RadloopError
from radloop.tiny_run import provide_data, shrink_file

ROOT = Path(__file__).parents[2]
SYSTEMS = sorted((ROOT / "configs" / "systems").glob("*.yaml"))
CHANGED = {
    ("model_name",),
    ("tiny",),
    ("data", "sources"),
    ("preprocess", "image_size"),
    ("preprocess", "test"),
    ("model", "tiny"),
    ("model", "max_pixels"),
    ("finetune", "images_per_step"),
    ("finetune", "max_steps"),
    ("finetune", "learning_rate"),
    ("finetune", "warmup_steps"),
    ("evaluation", "max_new_tokens"),
    ("evaluation", "resamples"),
    ("judge", "judge"),
}


def flat(values: dict[str, Any], *above: str) -> dict[tuple[str, ...], Any]:
    """Return the settings by their places."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        found |= flat(value, *above, key) if isinstance(value, dict) else {(*above, key): value}
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tiny(**values: Any) -> RunConfig:
    return RunConfig.parse({"data": {"adapter": "phantoms"}, "tiny": True} | values, "here")


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_all_else_of_a_config_stays_as_it_is(path: Path) -> None:
    values = yaml.safe_load(path.read_text())["parameters"]["config"]
    full, small = RunConfig.read(path), RunConfig.parse(values | {"tiny": True}, "here")
    assert not full.tiny
    before, after = flat(full.model_dump()), flat(small.model_dump())
    assert {place for place in before if before[place] != after[place]} <= CHANGED
    assert small.model.tiny
    assert small.judge.judge == "offline"
    assert small.finetune.max_steps == 4
    assert small.finetune.learning_rate == pytest.approx(10 * full.finetune.learning_rate)
    assert (small.finetune.warmup_steps is None) == (full.finetune.warmup_steps is None)
    for old, new in zip(full.data.sources, small.data.sources, strict=True):
        assert (new.adapter, new.options) == (old.adapter, old.options)
        assert new.path != old.path


def test_what_is_small_already_is_not_made_larger() -> None:
    small = tiny(
        preprocess={"image_size": 48, "test": 0.5},
        finetune={"max_steps": 1, "images_per_step": 2, "warmup_steps": 1, "validate_every": 50},
        evaluation={"max_new_tokens": 3, "resamples": 20},
    )
    assert (small.preprocess.image_size, small.preprocess.test) == (48, 0.5)
    assert (small.finetune.max_steps, small.finetune.images_per_step) == (1, 2)
    assert (small.finetune.warmup_steps, small.finetune.validate_every) == (1, 1)
    assert (small.evaluation.max_new_tokens, small.evaluation.resamples) == (3, 20)
    assert tiny(preprocess={"validation": 0.7, "test": 0.1}).preprocess.test == pytest.approx(0.15)


def test_it_trains_in_this_process_and_on_places_of_its_own() -> None:
    options = {"database": "/data/mimic.db", "images": "/data/images", "context_tokens": 100}
    small = tiny(
        data={"adapter": "ehrxqa", "path": "/data/ehrxqa", "options": options},
        finetune={"launch": "configs/accelerate/multi_gpu.yaml"},
    )
    assert small.finetune.launch is None
    assert small.data.sources[0].options == {"context_tokens": 100}


@pytest.mark.parametrize("adapter", ["vqa_rad", "slake", "med_vqa", "mimic_cxr", "open_i", "roco", "ehrxqa"])
def test_data_are_written_in_the_layout_of_the_adapter(home: Path, adapter: str) -> None:
    config = tiny(data={"adapter": adapter, "path": "/nowhere"})
    assert adapter in REGISTRY
    provide_data(config)
    (written,) = (home / "tiny").iterdir()
    assert config.data.sources[0].path == str(written)
    corpus = ingest(config.data)
    assert corpus.images.num_rows == {"roco": 12}.get(adapter, 14)  # the chest subset has no validation split
    before = written.stat().st_mtime_ns
    provide_data(config)
    assert written.stat().st_mtime_ns == before


def test_processes_at_once_write_the_data_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are at it before the first is done, and a killed one has left half of it."""
    config = tiny(data={"adapter": "slake", "path": "/nowhere"})
    (home / "tiny" / ".writing-killed" / "imgs").mkdir(parents=True)
    together, stock = threading.Barrier(3), formats.write

    def write(*given: Any, **named: Any) -> None:
        together.wait(timeout=30)
        stock(*given, **named)

    monkeypatch.setattr(formats, "write", write)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(provide_data, [config] * 3))
    assert [path for path in (home / "tiny").iterdir() if not path.name.startswith(".")] == [
        Path(str(config.data.sources[0].path))
    ]
    assert ingest(config.data).images.num_rows == 14
    assert [path.name for path in (home / "tiny").glob(".*")] == [".writing-killed"]


def test_another_version_writes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(data={"adapter": "slake", "path": "/nowhere"})
    monkeypatch.setattr("radloop.tiny_run.__version__", "0.0.9")
    assert tiny(data={"adapter": "slake", "path": "/nowhere"}).data.sources[0].path != (
        config.data.sources[0].path
    )


def test_a_folder_that_cannot_be_written_is_one_message(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(RadloopError, match=f"{home}: cannot be written"):
        provide_data(tiny(data={"adapter": "slake", "path": "/nowhere"}))


def test_two_sources_of_a_kind_are_other_phantoms(home: Path) -> None:
    sources = [{"name": name, "adapter": "slake", "path": "/nowhere"} for name in ("one", "two")]
    config = tiny(data={"sources": sources})
    provide_data(config)
    hashes = ingest(config.data).images["pixel_hash"].to_pylist()
    assert len(set(hashes)) == len(hashes) == 28


def test_nothing_is_written_for_a_config_that_is_not_tiny(home: Path) -> None:
    provide_data(RunConfig.parse({"data": {"adapter": "slake", "path": "/nowhere"}}, "here"))
    assert not home.exists()


def test_a_copy_of_the_file_says_tiny(home: Path) -> None:
    source = ROOT / "configs" / "systems" / "chatxray.yaml"
    copy = shrink_file(source)
    assert copy.is_relative_to(home)
    assert RunConfig.read(copy).tiny
    assert not RunConfig.read(source).tiny
    values = yaml.safe_load(source.read_text())
    values["parameters"]["config"]["tiny"] = True
    assert yaml.safe_load(copy.read_text()) == values
    assert shrink_file(copy).read_text() == copy.read_text()


def test_copies_of_a_config_under_other_names_are_no_hindrance(home: Path, tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        shutil.copy(SYSTEMS[0], tmp_path / name)
        assert RunConfig.read(shrink_file(tmp_path / name)).tiny


def test_faults_are_named_in_the_file_that_the_user_wrote(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("parameters: {config: {data: {adapter: phantoms}, sed: 3}}")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}: 1 fault .*\n.*unknown key 'sed'"):
        shrink_file(file)


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_without_it_a_check_says_all_that_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADLOOP_DATA", "/nowhere")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    config = RunConfig.read(path)
    done = CliRunner().invoke(cli.app, ["check", str(path)])
    message = str(done.exception)
    assert type(done.exception) is preflight.RadloopError, done.exception
    fault = "is no folder here and cannot be fetched from the hub"
    if config.model.revision is None:
        fault = "there is no such folder"
    assert f"base model {config.model.base}: {fault}" in message
    assert f"{config.data.sources[0].path}: no such file or folder; " in message
    assert ("judge 'openai': not set in the environment" in message) == (config.judge.judge == "openai")
