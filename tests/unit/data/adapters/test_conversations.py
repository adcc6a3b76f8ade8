from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from radloop.data.adapters.conversations import Conversations, _Conversations
from radloop.data.phantoms import questions
from radloop.data.phantoms.formats import Cohort
from radloop.data.phantoms.formats.conversations import LAYOUTS
from radloop.errors import DataError
from tests.unit.data.adapters.drive import drive
from tests.unit.data.adapters.given import damage_and_read, given
from tests.unit.data.adapters.hostile import DAMAGES, json_values, rows_like, survives

COHORT = Cohort(train=3, validation=1, test=2, size=48)
Turns = list[tuple[str, Any]]


def read(path: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return drive(Conversations().open(str(path), Conversations.Options(**options)))


def written(folder: Path, layout: str) -> Path:
    folder.mkdir()
    LAYOUTS[layout](folder, COHORT)
    return folder


def llava(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "c", "conversations": [{"from": who, "value": text} for who, text in turns]} | more


def sharegpt(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": who, "content": text} for who, text in turns]} | more


def samples_of(folder: Path, row: Any) -> list[dict[str, Any]]:
    (folder / "c.json").write_text(json.dumps([row, llava(("human", "q"), ("gpt", "a"))]))
    samples, refs = read(folder / "c.json")
    for sample in samples:
        sample["images"] = [refs[key].name for key in sample["image_ids"]]
    return samples[:-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_what_was_written(tmp_path: Path, layout: str) -> None:
    samples, refs = read(written(tmp_path / layout, layout))
    found = [
        (s["split"], s["question"], s["answers"], s["answer_type"], s["notes"],
         [(Path(refs[key].root) / refs[key].name).read_bytes() for key in s["image_ids"]])
        for s in samples
    ]  # fmt: skip
    assert sorted(found) == sorted(
        (study.split, q.text, [q.answer], q.answer_type, [], [study.phantom.png()])
        for study in COHORT.studies() for q in questions(study.phantom)
    )  # fmt: skip


def test_both_layouts_agree(tmp_path: Path) -> None:
    found = [read(written(tmp_path / layout, layout))[0] for layout in LAYOUTS]
    for samples in found:
        for sample in samples:
            del sample["id"], sample["image_ids"], sample["file"], sample["row"]
    assert found[0] == found[1]


def test_a_pair_becomes_a_sample_with_what_was_said_before_as_its_context(tmp_path: Path) -> None:
    turns = [
        ("system", "Be brief."),
        ("human", "<image>\nQ1?"),
        ("gpt", "yes"),
        ("human", "Q2?"),
        ("gpt", "left"),
    ]
    samples = samples_of(tmp_path, llava(*turns, image="a.png"))
    shared = {"dataset": "conversations", "split": "", "task": "vqa", "language": "en", "images": ["a.png"],
              "notes": [], "file": "c.json", "row": 1}  # fmt: skip
    assert [sample | {"image_ids": []} for sample in samples] == [
        shared | {"id": "conversations-c-0", "question": "Q1?", "answers": ["yes"], "answer_type": "closed",
                  "context": "System: Be brief.", "image_ids": []},
        shared | {"id": "conversations-c-1", "question": "Q2?", "answers": ["left"], "answer_type": "open",
                  "context": "System: Be brief.\nQ: Q1?\nA: yes", "image_ids": []},
    ]  # fmt: skip


def pairs(samples: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(sample["question"], "".join(sample["answers"])) for sample in samples]


@pytest.mark.parametrize(
    "row",
    [
        llava(("human", "Where?\n<image>"), ("gpt", "left"), image="a.png"),
        llava(("human", "<image>Where?"), ("gpt", "left"), image=["a.png"]),
        sharegpt(("user", "<image>Where?"), ("assistant", "left"), images=["a.png"]),
        sharegpt(("user", "<image>Where?"), ("assistant", "left"), images=[{"path": "a.png", "bytes": None}]),
        sharegpt(
            ("user", [{"type": "image"}, {"type": "text", "text": "Where?"}]),
            ("assistant", [{"type": "text", "text": "left"}]),
            images=["a.png"],
        ),
        sharegpt(("user", [{"type": "image", "image": "a.png"}, "Where?"]), ("assistant", "left")),
        sharegpt(
            ("user", [{"type": "image_url", "image_url": {"url": "a.png"}}, {"text": "Where?"}]),
            ("assistant", "left"),
        ),
        sharegpt(("user", "<image>"), ("user", "Where?"), ("assistant", "left"), images=["a.png"]),
        llava(("human", "<image>"), ("human", "Where?"), ("gpt", "left"), image="a.png"),
    ],
)  # fmt: skip
def test_all_variants_of_one_conversation_give_the_same_sample(tmp_path: Path, row: Any) -> None:
    (sample,) = samples_of(tmp_path, row)
    assert (sample["question"], sample["answers"], sample["images"], sample["context"], sample["notes"]) == (
        "Where?", ["left"], ["a.png"], "", []
    )  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "images", "expected", "note"),
    [
        ([("human", "<image>Q"), ("gpt", "A"), ("human", "<image>R"), ("gpt", "B")], ["1", "2"],
         [["1"], ["1", "2"]], None),
        ([("human", "<image><image>Q"), ("gpt", "A")], ["1", "2"], [["1", "2"]], None),
        ([("human", "Q"), ("gpt", "A")], ["1"], [["1"]], "conversation: 0 image markers, 1 images"),
        ([("human", "<image>Q"), ("gpt", "A")], [], [[]], "conversation: 1 image markers, 0 images"),
        ([("human", "Q"), ("gpt", "A")], [], [[]], None),
    ],
)  # fmt: skip
def test_a_pair_has_the_images_that_were_marked_up_to_it(
    tmp_path: Path, turns: Turns, images: list[str], expected: list[list[str]], note: str | None
) -> None:
    samples = samples_of(tmp_path, llava(*turns, image=images))
    assert [sample["images"] for sample in samples] == expected
    assert [sample["notes"] for sample in samples] == [[note] if note else []] * len(samples)


@pytest.mark.parametrize(
    ("turns", "expected", "notes"),
    [
        ([("human", "Q")], [("Q", "")], ["conversation: no answer"]),
        ([("gpt", "A")], [("", "A")], ["conversation: no question"]),
        ([("system", "S")], [("", "")], ["conversation: no question", "conversation: no answer"]),
        ([("human", "Q"), ("gpt", "A"), ("human", "R")], [("Q", "A"), ("R", "")], []),
        ([("human", "Q"), ("gpt", "A"), ("gpt", "B")], [("Q", "A B")], []),
        ([("human", "Q"), ("tool", "x"), ("gpt", "A")], [("Q", "A")],
         ["turn 2: left out, its speaker 'tool' is none of human, user, gpt, assistant, model, system"]),
        ([("human", "Q"), ("gpt", None)], [("Q", "")],
         ["turn 2: null counts as missing", "conversation: no answer"]),
        ([], [("", "")], ["conversation: None is no list of turns", "conversation: no question",
                          "conversation: no answer"]),
    ],
)  # fmt: skip
def test_unpaired_turns_are_left_for_validation(
    tmp_path: Path, turns: Turns, expected: list[tuple[str, str]], notes: list[str]
) -> None:
    samples = samples_of(tmp_path, llava(*turns))
    assert pairs(samples) == expected
    assert samples[0]["notes"] == notes


def test_a_question_of_a_marker_only_does_not_answer_itself(tmp_path: Path) -> None:
    (sample,) = samples_of(tmp_path, llava(("human", "<image>"), ("gpt", "A caption."), image="a.png"))
    assert (sample["question"], sample["answers"], sample["context"]) == ("", ["A caption."], "")


def test_files_of_a_folder_are_splits_and_images_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("train.json", "test.json"):
        (tmp_path / name).write_text(json.dumps([llava(("human", "<image>q"), ("gpt", "no"), image="a.png")]))
    samples, refs = read(tmp_path, images="pictures", task="report", language="de")
    assert [(s["split"], s["task"], s["answer_type"], s["language"]) for s in samples] == [
        ("test", "report", "open", "de"), ("train", "report", "open", "de")
    ]  # fmt: skip
    assert {ref.root for ref in refs.values()} == {str(tmp_path / "pictures")}
    assert read(tmp_path / "test.json")[0][0]["split"] == ""


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ('[{"question": "q"}]', {}, r"c\.json: none of its first 1 rows has 'conversations' or 'messages'"),
        ("[]", {}, r"c\.json: holds no row"),
        ('[{"messages": []}]', {"images": "x"}, r"x: no such folder of images; data\.options\.images"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_one_clear_error(
    tmp_path: Path, text: str, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "c.json", **options)


def test_a_file_of_another_kind_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match="conversations needs a file of conversations"):
        read(tmp_path)


def turn_lists() -> st.SearchStrategy[Any]:
    turn = rows_like({"from": "human", "value": "<image>Q"}, json_values())
    answer = rows_like({"role": "assistant", "content": [{"type": "text", "text": "A"}]}, json_values())
    return st.lists(turn | answer, max_size=5)


@hypothesis_given(rows_like({"id": "c", "image": "a.png", "conversations": []}, json_values() | turn_lists()))
@settings(max_examples=100)
def test_whatever_a_row_holds_survives(row: Any) -> None:
    survives(given(_Conversations((), Path("/nowhere"), False, Conversations.Options()), "c.json", row))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_or_its_rows_survive(tmp_path: Path, layout: str, damage: str) -> None:
    folder = written(tmp_path / layout, layout)
    path = next(folder.glob("train.*"))
    damage_and_read(path, damage, lambda: Conversations().open(str(folder), Conversations.Options()))
