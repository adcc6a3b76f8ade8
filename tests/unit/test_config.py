from pathlib import Path

import pytest
import yaml

from radloop.config import DEFAULT_CONFIG, PreprocessConfig, RunConfig
from radloop.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOOD = {"data": {"adapter": "phantoms", "options": {"seed": 3}}}


def faults(values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(values, "here")
    return caught.value.message


@pytest.mark.parametrize("path", [DEFAULT_CONFIG, *sorted(Path("configs").glob("*.yaml"))], ids=str)
def test_every_shipped_config_is_valid(path: Path) -> None:
    RunConfig.read(ROOT / path)


def test_all_faults_are_reported_at_once_with_place_value_and_remedy() -> None:
    message = faults(
        GOOD
        | {
            "sed": 3,
            "finetune": {"lerning_rate": 1e-3, "epochs": "many", "rank": 0},
            "judge": {"judge": "gpt"},
        }
    )
    assert message.startswith("here: 5 faults")
    assert "sed: unknown key 'sed'" in message
    assert "did you mean 'seed'?" in message
    assert "finetune.lerning_rate: unknown key 'lerning_rate'; known: rank, alpha" in message
    assert "did you mean 'learning_rate'?" in message
    assert "finetune.epochs" in message
    assert "got 'many'" in message
    assert "finetune.rank" in message
    assert "judge.judge" in message


def test_names_and_options_of_the_registries_are_checked() -> None:
    found = faults({"data": {"adapter": "vqa_rat"}})
    assert "data.adapter: unknown name 'vqa_rat'; known: phantoms, vqa_rad, slake, " in found
    assert found.endswith("did you mean 'vqa_rad'?")
    assert "data.options.train_imags: unknown key" in faults(
        {"data": {"adapter": "phantoms", "options": {"train_imags": 3}}}
    )
    assert "unknown name 'lava'" in faults(GOOD | {"model": {"family": "lava"}})


def test_what_was_meant_is_guessed() -> None:
    found = faults(
        GOOD
        | {
            "model": {"precision": "float16"},
            "finetune": {"targets": ["q_proj", "vison", "mlp", "lungs.q_proj"], "optimiser": "adamw"},
        }
    )
    assert "model.precision: unknown value 'float16'; known: auto, fp32, bf16, fp16, int8, nf4; " in found
    assert "did you mean 'fp16'?" in found
    assert "did you mean 'optimizer'?" in found
    groups = "known: attention, mlp, projector, vision"
    assert f"finetune.targets: unknown group of layers 'q_proj'; {groups} (a single layer" in found
    assert f"finetune.targets: unknown group of layers 'vison'; {groups}; did you mean 'vision'? (a" in found
    assert f"unknown group of layers 'lungs'; {groups} (a single layer of a group is GROUP.LAYER)" in found
    assert "5 faults" in found
    assert "did you mean 'mllama'?" in faults(GOOD | {"model": {"family": "llama_vision"}})


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"model": {"family": ["llava"]}}, 1),
        ({"model": {"family": {"a": 1}}, "finetune": {"targets": ["vison"]}}, 1),
        ({"finetune": {"targets": [5]}}, 1),
        ({"finetune": {"targets": [], "epochs": 0}}, 2),
        ({"data": 5}, 1),
    ],
)
def test_odd_types_are_one_fault_each(values: dict[str, object], count: int) -> None:
    assert faults(GOOD | values).startswith(f"here: {count} fault")


def test_large_values_are_not_repeated_in_full() -> None:
    assert len(faults(GOOD | {"finetune": {"rank": list(range(1000))}})) < 300


