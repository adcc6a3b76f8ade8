"""Lets `zenml pipeline run train_pipeline` find the pipeline: ZenML takes this name for a module."""

import sys

from pipelines.train import train_pipeline

sys.modules[__name__] = train_pipeline  # type: ignore[assignment]
