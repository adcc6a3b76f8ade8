"""What is converted computes what LLaVA-Med's own code would compute from the published files."""

import fcntl
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from radloop import models
from radloop.config import ModelConfig
from radloop.errors import ModelError
from radloop.inference import Engine, Request
from radloop.models import llava_med
from radloop.models.llava_med import convert
from radloop.models.sentencepiece import read_sentencepiece
from tests.unit.tiny import image

WORDS = ["▁y", "es", "▁yes", "▁W", "IN", "ST", "INST", "▁[", "▁[INST", "si", "de", "\n?", "▁i", "▁is"]
CHARACTERS = list("▁[]/INSTWhicsdetyno?.")
MARK, IMAGE = "model.vision_tower.vision_tower.vision_model.", "<image>"
VISION = {
    **{"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 7},
}
NUM_PATCHES = 16
FILES = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def sentencepiece_model() -> bytes:
    """Return a tokenizer.model as Mistral's: control tokens, bytes, merges by rank, characters."""
    content = sentencepiece.ModelProto()
    content.trainer_spec.model_type = sentencepiece.TrainerSpec.BPE
    kinds = sentencepiece.ModelProto.SentencePiece
    pieces = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    pieces += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    pieces += [(piece, kinds.NORMAL) for piece in [*WORDS, *CHARACTERS]]
    for number, (piece, kind) in enumerate(pieces):
        content.pieces.add(piece=piece, type=kind, score=-float(number))
    return content.SerializeToString()


VOCABULARY = 259 + len(WORDS) + len(CHARACTERS)  # of the checkpoint, and no multiple of 64
CONFIG = {
    **{
        "model_type": "llava_mistral",
        "architectures": ["LlavaMistralForCausalLM"],
        "torch_dtype": "bfloat16",
    },
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-05},
    **{"max_position_embeddings": 1024, "rope_theta": 1000000.0, "sliding_window": None, "use_cache": True},
    **{"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.3},
    **{"mm_hidden_size": 128, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch"},
    **{"mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
    **{"mm_use_im_start_end": False, "mm_use_im_patch_token": False, "image_aspect_ratio": "pad"},
}
TOKENIZER_CONFIG = {
    **{"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "pad_token": "<unk>"},
    **{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "model_max_length": 2048},
}


def language_model(seed: int, **changes: object) -> MistralForCausalLM:
    torch.manual_seed(seed)
    fields = {name: value for name, value in (CONFIG | changes).items() if name in MistralConfig().to_dict()}
    fields |= {"rope_theta": CONFIG["rope_theta"]}
    return MistralForCausalLM(MistralConfig(**{k: v for k, v in fields.items() if k != "model_type"})).eval()


def vision_tower(seed: int) -> CLIPVisionModel:
    torch.manual_seed(seed)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


def publish(folder: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """Write a random checkpoint in the published layout, in three files."""
    folder.mkdir(parents=True)
    weights = language_model(0, **changes).state_dict()
    if changes.get("tie_word_embeddings"):
        del weights["lm_head.weight"]
    layers = [torch.nn.Linear(128, 32), torch.nn.Linear(32, 32)]
    for number, layer in zip((0, 2), layers, strict=True):
        weights |= {
            f"model.mm_projector.{number}.{name}": value for name, value in layer.state_dict().items()
        }
    weights |= {MARK + name: value for name, value in vision_tower(1).state_dict().items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old versions saved it
    weights = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    tower = sorted(name for name in weights if name.startswith(MARK))
    rest = sorted(weights.keys() - set(tower))
    parts = dict(zip(FILES, (rest[:9], rest[9:], tower), strict=True))
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def expected_ids(tokenizer: object, question: str) -> list[int]:
    """Tokenize as LLaVA-Med's `tokenizer_image_token` does: what surrounds the image each by itself."""
    chunks = [tokenizer(chunk)["input_ids"] for chunk in f"[INST] {IMAGE}\n{question} [/INST]".split(IMAGE)]
    return [*chunks[0], tokenizer.convert_tokens_to_ids(IMAGE), *chunks[1][1:]]


@torch.no_grad()
def expected_logits(
    source: Path, picture: Image.Image, ids: list[int], at: int, tower: CLIPVisionModel | None = None
) -> torch.Tensor:
    """Compute what LLaVA-Med computes, from its parts: the image in the place of token `at`."""
    weights = {name: value.float() for name, value in weights_of(source).items()}
    mistral = language_model(9)
    mistral.load_state_dict({name: weights[name] for name in mistral.state_dict()})
    if tower is None:
        tower = vision_tower(9)
        tower.load_state_dict({name: weights[MARK + name] for name in tower.state_dict()})
    side = max(picture.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pixels = processor(square, return_tensors="pt")["pixel_values"]
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    first, second = (
        [weights[f"model.mm_projector.{number}.{name}"] for name in ("weight", "bias")] for number in (0, 2)
    )
    linear = torch.nn.functional.linear
    features = linear(torch.nn.functional.gelu(linear(hidden, *first)), *second)
    embed = mistral.get_input_embeddings()
    before, after = (embed(torch.tensor(part)) for part in (ids[:at], ids[at + 1 :]))
    return mistral(inputs_embeds=torch.cat([before, features, after])[None]).logits[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("published") / "llava-med")


@pytest.fixture(scope="module")
def target(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "llava-med"
    convert(source, target)
    return target


# What it computes


@pytest.mark.parametrize("size", [(60, 40), (33, 50), (28, 28)])
def test_logits_are_those_of_the_published_parts(source: Path, target: Path, size: tuple[int, int]) -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(
        target, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(target)
    picture = image(3, size)
    content = [{"type": "image"}, {"type": "text", "text": "Which side?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    ids = expected_ids(processor.tokenizer, "Which side?")
    at = ids.index(VOCABULARY)
    assert inputs["input_ids"][0].tolist() == [*ids[:at], *[VOCABULARY] * NUM_PATCHES, *ids[at + 1 :]]
    expected = expected_logits(source, picture, ids, at)
    torch.testing.assert_close(logits[:, :VOCABULARY], expected, rtol=1e-5, atol=1e-5)
    added = logits[:, VOCABULARY:]
    assert added.shape[1] == 320 - VOCABULARY
    torch.testing.assert_close(added, expected.mean(1, keepdim=True).expand_as(added), rtol=1e-4, atol=1e-4)
    other = expected_logits(source, image(4, size), ids, at)
    assert not torch.allclose(other, expected, atol=1e-2)  # the picture matters


def test_it_is_a_base_model_of_family_llava(target: Path) -> None:
    config = ModelConfig(family="llava", base=str(target))
    loaded = models.load(config)
    (pair,) = loaded.prompts.pairs(["Which side?"], ["yes"], [[(60, 40)]])
    words = loaded.processor.tokenizer.convert_ids_to_tokens(pair.tail)
    assert words[:3] == ["▁", "<0x0A>", "W"]
    assert words[-pair.num_answer :] == ["▁yes", "▁", "</s>"]
    assert loaded.prompts.answer(pair.tail[-pair.num_answer :]) == "yes"
    answers = Engine(config).answer({"a": image(1, (60, 40))}, [Request(("a",), "Which side?")], 4)
    inputs = loaded.processor(
        images=[image(1, (60, 40))], text=["[INST] <image>\nWhich side? [/INST]"], return_tensors="pt"
    )
    with torch.no_grad():
        ids = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answers[0].text == loaded.prompts.answer(ids[0, inputs["input_ids"].shape[1] :])
    assert loaded.model.generation_config.eos_token_id == 2
    text = json.loads((target / "config.json").read_text())["text_config"]
    assert text["rope_parameters"]["rope_theta"] == 1000000.0


def test_a_conversation_is_written_as_mistral_instruct(target: Path) -> None:
    processor = AutoProcessor.from_pretrained(target)

    def turn(role: str, text: str, *images: dict) -> dict:
        return {"role": role, "content": [*images, {"type": "text", "text": text}]}

    turns = [
        turn("system", "Be brief."),
        turn("user", "Which side?", {"type": "image"}, {"type": "image"}),
        turn("assistant", "left"),
        turn("user", "Why?"),
    ]
    assert processor.apply_chat_template(turns) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\n<image>\nWhich side? [/INST] left </s>"
        "[INST] Why? [/INST]"
    )
    masked = processor.apply_chat_template(
        turns[2:3], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert masked["assistant_masks"][0][-1] == 1


def test_tokens_are_those_of_sentencepiece(target: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(target).tokenizer
    ids = tokenizer("[INST] <image>\nWhich side? é yes </s>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<s>", "▁[INST", "]", "▁", "<image>", "▁", "<0x0A>", "W", "h", "i", "c", "h", "▁", "si", "de", "?"),
        *("▁", "<0xC3>", "<0xA9>", "▁yes", "▁", "</s>"),
    ]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "[INST]  \nWhich side? é yes "


def test_a_tokenizer_json_gives_the_same(source: Path, target: Path, tmp_path: Path) -> None:
    again = publish(tmp_path / "published")
    (again / "tokenizer.model").unlink()
    backend = read_sentencepiece(source / "tokenizer.model", "<s>")
    backend.save(str(again / "tokenizer.json"))
    convert(again, tmp_path / "converted")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
        assert (tmp_path / "converted" / name).read_bytes() == (target / name).read_bytes()


# Weights


def test_every_weight_keeps_its_bits(tmp_path: Path) -> None:
    source = publish(tmp_path / "published", torch.bfloat16)
    convert(source, tmp_path / "converted")
    found = weights_of(tmp_path / "converted")
    names = {
        "model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight": "language_model.model.layers.1.mlp.up_proj.weight",
        "lm_head.weight": "language_model.lm_head.weight",
        "model.mm_projector.0.bias": "multi_modal_projector.linear_1.bias",
        "model.mm_projector.2.weight": "multi_modal_projector.linear_2.weight",
        MARK + "pre_layrnorm.bias": "vision_tower.vision_model.pre_layrnorm.bias",
    }
    weights = weights_of(source)
    assert len(found) == len(weights) - 1  # the rotary frequencies
    for old, new in names.items():
        assert found[new].dtype == torch.bfloat16
        assert torch.equal(found[new][: len(weights[old])], weights[old])
    rows = found["language_model.lm_head.weight"]
    assert rows.shape == (320, 32)
    assert (rows[VOCABULARY:] == weights["lm_head.weight"].double().mean(0).bfloat16()).all()
    index = json.loads((tmp_path / "converted" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "converted").dtype == torch.bfloat16


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    convert(publish(tmp_path / "published", tie_word_embeddings=True), tmp_path / "converted")
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "converted", output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_vision_tower_of_a_folder_takes_the_place_of_its_own(
    tmp_path: Path, whole: bool, inside: bool
) -> None:
    source = publish(tmp_path / "published", mm_vision_tower="another/tower")
    if not inside:
        drop(source, MARK)
    tower = vision_tower(5).half()
    if whole:
        text = CLIPTextConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
        )
        clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=VISION))
        clip.vision_model.load_state_dict(tower.state_dict())
        clip.half().save_pretrained(tmp_path / "clip")
    else:
        tower.save_pretrained(tmp_path / "clip")
    convert(source, tmp_path / "converted", vision_tower=tmp_path / "clip")
    assert len(list((tmp_path / "converted").glob("*.safetensors"))) == 3  # two and the tower's
    weights = weights_of(tmp_path / "converted")
    assert weights["vision_tower.vision_model.pre_layrnorm.bias"].dtype == torch.float16
    assert weights["multi_modal_projector.linear_1.bias"].dtype == torch.float32
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "converted", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted")
    text = f"[INST] {IMAGE}\nWhich side? [/INST]"
    inputs = processor(images=[image(3)], text=[text], return_tensors="pt")
    ids = expected_ids(processor.tokenizer, "Which side?")
    expected = expected_logits(publish_again(tmp_path), image(3), ids, ids.index(VOCABULARY), tower.float())
    with torch.no_grad():
        logits = model(**inputs).logits[0, :, :VOCABULARY]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def publish_again(folder: Path) -> Path:
    return publish(folder / "again")


# What cannot be converted


def drop(folder: Path, prefix: str) -> None:
    for file in folder.glob("*.safetensors"):
        kept = {name: value for name, value in load_file(file).items() if not name.startswith(prefix)}
        save_file(kept, file, metadata={"format": "pt"})


def add(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    file = folder / FILES[1]
    save_file(load_file(file) | {name: torch.zeros(shape)}, file, metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_name("pytorch_" + file.stem + ".bin"))


def cut(folder: Path) -> None:
    file = folder / FILES[1]
    file.write_bytes(file.read_bytes()[:-100])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "lacks": (
        lambda folder: drop(folder, "model.layers.1.mlp"),
        r"it lacks language_model\.model\.layers\.1\.mlp\.down_proj\.weight, .*gate.*, .*up_proj\.weight$",
    ),
    "lacks its head": (lambda folder: drop(folder, "lm_head"), r"it lacks language_model\.lm_head\.weight$"),
    "lacks its tower": (
        lambda folder: drop(folder, MARK),
        r"lacks its vision tower, openai/clip-vit-large-patch14-336; give a folder .* --vision-tower",
    ),
    "unknown": (
        lambda folder: add(folder, "model.image_newline", (32,)),
        r"not known here: model\.image_newline$",
    ),
    "no place": (
        lambda folder: add(folder, "model.layers.2.mlp.up_proj.weight", (48, 32)),
        r"no place for, language_model\.model\.layers\.2\.mlp\.up_proj\.weight$",
    ),
    "shape": (
        lambda folder: add(folder, "model.norm.weight", (33,)),
        r"another shape .* language_model\.model\.norm\.weight \[33\] not \[32\]$",
    ),
    "twice": (
        lambda folder: add(folder, "lm_head.weight", (VOCABULARY, 32)),
        r"lm_head\.weight is in two of its",
    ),
    "vocabulary": (
        lambda folder: configure(folder, vocab_size=999),
        r"embed_tokens\.weight \[294, 32\] not \[999, 32\]",
    ),
    "stock": (
        lambda folder: configure(folder, model_type="llava"),
        r"model_type 'llava' \(known: 'llava_mistral'\)$",
    ),
    "projector": (
        lambda folder: configure(folder, mm_projector_type="linear", mm_use_im_start_end=True),
        r"mm_projector_type 'linear' \(known: 'mlp2x_gelu'\); mm_use_im_start_end True",
    ),
    "tower's make": (
        lambda folder: configure(folder, mm_vision_tower="another/tower"),
        r"has a vision tower of unknown make, another/tower; give a folder",
    ),
    "pickled": (
        pickled,
        r"only pickled weights \(pytorch_model-00001-of-00003\.bin, .*torch\.load\(FILE, weights_only",
    ),
    "cut": (cut, r"model-00002-of-00003\.safetensors: is damaged or not whole .* download it again$"),
    "file": (
        lambda folder: (folder / FILES[0]).unlink(),
        r"index\.json names files that are not there: model-00001-of-00003\.safetensors;",
    ),
    "tokenizer": (
        lambda folder: (folder / "tokenizer.model").unlink(),
        "neither tokenizer.json nor tokenizer.model",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"not this"),
        r"tokenizer\.model: cannot be read \(.*\); download it again$",
    ),
    "values": (
        lambda folder: configure(folder, hidden_size="x"),
        r"values that Transformers refuses .*hidden_size",
    ),
    "tokens": (
        lambda folder: (folder / "tokenizer_config.json").write_text("{}"),
        r"tokenizer_config\.json: lacks bos_token or eos_token",
    ),
    "index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("[]"),
        "holds no JSON object",
    ),
    "config": (lambda folder: (folder / "config.json").unlink(), r"config\.json: cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path, fault: str) -> None:
    source = publish(tmp_path / "published")
    spoil, message = FAULTS[fault]
    if fault == "twice":  # in both files
        file = source / FILES[0]
        save_file(load_file(file) | {"lm_head.weight": torch.zeros(VOCABULARY, 32)}, file)
    spoil(source)
    with pytest.raises(ModelError, match=f"(?s){message}"):
        convert(source, tmp_path / "converted")
    assert [file.name for file in tmp_path.iterdir()] == ["published"]


def test_a_tokenizer_that_joins_the_question_to_the_image_is_refused(source: Path, tmp_path: Path) -> None:
    again = publish(tmp_path / "published")
    backend = json.loads(read_sentencepiece(source / "tokenizer.model", "<s>").to_str())
    backend["normalizer"] = None
    backend["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    (again / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(ModelError, match="does not put an image into a prompt as LLaVA-Med's code does"):
        convert(again, tmp_path / "converted")
    assert [file.name for file in tmp_path.iterdir()] == ["published"]


# Writing


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_converting_again_changes_nothing_and_another_source_is_refused(source: Path, tmp_path: Path) -> None:
    target, lines = tmp_path / "converted", list[str]()
    convert(source, target)
    before = contents(target)
    convert(source, target, report=lines.append)
    assert contents(target) == before
    assert lines[-1] == f"{target} is converted already"
    convert(source, tmp_path / "second")
    assert {name: data for name, (data, _) in contents(tmp_path / "second").items()} == {
        name: data for name, (data, _) in before.items()
    }
    with pytest.raises(ModelError, match="holds something else already"):
        convert(publish(tmp_path / "other", torch.float16), target)
    assert contents(target) == before


def test_an_interrupted_run_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("2/3"):
            assert [file.name for file in tmp_path.iterdir()] == ["converted.partial"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "converted", report=interrupt)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_replaced(source: Path, target: Path, tmp_path: Path) -> None:
    left = tmp_path / "converted.partial"
    left.mkdir()
    for name in ("in-use", "model-00001-of-00009.safetensors", "config.json"):
        (left / name).write_text("half")
    convert(source, tmp_path / "converted")
    assert [file.name for file in tmp_path.iterdir()] == ["converted"]
    assert {file.name for file in (tmp_path / "converted").iterdir()} == {
        file.name for file in target.iterdir()
    }


def test_two_runs_do_not_write_one_target(source: Path, tmp_path: Path) -> None:
    left = tmp_path / "converted.partial"
    left.mkdir()
    with (left / "in-use").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="another process is writing it"):
            convert(source, tmp_path / "converted")
        assert (left / "in-use").exists()


def test_a_disk_that_fills_up_leaves_nothing(source: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes in one file
    try:
        with pytest.raises(
            ModelError, match=r"converted: cannot be written, and nothing of it is left \(.*large"
        ):
            convert(source, tmp_path / "converted")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_is_noticed_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    lines = list[str]()
    with pytest.raises(ModelError, match=r"has \d+ MB left of \d+ that are needed"):
        convert(source, tmp_path / "converted", report=lines.append)
    assert not list(tmp_path.iterdir())


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert llava_med.main([str(source), str(tmp_path / "converted")]) == 0
    assert (tmp_path / "converted" / "config.json").is_file()
    assert "2/3 model-00002-of-00003.safetensors" in capsys.readouterr().out
    assert llava_med.main([str(tmp_path), str(tmp_path / "other"), "--vision-tower", str(source)]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path}/config.json: cannot be read")
