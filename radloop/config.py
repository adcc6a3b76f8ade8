"""The run config: everything a run of `train_pipeline` depends on, checked before work starts.

A config file is a ZenML run configuration whose `parameters: config:` block is a `RunConfig`.
Each step receives its own section only, so that a change re-runs the steps it concerns.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from radloop import workspace
from radloop.config_faults import find_faults
from radloop.errors import ConfigError
from radloop.tiny_run import shrunk

DEFAULT_CONFIG = Path("zenml_config.yaml")
# Of ZenML's run configuration, what a config may say beside the parameters; ZenML ignores other keys.
ZENML_KEYS = {"parameters", "settings", "enable_cache", "steps", "tags", "run_name", "extra"}


def _number_from_text(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; take it for the number that its writer meant."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


Number = Annotated[
    float, Field(allow_inf_nan=False), BeforeValidator(_number_from_text), BeforeValidator(_not_bool)
]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, BeforeValidator(_not_bool), Field(ge=1)]


class Section(BaseModel):
    """A part of the config: immutable, unknown keys refused.

    Attributes:
        short_form: A section whose keys may stand here in place of a list of such sections.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    short_form: ClassVar[type[Section] | None] = None


class SourceConfig(Section):
    """One data set."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]{0,49}$")] | None = Field(
        None, description="of the data set, where one adapter reads several; null: the adapter's own"
    )
    adapter: str = Field(description="name in radloop.data.adapters.REGISTRY, such as 'vqa_rad'")
    path: str | None = Field(
        None,
        description="file, folder or hf://owner/name[@revision]; $NAME is an environment variable",
    )
    options: dict[str, Any] = Field({}, description="the adapter's own options")

    @field_validator("path")
    @classmethod
    def _expand(cls, path: str | None) -> str | None:
        return None if path is None else _expand_variables(path)


class DataConfig(Section):
    """Where the corpus comes from. A single source may stand here without `sources`."""

    short_form = SourceConfig

    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="the data sets of the corpus")
    workers: Count | None = Field(None, description="processes that read; null: as many as cores")
    engine: Literal["local", "ray"] = Field("local", description="'ray' reads on a Ray cluster")
    deidentify: bool = Field(
        False,
        description="pseudonyms for patients and studies, DICOM tags by PS3.15, texts without identifiers",
    )

    @model_validator(mode="before")
    @classmethod
    def _single_source(cls, values: Any) -> Any:
        if isinstance(values, dict) and "sources" not in values:
            own = {name: value for name, value in values.items() if name in SourceConfig.model_fields}
            rest = {name: value for name, value in values.items() if name not in own}
            return rest | {"sources": [own]}
        return values


class ValidationConfig(Section):
    """How much may be wrong with the data before the run stops."""

    min_samples: Count = Field(1, description="samples that must be left after quarantine")
    max_quarantined: Fraction = Field(0.05, description="largest share of samples in quarantine")
    max_leakage: Fraction | None = Field(
        None,
        description="largest share of published test samples on images of other splits; null: report only",
    )
    suites: tuple[str, ...] = Field(
        (), description="files of further expectations, or fewer; see docs/data.md for their form"
    )


class PreprocessConfig(Section):
    """How the accepted samples become model input."""

    image_size: Count = Field(96, description="longest side in pixels; smaller images stay as they are")
    split: Literal["official", "by_image", "by_patient"] = Field(
        "by_patient",
        description="keep the published split, or make a clean one, stratified by answer type and organ; "
        "by_patient falls back on the study and the image where no patient is named",
    )
    score_published: bool = Field(
        False,
        description="with a clean split: score the published test split, too, and train on none of it",
    )
    validation: Fraction = Field(0.1, description="share of samples; of official only if it has none")
    test: Fraction = Field(0.2, description="share of samples, of a clean split")
    lowercase_answers: bool = Field(
        False, description="for data sets that write 'Yes' and 'yes' at random; scores ignore case anyway"
    )
    prompt: str = Field(
        "{context}{question}",
        description="the user's turn; {question} is replaced, and {context} by a health record or earlier "
        "turns with a line end, where a sample has any",
    )

    @field_validator("prompt")
    @classmethod
    def _has_question(cls, prompt: str) -> str:
        if "{question}" not in prompt:
            raise ValueError(f"got {prompt!r}, which lacks the placeholder {{question}}")
        return prompt

    def to_prompt(self, question: str, context: str = "") -> str:
        """Return the user's turn."""
        return fill_prompt(self.prompt, question, context)

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Self:
        if self.score_published and self.split == "official":
            raise ValueError("got score_published with split: official, which scores nothing else")
        if self.validation + self.test >= 1:
            raise ValueError(
                f"got validation {self.validation} and test {self.test}, which leave nothing for train; "
                "their sum must be below 1"
            )
        return self


