"""Where the features of a step's images come from: the cache, or the picture itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from radloop import workspace
from radloop.config import FinetuneConfig
from radloop.data.prepared import PreparedData
from radloop.models.family import Features
from radloop.models.feature_cache import FeatureCache
from radloop.models.loading import Loaded
from radloop.training.augmentation import augment
from radloop.training.losses import FeaturesOf
from radloop.training.plan import Plan


class FeatureSource:
    """The features of images, as a plan wants them."""

    def __init__(
        self,
        loaded: Loaded,
        data: PreparedData,
        plan: Plan,
        config: FinetuneConfig,
        seed: int,
        keep: bool = True,
    ) -> None:
        """Prepare the source; unless `keep`, features are never kept on disk, whatever the plan is."""
        self._loaded, self._data, self._plan, self._seed = loaded, data, plan, seed
        self._augment = config.augment
        # Pictures to validate on are not augmented, so augmentation is no reason against their cache.
        self._keep_validation = config.cache_features is not False and not plan.in_graph
        # Whatever may be trained from the cache is validated from it.
        folder = workspace.features() if keep and self._keep_validation else None
        self._cache = FeatureCache(loaded, folder).of_data(data)

    def training(self, epoch: int) -> FeaturesOf:
        """Return what gives the features to train on in an epoch, from 0."""
        if self._plan.cache_features:
            return self._cache
        image = self._augmented(epoch) if self._augment else self._data.image
        return self._computed(image, self._plan.in_graph)

    def validation(self) -> FeaturesOf:
        """Return what gives the features to validate on."""
        return self._cache if self._keep_validation else self._computed(self._data.image, in_graph=False)

    def _augmented(self, epoch: int) -> Callable[[str], Image.Image]:
        return lambda image_id: augment(self._data.image(image_id), self._seed, epoch, image_id)

    def _computed(self, image: Callable[[str], Image.Image], in_graph: bool) -> FeaturesOf:
        encode = self._loaded.encode_in_graph if in_graph else self._loaded.encode

        def features(image_ids: Sequence[str]) -> list[Features]:
            distinct = list(dict.fromkeys(image_ids))
            encoded = encode([image(name) for name in distinct]) if distinct else []
            found = dict(zip(distinct, encoded, strict=True))
            return [found[name] for name in image_ids]

        return features
