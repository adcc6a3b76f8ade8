"""Image features, each computed once: for every epoch, evaluation and later run with the same base."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from radloop import workspace
from radloop.models.encoding import Encoder
from radloop.models.family import Features
from radloop.models.feature_store import FeatureStore
from radloop.models.loading import Loaded
from radloop.source import code_hash, versions_of

if TYPE_CHECKING:
    from radloop.data.prepared import PreparedData

logger = logging.getLogger(__name__)
_BATCH_IMAGES = 8
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "use_cache")  # in a config


class FeatureCache:
    """Computes the features of images, or takes them from where they have been left.

    They are taken from disk only as long as the layers that make them are the base's own.
    """

    def __init__(self, loaded: Loaded, folder: Path | None) -> None:
        """Open the store of this model.

        Args:
            loaded: The model.
            folder: Of all stores; None to leave nothing on disk.

        Raises:
            ConfigError: See `radloop.workspace.feature_bytes`.
        """
        self._loaded = loaded
        self._store = None if folder is None or tunes_features(loaded) else _open_store(loaded, folder)
        self._encode = Encoder(loaded)

    def __call__(self, pixel_hashes: Sequence[str], image: Callable[[int], Image.Image]) -> list[Features]:
        """Return the features of images, in order, on the model's device.

        Args:
            pixel_hashes: `radloop.data.imaging.pixel_hash` of the images; the same one may come twice.
            image: Gives the n-th image, RGB; called only for those whose features have to be computed.
        """
        numbers = {pixel_hash: number for number, pixel_hash in enumerate(pixel_hashes)}
        found = self._store.get(numbers) if self._store else {}
        missing = [pixel_hash for pixel_hash in numbers if pixel_hash not in found]
        if missing:
            found |= self._computed(missing, lambda pixel_hash: image(numbers[pixel_hash]))
        device = self._loaded.device
        return [
            {name: tensor.to(device) for name, tensor in found[pixel_hash].items()}
            for pixel_hash in pixel_hashes
        ]

    def _computed(self, missing: Sequence[str], image: Callable[[str], Image.Image]) -> dict[str, Features]:
        """Return features after computing and keeping them."""
        found: dict[str, Features] = {}
        # Without autocast, as in later runs that have none.
        with self._loaded.frozen(), torch.autocast(self._loaded.device.type, enabled=False):
            for start in range(0, len(missing), _BATCH_IMAGES):
                batch = missing[start : start + _BATCH_IMAGES]
                found |= zip(batch, self._encode([image(name) for name in batch]), strict=True)
                if self._store:
                    for pixel_hash in batch:
                        self._store.add(pixel_hash, found[pixel_hash])
        return found

    def of_data(self, data: PreparedData) -> Callable[[Sequence[str]], list[Features]]:
        """Return what gives the features of a data set's images by their ids."""

        def features(image_ids: Sequence[str]) -> list[Features]:
            hashes = [data.pixel_hash(image_id) for image_id in image_ids]
            return self(hashes, lambda number: data.image(image_ids[number]))

        return features


def tunes_features(loaded: Loaded) -> bool:
    """Tell whether the model has an adapter on layers that may change features.

    Those are all that are not of a group known to come after them. Where an adapter holds copied layers,
    single weights or all biases, it is taken to have.
    """
    if not hasattr(loaded.model, "get_base_model"):
        return False
    family = loaded.family
    after = "|".join(pattern for group, pattern in family.targets.items() if group not in family.upstream)
    other = any(
        settings.modules_to_save
        or getattr(settings, "target_parameters", None)
        or getattr(settings, "bias", "none") == "all"
        for settings in loaded.model.peft_config.values()
    )
    return other or any(
        not re.fullmatch(after, name) for name in loaded.model.base_model.targeted_module_names
    )


def _open_store(loaded: Loaded, folder: Path) -> FeatureStore | None:
    max_bytes = workspace.feature_bytes()
    if not max_bytes:
        return None
    settings = json.dumps(_settings(loaded), indent=2, sort_keys=True, default=str)
    key = hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()
    try:
        return FeatureStore(folder / key, settings, max_bytes)
    except OSError as error:
        logger.warning(
            "image features are computed anew each time: %s cannot be written (%s)", folder, error.strerror
        )
        return None


def _settings(loaded: Loaded) -> dict[str, Any]:
    """Return what the features of an image depend on."""
    model, processor = loaded.base_model, loaded.processor
    return {
        "code": code_hash("models"),
        "family": loaded.family.model_type,
        "weights": loaded.reference.sha256,
        "config": _stable(model.config.to_dict()),  # which layer is taken, and the quantisation
        "dtype": model.dtype,
        "device": loaded.device.type,
        "processor": processor.to_dict(),
        "image_processor": type(processor.image_processor).__name__,
        # Pillow and NumPy scale images, or torchvision does.
        "libraries": versions_of("bitsandbytes", "numpy", "pillow", "torch", "torchvision", "transformers"),
    }


def _stable(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's config without what changes from one loading to the next."""
    return {
        name: _stable(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _VOLATILE
    }
