"""Builds the tiny base model: `python -m radloop.models.tiny OUT_DIR`, about ten minutes on two cores.

Stage A trains the vision tower on what the phantom generator knows exactly, stage B the projector
and the language model on descriptions. Both count steps, not seconds, so that the same machine
gives the same weights; another processor may round otherwise and give another hash.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import SiglipVisionModel

from radloop.models.tiny_base import RECORD, hashes
from radloop.models.tiny_language import train_language
from radloop.models.tiny_text import make_processor
from radloop.models.tiny_vision import train_tower

TOWER_STEPS, TOWER_BATCH = 1400, 64
LANGUAGE_STEPS, LANGUAGE_BATCH = 800, 16


def build(folder: Path, tower_folder: Path | None = None) -> None:
    """Train the base and write it, in bfloat16 with its `SHA256` record, into `folder`.

    Args:
        folder: Made if it does not exist; files of an earlier base in it are replaced.
        tower_folder: Where the tower of stage A is kept. If it is there already, stage A is skipped.
    """
    torch.set_num_threads(2)
    processor = make_processor()
    if tower_folder and (tower_folder / "config.json").exists():
        tower = SiglipVisionModel.from_pretrained(tower_folder, local_files_only=True)
    else:
        tower = train_tower(TOWER_STEPS, TOWER_BATCH, _report)
        if tower_folder:
            tower.save_pretrained(tower_folder)
    model = train_language(processor, tower.eval(), LANGUAGE_STEPS, LANGUAGE_BATCH, _report)
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    lines = [f"{digest}  {name}\n" for name, digest in hashes(folder).items()]
    (folder / RECORD).write_text("".join(lines))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    _report(f"{model.num_parameters() / 1e6:.2f} M parameters, {size / 1e6:.1f} MB in {folder}")
    _report("".join(lines).rstrip())


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m radloop.models.tiny", description="Build the tiny base model."
    )
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--tower", type=Path, help="keep the vision tower here, and reuse it if it is there")
    options = parser.parse_args(arguments)
    build(options.folder, options.tower)


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