def test_several_sources_are_checked_each_in_its_place() -> None:
    sources = [
        {"adapter": "phantoms"},
        {"adapter": "slake", "path": "x", "options": {"lang": "en"}},
        {"path": "y"},
    ]
    found = faults({"data": {"sources": sources}})
    assert "data.sources.1.options.lang: unknown key 'lang'; known: language" in found
    assert "data.sources.2.adapter: is missing" in found
    assert RunConfig.parse({"data": {"sources": sources[:1]}}, "here") == RunConfig.parse(
        {"data": {"adapter": "phantoms"}}, "here"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "data.adapter: is missing"),
        (
            {"adapter": "phantoms", "worker": 2},
            "data.worker: unknown key 'worker'; known: name, adapter, path, options",
        ),
        (
            {"adapter": "phantoms", "workers": 0},
            "data.workers: Input should be greater than or equal to 1; got 0",
        ),
        (
            {"adapter": "phantoms", "engine": "dask"},
            "data.engine: unknown value 'dask'; known: local, ray",
        ),
        ({"adapter": 5}, "data.adapter: Input should be a valid string; got 5"),
        ({"sources": []}, "data.sources: "),
        ({"sources": "phantoms"}, "data.sources: "),
        ({"sources": [{"adapter": "phantoms"}], "adapter": "phantoms"}, "data.adapter: unknown key"),
    ],
)
def test_faults_of_a_single_source_are_named_as_they_are_written(data: object, words: str) -> None:
    assert words in faults({"data": data})


def test_prompts_take_question_and_context() -> None:
    fill = PreprocessConfig().to_prompt
    assert fill("Why?") == "Why?"
    assert fill("{context}?", "BNP {question}") == "BNP {question}\n{context}?"
    assert PreprocessConfig(prompt="Q: {question}\nA:").to_prompt("Why?", "left out") == "Q: Why?\nA:"


def test_a_published_split_is_scored_beside_a_clean_one_only() -> None:
    assert "score_published with split: official" in faults(
        GOOD | {"preprocess": {"split": "official", "score_published": True}}
    )


@pytest.mark.parametrize("values", [None, [], "text", 3, {}, {"data": None}, {"data": []}])
def test_shapes_other_than_a_mapping_are_faults_not_crashes(values: object) -> None:
    assert "here: " in faults(values)


def test_yaml_exponents_without_a_dot_are_numbers() -> None:
    config = RunConfig.parse(GOOD | {"finetune": yaml.safe_load("learning_rate: 2e-4")}, "here")
    assert config.finetune.learning_rate == 2e-4


@pytest.mark.parametrize("value", [True, "fast", -1, float("nan"), None])
def test_learning_rate_takes_positive_numbers_only(value: object) -> None:
    assert "finetune.learning_rate" in faults(GOOD | {"finetune": {"learning_rate": value}})


@pytest.mark.parametrize("key", ["learning_rate", "max_grad_norm", "epochs", "neftune_alpha", "weight_decay"])
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(key: str, value: str) -> None:
    assert f"finetune.{key}" in faults(GOOD | {"finetune": {key: yaml.safe_load(value)}})


def test_a_list_is_asked_for_in_yamls_words() -> None:
    found = faults(GOOD | {"finetune": {"targets": "attention", "launch": 5}})
    assert "finetune.targets: needs a list, such as [a, b]; got 'attention'" in found
    assert "finetune.launch: needs a path as text; got 5" in found


def test_environment_variables_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"data": {"adapter": "vqa_rad", "path": "$RADLOOP_TEST_ROOT/vqa_rad"}}
    monkeypatch.setenv("RADLOOP_TEST_ROOT", "/somewhere")
    assert RunConfig.parse(data, "here").data.sources[0].path == "/somewhere/vqa_rad"
    monkeypatch.delenv("RADLOOP_TEST_ROOT")
    assert "the environment variable RADLOOP_TEST_ROOT is not set" in faults(data)


@pytest.mark.parametrize("cron", ["every monday", "0 3 * *", "61 * * * *", ""])
def test_cron_expressions_are_checked(cron: str) -> None:
    assert "schedule.cron" in faults(GOOD | {"schedule": {"cron": cron}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"parameters: [", "is not YAML"),
        (b"", "has no block 'parameters: config:'"),
        (b"paramters:\n  config: {}\n", "has no block 'parameters: config:'"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"parameters: {config: {}, sed: 3}\n", "unknown keys sed in 'parameters'"),
    ],
)
def test_files_that_are_no_run_config(tmp_path: Path, text: bytes, expected: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=expected):
        RunConfig.read(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.read(tmp_path / "nowhere.yaml")


def test_unknown_keys_beside_the_parameters_are_faults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"parameters": {"config": GOOD}, "enable_cach": False}))
    with pytest.raises(ConfigError, match="enable_cach"):
        RunConfig.read(file)


def test_shares_must_leave_something_to_train_on() -> None:
    assert "which leave nothing for train" in faults(GOOD | {"preprocess": {"validation": 0.5, "test": 0.5}})
