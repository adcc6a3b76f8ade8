"""What a user would pick instead: TRL's SFTTrainer on the same model, data, tokens and settings."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from benchmarks._train_ours import described
from radloop.data.prepared import PreparedData


def main(
    model: str,
    data: str,
    out: str,
    targets: str,
    settings: dict[str, Any],
    batch: int,
    samples_per_step: int,
    seed: int,
) -> dict[str, Any]:
    """Train LoRA layers and write them to `out`.

    Args:
        model: Folder of the base.
        data: Folder of prepared data.
        out: Where the adapter goes.
        targets: Regular expression over the modules that get LoRA layers.
        settings: Rank, alpha, epochs and learning rate.
        batch: Rows in one forward pass; what is fastest for it on this machine.
        samples_per_step: Of one optimiser step; a multiple of `batch`.
        seed: Of weights and order.
    """
    prepared = PreparedData.load(Path(data))
    rows = _rows(prepared)
    start = time.monotonic()
    transformers.set_seed(seed)
    trainer = _trainer(model, rows, out, targets, settings, batch, samples_per_step, seed)
    collate = _Counted(trainer.data_collator)
    trainer.data_collator = collate
    begin = time.monotonic()
    trainer.train()
    end = time.monotonic()
    trainer.save_model(out)
    return {
        "seconds": end - start,
        "training_seconds": end - begin,
        "samples": collate.num_rows,
        "steps": trainer.state.global_step,
        "trained_parameters": _trained_parameters(trainer.model),
        "tokens": _tokens(collate.collate, rows),
    }


class _Counted:
    """The trainer's collator, which counts the rows that come through."""

    def __init__(self, collate: Callable[..., Any]) -> None:
        self.collate = collate
        self.num_rows = 0

    def __call__(self, rows: list[Any]) -> Any:
        self.num_rows += len(rows)
        return self.collate(rows)


def _trainer(
    model: str,
    rows: Any,
    out: str,
    targets: str,
    settings: dict[str, Any],
    batch: int,
    samples_per_step: int,
    seed: int,
) -> Any:
    """Return the trainer with its defaults but for what makes both sides train the same; see `main`."""
    processors: Any = transformers.AutoProcessor
    processor = processors.from_pretrained(model)
    # It takes the template's text as it is; the model's processor would put the begin token before it.
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    return SFTTrainer(
        model=transformers.AutoModelForImageTextToText.from_pretrained(
            model, dtype=torch.float32, attn_implementation="sdpa"
        ),
        processing_class=processor,
        train_dataset=rows,
        peft_config=LoraConfig(
            r=settings["rank"], lora_alpha=settings["alpha"], lora_dropout=0.0, target_modules=targets
        ),
        args=SFTConfig(
            output_dir=out,
            seed=seed,
            num_train_epochs=settings["epochs"],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=samples_per_step // batch,
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            max_grad_norm=1.0,
            weight_decay=0.0,
            assistant_only_loss=True,
            max_length=None,  # its default would cut image tokens
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            logging_steps=10_000,
            disable_tqdm=True,
            dataloader_num_workers=0,  # two cores: a worker takes one of them from the training
        ),
    )


def _trained_parameters(model: Any) -> int:
    """Return how many; none of them may be of the base, and no activation may be computed twice."""
    trained = {name: found.numel() for name, found in model.named_parameters() if found.requires_grad}
    if not all("lora_" in name for name in trained) or model.is_activation_checkpointing:
        raise RuntimeError(f"SFTTrainer was to train LoRA layers without checkpointing; got {list(trained)}")
    return sum(trained.values())


def _rows(prepared: PreparedData) -> Any:
    """Return the train split as the trainer takes it, each row with its picture."""
    train = prepared.split("train")
    columns = (train["image_ids"].to_pylist(), train["prompt"].to_pylist(), train["answers"].to_pylist())
    pngs = dict(zip(prepared.images["id"].to_pylist(), prepared.images["png"].to_pylist(), strict=True))
    content = {
        "images": [[{"bytes": pngs[ids[0]], "path": None}] for ids in columns[0]],
        "messages": [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answers[0]}]
            for prompt, answers in zip(*columns[1:], strict=True)
        ],
    }
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()), "messages": datasets.List(message)}
    )
    return datasets.Dataset.from_dict(content, features=features)


def _tokens(collate: Callable[..., Any], rows: Any) -> dict[str, Any]:
    """Describe the tokens of all rows: to be held against the other side's."""
    ids: list[list[int]] = []
    with_loss: list[list[int]] = []
    for row in rows:  # one by one, which takes less memory than a step of training
        batch = collate([row])
        labels = batch["labels"][0]
        ids.append(batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist())
        with_loss.append(labels[labels != -100].tolist())
    return described(ids, with_loss)


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