def fill_prompt(prompt: str, question: str, context: str = "") -> str:
    """Put question and context into a prompt; braces in either stay as they are."""
    values = {"{question}": question, "{context}": f"{context}\n" if context else ""}
    return re.sub(r"\{question\}|\{context\}", lambda match: values[match.group()], prompt)


class ModelConfig(Section):
    """The base model."""

    family: str = Field("llava", description="name in radloop.models.REGISTRY")
    base: str = Field(
        "tiny", description="'tiny' (shipped with radloop), a folder, or with a revision a hub id"
    )
    revision: str | None = Field(
        None, description="commit of the hub repository; nothing is fetched without, and a folder has none"
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="what the weights must be, as base.json of an adapter has it; null: not checked"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "nf4"] = Field(
        "auto",
        description="of the frozen weights, LoRA's are always fp32; auto: fp32 on a CPU, bf16 on a GPU; nf4 "
        "(double quantisation) and int8 need bitsandbytes, of which nf4 is the one to choose: answers in "
        "int8 depend on what else is in the batch; fp16 needs a GPU",
    )
    max_pixels: Count | None = Field(
        None, description="of an image, for families whose image size varies; null: as the processor has it"
    )
    tiny: bool = Field(
        False,
        description="random weights of the family's architecture in place of the base, made offline: to try "
        "a config out; base, revision and sha256 are then not looked at",
    )


class FinetuneConfig(Section):
    """LoRA fine-tuning. A step is one optimiser update."""

    rank: Count = Field(16, description="LoRA r")
    alpha: Count = Field(32, description="LoRA alpha")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(rank) in place of alpha / rank")
    use_dora: bool = Field(False, description="train magnitude and direction apart; slower")
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(0.0, description="on what LoRA layers read")
    neftune_alpha: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="noise on the embeddings of text tokens in training; 5 is usual, 0 is off"
    )
    targets: tuple[str, ...] = Field(
        ("attention", "mlp"),
        description="groups of layers to train, as the family names them, or single layers of them, such as "
        "attention.q_proj",
    )
    epochs: Annotated[Number, Field(gt=0)] = Field(3.0, description="passes over the train split")
    max_steps: Count | None = Field(None, description="length of the run in place of epochs")
    images_per_step: Count = Field(8, description="images whose questions form one batch")
    tokens_per_pass: Count | None = Field(
        4096,
        description="tokens with padding in one forward pass, which bounds memory; a step has as many passes "
        "as it needs and gives the same result; null: one pass",
    )
    max_tokens: Count | None = Field(
        None,
        description="of a sample with its images; an answer that does not fit is cut at its end; null: what "
        "the model takes",
    )
    loss: Literal["token", "answer"] = Field(
        "token",
        description="what weighs the same in a step: every answer token, so that long answers weigh more, or "
        "every answer, by the mean of its tokens",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        "adamw", description="all but adamw need bitsandbytes; a CPU has no paged memory and does without"
    )
    learning_rate: Annotated[Number, Field(gt=0)] = Field(3e-3, description="the highest, after the warm-up")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the learning rate after the warm-up; all but constant end at 0"
    )
    warmup: Fraction = Field(0.03, description="share of steps")
    warmup_steps: Annotated[int, BeforeValidator(_not_bool), Field(ge=0)] | None = Field(
        None, description="in place of warmup"
    )
    weight_decay: Annotated[Number, Field(ge=0)] = Field(0.0, description="of AdamW, on what LoRA trains")
    max_grad_norm: Annotated[Number, Field(gt=0)] = Field(
        1.0, description="gradients of a step are scaled down to this norm"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, about a third slower"
    )
    share_prefix: bool = Field(True, description="pack the questions of an image behind one prefix")
    cache_features: bool | None = Field(
        None,
        description="compute the features of an image once; null: where neither targets nor augment change "
        "them",
    )
    augment: bool = Field(
        False, description="turn images by up to 5 degrees, vary brightness and contrast; never flip them"
    )
    validate_every: Count | None = Field(None, description="steps; null: at the end of each epoch")
    best_by: Literal["last", "validation_loss", "exact_match"] = Field(
        "last", description="which weights are kept; exact_match answers the validation questions each time"
    )
    patience: Count | None = Field(
        None,
        description="validations without improvement after which training stops, by best_by (last: by "
        "validation_loss); null: never",
    )
    checkpoint_every: Count | None = Field(
        None, description="steps; null: as rarely as it takes to cost no more than 1 % of the time"
    )
    launch: Path | None = Field(
        None,
        description="config file of accelerate, such as configs/accelerate/multi_gpu.yaml, to train in the "
        "processes that it names; null: in this process",
    )

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.cache_features and self.augment:
            raise ValueError(
                "got cache_features: true with augment: true, but an augmented image is another one each "
                "epoch; set cache_features to null or augment to false"
            )
        return self


