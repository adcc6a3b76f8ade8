"""Every config of configs/systems runs end to end in small: the real pipeline, stores and registry.

What is expected is written out here, from what was published, not read from the configs.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.project import ROOT, Project, make_project

pytestmark = pytest.mark.timeout(900)

NAMES = sorted(path.stem for path in (ROOT / "configs" / "systems").glob("*.yaml"))
LLAMA_LIKE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LAYERS = {"nf4": "Linear4bit torch.uint8", "bf16": "Linear torch.bfloat16"}
RADIOGRAPHER = "You are an expert radiographer. Describe accurately what you see in this image."

# What systems and their comparison runs share: (part of) record.json's settings, and the rest by name.
LLAVA_MED: dict[str, Any] = {
    "datasets": ["med_vqa", "slake", "vqa_rad"],
    "tasks": ["vqa"],
    "trained": {"q_proj", "k_proj", "v_proj"},
    "precision": "bf16",
    "optimizer": "torch.AdamW",  # what paged AdamW is where there is no GPU's memory to page
    "settings": {"optimizer": "paged_adamw", "epochs": 5.0},
    "seed": 7,
}
CHATXRAY: dict[str, Any] = {
    "datasets": ["mimic_cxr", "open_i"],
    "tasks": ["report"],
    "trained": LLAMA_LIKE,
    "precision": "bf16",
    "optimizer": "torch.AdamW",
    "settings": {"optimizer": "adamw", "epochs": 1.0},
    "seed": 7,
}
EHRXQA: dict[str, Any] = {
    "datasets": ["ehrxqa"],
    "tasks": ["ehr"],
    "trained": LLAMA_LIKE,
    "precision": "bf16",
    "optimizer": "torch.AdamW",
    "settings": {"optimizer": "adamw"},
    "seed": 7,
}
ROCO: dict[str, Any] = {
    "datasets": ["roco"],
    "tasks": ["caption"],
    "trained": LLAMA_LIKE,
    "precision": "nf4",
    "optimizer": "bitsandbytes.AdamW8bit",
    "settings": {
        "optimizer": "adamw_8bit",
        "rank": 16,
        "alpha": 16,
        "dropout": 0.0,
        "schedule": "linear",
        "weight_decay": 0.01,
        "learning_rate": 10 * 2e-4,  # tiny_run says why
        "gradient_checkpointing": True,
        "max_tokens": 2048,
    },
    "seed": 3407,
}
NO_LIMIT = {"settings": ROCO["settings"] | {"max_tokens": None}}
EXPECTED: dict[str, dict[str, Any]] = {
    "llava_med": LLAVA_MED | {"family": "llava", "base": "./models/llava-med-v1.5-mistral-7b"},
    "llava_med_baseline_llava_1_5": LLAVA_MED | {"family": "llava", "base": "llava-hf/llava-1.5-7b-hf"},
    "chatxray": CHATXRAY | {"family": "qwen2_5_vl", "base": "Qwen/Qwen2.5-VL-7B-Instruct"},
    "chatxray_baseline_fuyu": CHATXRAY
    | {"family": "fuyu", "base": "adept/fuyu-8b"}
    | {"trained": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}},
    "ehrxqa_llava_13b": EHRXQA | {"family": "llava", "base": "llava-hf/llava-1.5-13b-hf"},
    "ehrxqa_baseline_llava_med": EHRXQA | {"family": "llava", "base": "./models/llava-med-v1.5-mistral-7b"},
    "rocov2_llama_vision": ROCO | {"family": "mllama", "base": "meta-llama/Llama-3.2-11B-Vision-Instruct"},
    "rocov2_baseline_llava_next": ROCO
    | {"family": "llava_next", "base": "llava-hf/llava-v1.6-mistral-7b-hf"}
    | NO_LIMIT,
    "rocov2_baseline_qwen2_vl": ROCO | {"family": "qwen2_vl", "base": "Qwen/Qwen2-VL-2B-Instruct"},
    "rocov2_baseline_blip": ROCO
    | {"family": "blip", "base": "Salesforce/blip-image-captioning-large", "precision": "bf16"}
    | {"trained": {"query", "key", "value", "dense"}}
    | NO_LIMIT,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came out of all configs, run one after another in a process of a fresh project."""
    project: Project = make_project(tmp_path_factory.mktemp("systems"))
    out = project.run("python", str(Path(__file__).with_name("all_systems.py")), *NAMES, OMP_NUM_THREADS="1")
    lines = [line.removeprefix("FACTS ") for line in out.stdout.splitlines() if line.startswith("FACTS ")]
    return {found["name"]: found for found in map(json.loads, lines)}


