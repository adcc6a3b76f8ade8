"""What the tiny base reads in pre-training, and its tokenizer, chat template and processor.

The base learns to describe whole pictures and to answer generic questions: modality, body part,
projection. It is never asked about the presence, side, zone, number or name of a finding; those
question types belong to the phantom data set, so that what fine-tuning gains is its own.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from radloop.data.phantoms import Phantom, Present, Stream, caption, make_phantom, questions, report
from radloop.data.phantoms.anatomy import SIDES
from radloop.data.phantoms.language import NONE, statements
from radloop.models.tiny_vision import PATCH, PIXELS, SEED

VOCABULARY = 640
PAD, BEGIN, END, IMAGE = "<pad>", "<s>", "</s>", "<image>"

DESCRIBE = {
    "caption": ("Describe the image.", "Describe the radiograph in one sentence.", "Write a caption."),
    "statements": ("Describe everything that is seen.", "Describe the findings one by one."),
    "sides": ("Describe each half of the image.", "Compare both halves of the image."),
    "report": ("Write a report.", "Write a radiology report of this image."),
}
GENERIC = (
    ("What kind of image is this?", "chest radiograph"),
    ("Which modality is this?", "radiograph"),
    ("What part of the body is shown?", "chest"),
    ("Which view was taken?", "frontal"),
    ("How was the image made?", "with x-rays"),
)
KIND = (
    "Is this {kind}?",
    "Does this look like {kind}?",
    "Could this be {kind}?",
    "Would you call this {kind}?",
)
RIGHT_KINDS = (
    "a radiograph",
    "a chest image",
    "an x-ray image",
    "a frontal view",
    "a medical image",
    "a grey image",
)
WRONG_KINDS = (
    "a CT scan",
    "an MRI scan",
    "an ultrasound image",
    "a lateral view",
    "a knee",
    "a hand",
    "a color image",
)

# The form of LLaVA-1.5; each turn's content may be a text or a list of parts.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set text = message['content'] -%}
{%- else -%}
{%- set texts = message['content'] | selectattr('type', 'equalto', 'text') -%}
{%- set text = texts | map(attribute='text') | join(' ') -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' + text + '</s>' -}}{%- endgeneration -%}
{%- else -%}
{{- 'USER: ' -}}
{%- if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- endif -%}
{{- text + ' ' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"""


def pretraining_texts(phantom: Phantom) -> list[tuple[str, str]]:
    """What the base is taught about one phantom: three descriptions and two generic pairs."""
    rng = phantom.rng()
    if rng.random() < 0.5:
        kind, long = "report", report(phantom)
    else:
        shuffled = statements(phantom)
        rng.shuffle(shuffled)
        kind, long = "statements", " ".join(shuffled)
    texts = {"caption": caption(phantom), "sides": _by_side(phantom, rng), kind: long}
    pairs = [(_pick(rng, DESCRIBE[kind]), text) for kind, text in texts.items()]
    right = rng.random() < 0.5
    asked = _pick(rng, KIND).format(kind=_pick(rng, RIGHT_KINDS if right else WRONG_KINDS))
    return [*pairs, GENERIC[int(rng.integers(len(GENERIC)))], (asked, "yes" if right else "no")]


def _by_side(phantom: Phantom, rng: np.random.Generator) -> str:
    """A description of the left, the right, and the rest, in random order."""
    parts = []
    for side in SIDES:
        found = [p for p in phantom.findings.values() if p.values.get("side") == side]
        listed = ", ".join(_with_details(p) for p in found)
        parts.append(f"On the {side}: {listed or NONE}.")
    middle = [p.name for p in phantom.findings.values() if "side" not in p.values]
    parts.append(f"In the middle: {', '.join(middle) or NONE}.")
    rng.shuffle(parts)
    return " ".join(parts)


def _with_details(present: Present) -> str:
    details = ", ".join(value for key, value in present.values.items() if key != "side")
    return f"{present.name} ({details})" if details else present.name


def make_processor() -> LlavaProcessor:
    """Train the tokenizer and put the processor together.

    The tokenizer also reads the data set's questions, so that its vocabulary has their words; the
    model does not.
    """
    image_processor = SiglipImageProcessorPil(
        size={"height": PIXELS, "width": PIXELS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=_make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def _make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # any text can be written
        show_progress=False,
    )
    lines = []
    for index in range(1000):
        phantom = make_phantom(
            Stream.PRETRAINING, SEED, index, size=PATCH
        )  # the texts do not need the pixels
        pairs = pretraining_texts(phantom) + [
            (question.text, question.answer) for question in questions(phantom)
        ]
        lines += [f"USER: \n{prompt} ASSISTANT: {answer}" for prompt, answer in pairs]
    tokenizer.train_from_iterator(lines, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
