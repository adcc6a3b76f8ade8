r"""Rewrites the published LLaVA-Med v1.5 so that stock Transformers can load it, as family `llava`.

`microsoft/llava-med-v1.5-mistral-7b` needs its authors' code: its config is of type `llava_mistral`,
Mistral's fields beside LLaVA's own (`mm_*`), and it has neither `<image>` token, processor nor chat template.

    python -m radloop.models.llava_med SOURCE TARGET [--vision-tower FOLDER]

What is taken over from the authors' code:
- Features are the tower's layer `mm_vision_select_layer` (-2) without the class token
  (`mm_vision_select_feature` "patch"); the projector is Linear, GELU, Linear (`mlp2x_gelu`).
- `image_aspect_ratio` "pad": images are padded to squares in the mean colour, not cropped.
- Conversation `mistral_instruct`: `[INST] <image>\n{question} [/INST] {answer} </s>`. The text on each
  side of the image is tokenized by itself, so that what follows the image starts with a blank.
- The weights hold a vision tower, `model.vision_tower.vision_tower.*`. It is used, as in training. The
  authors' inference code passes it over for `openai/clip-vit-large-patch14-336`: `--vision-tower` with a
  folder of that one does the same.

`<image>` is added to the vocabulary, and rows up to the next multiple of 64. The new rows are the mean of
the others, so their logits are never the greatest; all other logits are those of the original.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from radloop.errors import ModelError, RadloopError
from radloop.models.checkpoint_files import (
    Shard,
    listed,
    read_json,
    read_shards,
    renamed,
    require_room,
    sha256s,
    written_whole,
)
from radloop.models.sentencepiece import read_sentencepiece

_TEMPLATE = (
    "{% set system = namespace(text='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% set system.text = '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + system.text }}{% set system.text = '' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'][0]['text'] + ' </s>' }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
_IMAGE = "<image>"
_ROWS = 64  # the vocabulary is filled up to a multiple of this

# Published name to the one that llava-hf uses on disk, which any version of Transformers and vLLM read.
_TOWER = "vision_tower.vision_model."
_COMPUTED = {r".*\.(inv_freq|position_ids)": ""}  # left out: computed, though older versions saved it
_NAMES = _COMPUTED | {
    r"model\.((embed_tokens|norm|layers\.\d+)\..+)": r"language_model.model.\1",
    r"lm_head\.weight": "language_model.lm_head.weight",
    r"model\.mm_projector\.0\.(weight|bias)": r"multi_modal_projector.linear_1.\1",
    r"model\.mm_projector\.2\.(weight|bias)": r"multi_modal_projector.linear_2.\1",
    r"model\.vision_tower\.vision_tower\.vision_model\.(.+)": _TOWER + r"\1",
}
_TOWER_NAMES = _COMPUTED | {
    r"(?:vision_model\.)?((embeddings|pre_layrnorm|encoder|post_layernorm)\..+)": _TOWER + r"\1",
    r"text_model\..+|(text|visual)_projection\.weight|logit_scale": "",  # CLIP's other half
}
# The stock model's names to those on disk.
_ON_DISK = {
    r"model\.language_model\.(.+)": r"language_model.model.\1",
    r"lm_head\.weight": "language_model.lm_head.weight",
    r"model\.(multi_modal_projector\..+)": r"\1",
    r"model\.vision_tower\.(.+)": _TOWER + r"\1",
}
_ROWS_OF_VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")

_TEXT_FIELDS = [
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range"),
    *("rms_norm_eps", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "rope_theta"),
    *("rope_scaling", "sliding_window", "attention_dropout", "tie_word_embeddings"),
]
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_RECORD = "conversion.json"


def convert(
    source: Path,
    target: Path,
    vision_tower: Path | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> None:
    """Write the stock layout of a LLaVA-Med v1.5 checkpoint, file by file; each weight keeps its dtype.

    Args:
        source: Folder of the published checkpoint.
        target: Folder to write. It appears when all of it is written. If it holds the conversion of the
            same files already, nothing is done.
        vision_tower: Folder of a CLIP model, to be used in place of the vision tower among the weights.
        report: Takes lines about the progress.

    Raises:
        ModelError: The source is not such a checkpoint, lacks a weight or has an unknown one, or the
            target cannot be written.
    """
    settings = _settings(source)
    shards = read_shards(source, _NAMES)
    if vision_tower is not None:
        rest = [shard.without(_TOWER) for shard in shards]
        shards = [shard for shard in rest if len(shard)] + read_shards(vision_tower, _TOWER_NAMES)
    shapes = {name: shape for shard in shards for name, shape in shard.shapes.items()}
    tokenizer = _tokenizer(source, settings)
    try:
        config = _config(settings, vision_tower, shapes, tokenizer)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ModelError(
            f"{source / 'config.json'}: has values that Transformers refuses ({error})"
        ) from error
    _check(shapes, config, settings["vocab_size"])
    report("reading what there is")
    contents = [sha256s(folder) for folder in (source, vision_tower) if folder is not None]
    if target.exists():
        _require_same(target, contents)
        report(f"{target} is converted already")
        return
    with written_whole(target) as folder:
        require_room(folder, shards)
        _save_weights(folder, shards, config, report)
        config.save_pretrained(folder)
        ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        GenerationConfig(**ends).save_pretrained(folder)
        _processor(settings, vision_tower, config, tokenizer).save_pretrained(folder)
        _check_prompt(folder, tokenizer)
        (folder / _RECORD).write_text(json.dumps({"sha256": contents}, indent=2) + "\n")
    report(f"{target}: {sum(map(len, shards))} weights in {len(shards)} files")


# Source


def _settings(source: Path) -> dict[str, Any]:
    """Return the published config, if it is one of those that are understood here."""
    settings = read_json(source / "config.json")
    allowed: dict[str, tuple[Any, ...]] = {
        "model_type": ("llava_mistral",),
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": tuple(_STRATEGIES),
        "mm_use_im_start_end": (False, None),
    }
    faults = [
        f"{name} {settings.get(name)!r} (known: {', '.join(map(repr, known))})"
        for name, known in allowed.items()
        if settings.get(name) not in known
    ]
    faults += [name for name in ("vocab_size", "mm_vision_select_layer") if name not in settings]
    if faults:
        raise ModelError(f"{source / 'config.json'}: is no LLaVA-Med v1.5: {'; '.join(faults)}")
    return settings


def _tokenizer(source: Path, settings: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the source's tokenizer with `<image>` in it.

    As the general class: Transformers' LlamaTokenizer loses in saving where it puts blanks.
    """
    given = read_json(source / "tokenizer_config.json")
    tokens = {
        name: token["content"] if isinstance(token, dict) else token
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (token := given.get(name)) is not None
    }
    if not {"bos_token", "eos_token"} <= tokens.keys():
        raise ModelError(
            f"{source / 'tokenizer_config.json'}: lacks bos_token or eos_token; download it again"
        )
    files = [file for name in ("tokenizer.json", "tokenizer.model") if (file := source / name).is_file()]
    if not files:
        raise ModelError(f"{source}: has neither tokenizer.json nor tokenizer.model")
    try:
        if files[0].suffix == ".json":
            backend = Tokenizer.from_file(str(files[0]))
        else:
            backend = read_sentencepiece(files[0], tokens["bos_token"])
    except Exception as error:
        raise ModelError(f"{files[0]}: cannot be read ({error}); download it again") from error
    if backend.token_to_id(_IMAGE) is None:
        backend.add_special_tokens([AddedToken(_IMAGE, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **({"pad_token": tokens.get("unk_token", tokens["eos_token"])} | tokens),
        extra_special_tokens={"image_token": _IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=settings.get("max_position_embeddings"),
    )


def _config(
    settings: Mapping[str, Any],
    tower_folder: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    tokenizer: PreTrainedTokenizerFast,
) -> LlavaConfig:
    vision: Any = _tower_config(settings, tower_folder, shapes)
    text = MistralConfig(**{name: settings[name] for name in _TEXT_FIELDS if name in settings})
    text.vocab_size = math.ceil(max(len(tokenizer), text.vocab_size) / _ROWS) * _ROWS
    strategy: Any = _STRATEGIES[settings["mm_vision_select_feature"]]
    image_token: Any = tokenizer.convert_tokens_to_ids(_IMAGE)
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        dtype=settings.get("dtype", settings.get("torch_dtype")),
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=settings["mm_vision_select_layer"],
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _tower_config(
    settings: Mapping[str, Any], folder: Path | None, shapes: Mapping[str, tuple[int, ...]]
) -> CLIPVisionConfig:
    """Return the tower's config: its own, or read off the weights' shapes."""
    if folder is not None:
        content = read_json(folder / "config.json")
        content = content.get("vision_config", content) if content.get("model_type") == "clip" else content
        if content.get("model_type", "clip_vision_model") != "clip_vision_model":
            raise ModelError(f"{folder}: is of type {content['model_type']!r}; give a folder of a CLIP model")
        return CLIPVisionConfig(**{name: value for name, value in content.items() if name != "model_type"})
    name = str(settings.get("mm_vision_tower"))
    patches = shapes.get(_TOWER + "embeddings.patch_embedding.weight")
    places = shapes.get(_TOWER + "embeddings.position_embedding.weight")
    between = shapes.get(_TOWER + "encoder.layers.0.mlp.fc1.weight")
    if not name.startswith("openai/clip-vit-") or patches is None or places is None or between is None:
        lacks = "lacks its vision tower" if patches is None else "has a vision tower of unknown make"
        raise ModelError(
            f"the checkpoint {lacks}, {name}; give a folder with its config.json and safetensors files as "
            "--vision-tower (CLIPVisionModel.from_pretrained(NAME).save_pretrained(FOLDER) makes one)"
        )
    layers = [re.fullmatch(re.escape(_TOWER) + r"encoder\.layers\.(\d+)\..+", name) for name in shapes]
    return CLIPVisionConfig(
        hidden_size=patches[0],
        intermediate_size=between[0],
        num_hidden_layers=1 + max(int(found[1]) for found in layers if found),
        num_attention_heads=patches[0] // 64,  # as in all of OpenAI's
        patch_size=patches[-1],
        image_size=patches[-1] * math.isqrt(places[0] - 1),
    )


def _check(shapes: Mapping[str, tuple[int, ...]], config: LlavaConfig, vocab_size: int) -> None:
    """Raise a ModelError unless the weights are those of the stock model, each and no other."""
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        del stock["lm_head.weight"]
    expected = {str(renamed(name, _ON_DISK)): tuple(tensor.shape) for name, tensor in stock.items()}
    for name in expected.keys() & set(_ROWS_OF_VOCABULARY):
        expected[name] = (vocab_size, *expected[name][1:])
    faults = {
        "lacks": sorted(expected.keys() - shapes.keys()),
        "has, but its config has no place for,": sorted(shapes.keys() - expected.keys()),
        "has in another shape than its config says": [
            f"{name} {list(shapes[name])} not {list(shape)}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"it {what} {listed(names)}" for what, names in faults.items() if names)
        raise ModelError(f"the checkpoint cannot be converted: {found}")


# Target


def _save_weights(
    folder: Path, shards: Sequence[Shard], config: LlavaConfig, report: Callable[[str], None]
) -> None:
    num_rows = config.get_text_config().vocab_size
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(shards, start=1):
        report(f"{number}/{len(shards)} {shard.file.name}")
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total_bytes += _save_shard(folder / file, shard, num_rows)
        weight_map |= dict.fromkeys(shard.shapes, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _save_shard(file: Path, shard: Shard, num_rows: int) -> int:
    """Write a file by its new names; returns the bytes of its tensors, which are in memory meanwhile."""
    with safe_open(shard.file, "pt") as opened:
        tensors = {new: opened.get_tensor(old) for old, new in shard.names.items()}
    for name in tensors.keys() & set(_ROWS_OF_VOCABULARY):
        tensors[name] = _filled_up(tensors[name], num_rows)
    save_file(tensors, file, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def _filled_up(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Append the mean of the rows until there are `num_rows`; shape (num_rows, width)."""
    mean = rows.mean(dim=0, keepdim=True, dtype=torch.float64).to(rows.dtype)
    return torch.cat([rows, mean.expand(num_rows - len(rows), -1)])


def _processor(
    settings: Mapping[str, Any],
    tower_folder: Path | None,
    config: LlavaConfig,
    tokenizer: PreTrainedTokenizerFast,
) -> LlavaProcessor:
    vision: Any = config.vision_config
    size = vision.image_size
    options: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if tower_folder is not None and (tower_folder / "preprocessor_config.json").is_file():
        own = read_json(tower_folder / "preprocessor_config.json")
        options |= {name: own[name] for name in ("image_mean", "image_std") if name in own}
    pads = settings.get("image_aspect_ratio") == "pad"
    return LlavaProcessor(
        LlavaImageProcessorPil(do_pad=True, **options) if pads else CLIPImageProcessorPil(**options),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token, which "default" then drops
        chat_template=_TEMPLATE,
    )


def _check_prompt(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise a ModelError unless the processor, loaded again, makes prompts as LLaVA-Med's code does."""
    autos: Any = AutoProcessor
    processor = autos.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    content = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    before, after = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("[INST] ", "\nWhere? [/INST]")
    )
    expected = [*tokenizer("")["input_ids"], *before, tokenizer.convert_tokens_to_ids(_IMAGE), *after]
    if (found := processor.tokenizer(text)["input_ids"]) != expected:
        raise ModelError(
            f"the tokenizer does not put an image into a prompt as LLaVA-Med's code does ({found}, not "
            f"{expected}); take tokenizer.model or tokenizer.json from the published checkpoint"
        )


def _require_same(target: Path, contents: list[dict[str, str]]) -> None:
    record = target / _RECORD
    if not record.is_file() or read_json(record).get("sha256") != contents:
        raise ModelError(f"{target}: holds something else already; give another folder or delete it")


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m radloop.models.llava_med",
        description="Rewrite the published LLaVA-Med v1.5 as a base model of family llava.",
    )
    parser.add_argument("source", type=Path, help="folder of microsoft/llava-med-v1.5-mistral-7b")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument(
        "--vision-tower", type=Path, metavar="FOLDER", help="take this CLIP model's tower in place of its own"
    )
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.target, options.vision_tower, report=print)
    except RadloopError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