@pytest.fixture
def run(runs: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    assert "error" not in runs[name], runs[name]["error"]
    return runs[name]


def test_every_config_is_expected_to_be_something() -> None:
    assert sorted(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_in_a_version_with_a_decision(run: dict[str, Any], name: str) -> None:
    assert set(run["steps"].values()) <= {"completed", "cached"}
    assert len(run["steps"]) == 9
    assert all(run["steps"][step] == "completed" for step in ("finetune", "evaluate", "register", "promote"))
    version = run["version"]
    assert version["version"] == 1
    assert version["aliases"] == (["champion"] if run["promoted"] else ["challenger"])
    assert version["reason"].startswith("promoted: " if run["promoted"] else "not promoted: ")
    assert version["tags"]["adapter_sha256"]
    assert {"base", "tuned", "shuffled", "blind"} == set(run["answered"])
    for figure in ("exact_match", "exact_match_base", "exact_match_shuffled", "exact_match_blind"):
        assert 0 <= run["metrics"][figure] <= 1
        assert version["metrics"][figure] == run["metrics"][figure]
    assert run["judge"].startswith("offline")


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_arrive(run: dict[str, Any], name: str) -> None:
    expected, record = EXPECTED[name], run["record"]
    assert set(run["trained"]) == expected["trained"]
    assert len(run["blocks"]) == 1  # the layers are all of the language model
    assert re.search(r"language_model|text_decoder", run["blocks"][0])
    assert run["ranks"] == [16]
    assert run["optimizer"] == expected["optimizer"]
    assert run["layers"] == [LAYERS[expected["precision"]]]
    assert record["precision"] == expected["precision"]
    assert record["seed"] == expected["seed"]
    assert len(record["history"]) == 4
    assert all(step["loss"] > 0 for step in record["history"])
    assert record["data"]["cut_answers"] == 0
    assert {key: record["settings"][key] for key in expected["settings"]} == expected["settings"]
    assert (run["base"]["family"], run["base"]["base"]) == (expected["family"], expected["base"])
    assert run["base"]["name"] == run["version"]["tags"]["base"] == f"tiny-{expected['family']}"
    assert record["parameters"]["trained"] < record["parameters"]["total"] < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_the_data_come_from_their_adapters(run: dict[str, Any], name: str) -> None:
    expected = EXPECTED[name]
    assert run["datasets"] == expected["datasets"]
    assert run["version"]["tags"]["dataset"].split(" + ") == run["adapters"]
    assert set(run["adapters"]) == set(expected["datasets"])
    assert run["tasks"] == expected["tasks"]
    assert run["languages"] == ["en"]
    assert run["size"] <= 96
    assert run["counts"]["accepted"] == run["counts"]["samples"] > 0
    assert run["splits"]["train"] > run["splits"]["test"] > 1
    assert set(run["split"].values()) >= {"train", "test"}


SYSTEM_1 = [name for name in NAMES if EXPECTED.get(name, {}).get("tasks") == ["vqa"]]
SYSTEM_2 = [name for name in NAMES if EXPECTED.get(name, {}).get("tasks") == ["report"]]
SYSTEM_3 = [name for name in NAMES if EXPECTED.get(name, {}).get("tasks") == ["ehr"]]
SYSTEM_4 = [name for name in NAMES if EXPECTED.get(name, {}).get("tasks") == ["caption"]]


@pytest.mark.parametrize("name", SYSTEM_1 + SYSTEM_3)
def test_the_published_test_questions_are_scored_apart_and_not_trained_on(
    run: dict[str, Any], name: str
) -> None:
    assert run["metrics"]["published"]["n"] == run["published_test"] > 0
    assert run["published_in_training"] == 0


@pytest.mark.parametrize("name", SYSTEM_1)
def test_slake_is_read_in_english_only(run: dict[str, Any], name: str) -> None:
    assert run["counts"]["left_out"]["question in another language than the option"] > 0


@pytest.mark.parametrize("name", SYSTEM_2 + SYSTEM_3)
def test_identifiers_are_taken_out(run: dict[str, Any], name: str) -> None:
    assert {"patient id", "study id", "sample id"} <= set(run["counts"]["removed"])
    assert all(re.fullmatch(r"([A-Z0-9]{16})?", patient) for patient in run["patients"])
    assert not any(re.search(r"\b[15]\d{7}\b", prompt) for prompt in run["prompts"])  # as MIMIC numbers


@pytest.mark.parametrize("name", SYSTEM_2)
def test_a_report_belongs_to_one_radiograph(run: dict[str, Any], name: str) -> None:
    assert set(run["images"]) == {"1"}
    assert run["prompts"] == ["Write the report of this study."]


@pytest.mark.parametrize("name", SYSTEM_3)
def test_health_records_come_with_no_one_and_two_images(run: dict[str, Any], name: str) -> None:
    assert set(run["images"]) == {"0", "1", "2"}
    assert run["contexts"] > run["splits"]["train"]
    assert any(prompt.startswith("Patient: ") and "Laboratory: " in prompt for prompt in run["prompts"])


@pytest.mark.parametrize("name", SYSTEM_4)
def test_captions_answer_the_published_prompt_and_are_split_in_two(run: dict[str, Any], name: str) -> None:
    assert run["prompts"] == [RADIOGRAPHER]
    assert set(run["splits"]) == {"train", "test"}
    assert run["splits"]["test"] == pytest.approx(0.2 * sum(run["splits"].values()), abs=1)
    assert len(run["split"]) == sum(run["splits"].values())  # what is in which is saved