class EvaluationConfig(Section):
    """Scores of base and tuned model on the test split."""

    max_new_tokens: Count = Field(16, description="longest answer in tokens")
    batch_images: Count = Field(32, description="images whose questions are answered together")
    resamples: Count = Field(1000, description="bootstrap resamples of groups for the intervals")
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = Field(0.95, description="of the intervals")


class JudgeConfig(Section):
    """Pairwise comparison of two systems' answers."""

    judge: Literal["offline", "openai"] = Field(
        "offline",
        description="'offline' compares with the reference by rule; 'openai' asks the endpoint that "
        "OPENAI_BASE_URL, OPENAI_API_KEY and RADLOOP_JUDGE_MODEL name",
    )
    max_pairs: Count = Field(200, description="test samples to judge, drawn by the seed")


class PromotionConfig(Section):
    """The gates. A challenger becomes champion only if it passes all of them."""

    min_gain: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="exact match above the champion's (or the base's) that the interval must exclude"
    )
    min_grounding: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.02, description="exact match above its own score on shuffled images that the interval must exclude"
    )


class ScheduleConfig(Section):
    """When the pipeline runs by itself, on orchestrators that can."""

    cron: str = Field(description="five fields, such as '0 3 * * 1'")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str) -> str:
        from croniter import croniter

        if len(cron.split()) != 5 or not croniter.is_valid(cron):
            raise ValueError(f"got {cron!r}, expected five cron fields such as '0 3 * * 1'")
        return cron


class RunConfig(Section):
    """One run of `train_pipeline`."""

    model_name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,49}$")] = Field(
        "radloop", description="of the registered model and the Bento"
    )
    seed: Annotated[int, BeforeValidator(_not_bool), Field(ge=0, lt=2**31)] = Field(
        7, description="of all that is drawn: splits, LoRA's first weights, order, resamples"
    )
    data: DataConfig
    validation: ValidationConfig = ValidationConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    model: ModelConfig = ModelConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    judge: JudgeConfig = JudgeConfig()
    promotion: PromotionConfig = PromotionConfig()
    schedule: ScheduleConfig | None = None
    tiny: bool = Field(
        False,
        description="the same run in small, offline: phantoms in the same layout, a random model of the "
        "same family, few steps; its scores mean nothing",
    )

    @classmethod
    def parse(cls, values: Any, where: str) -> RunConfig:
        """Check `values`, and the adapter's and the family's names and options with them.

        Raises:
            ConfigError: Lists every fault with its place, what was got, and what is allowed.
        """
        error: ValidationError | None = None
        try:
            config = cls.model_validate(values)
        except ValidationError as caught:
            error = caught
        if faults := find_faults(values, cls, error):
            raise ConfigError(
                f"{where}: {len(faults)} fault{'s' * (len(faults) != 1)} in the run config\n"
                + "\n".join(f"  - {fault}" for fault in faults)
            )
        return shrunk(config) if config.tiny else config

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read the `parameters: config:` block of a ZenML run configuration file."""
        try:
            content = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a file of configs/") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
        try:
            values = content["parameters"]["config"]
        except (TypeError, KeyError):
            raise ConfigError(
                f"{path}: has no block 'parameters: config:'; see {DEFAULT_CONFIG} for an example"
            ) from None
        if unknown := set(content) - ZENML_KEYS:
            raise ConfigError(
                f"{path}: unknown keys {', '.join(sorted(map(str, unknown)))} beside 'parameters'; "
                f"known: {', '.join(sorted(ZENML_KEYS))}"
            )
        if beside := set(content["parameters"]) - {"config"}:
            raise ConfigError(
                f"{path}: unknown keys {', '.join(sorted(map(str, beside)))} in 'parameters'; known: config"
            )
        return cls.parse(values, str(path))


def _expand_variables(path: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        found = os.environ.get(name, workspace.DEFAULTS.get(name))
        if found is None:
            raise ValueError(f"the environment variable {name} is not set; set it or write the path itself")
        return found

    return re.sub(r"\$(\w+)", value, path)
