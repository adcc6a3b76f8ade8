"""Fine-tune the base model with LoRA."""

from typing import Annotated

import mlflow
from zenml import step

from materializers import AdapterMaterializer
from radloop.config import FinetuneConfig, ModelConfig
from radloop.data.prepared import PreparedData
from radloop.training import finetune as train_adapter
from radloop.training.adapter import Adapter
from steps._caching import reuse_while_same, training_code
from steps._tracking import StepMetrics, log_facts


@step(
    cache_policy=reuse_while_same(training_code),
    experiment_tracker=True,
    output_materializers=AdapterMaterializer,
)
def finetune(
    data: PreparedData, model: ModelConfig, base_sha256: str, config: FinetuneConfig, seed: int
) -> Annotated[Adapter, "adapter"]:
    """Train on the train split; loss and learning rate of each step go to MLflow."""
    mlflow.log_params(config.model_dump() | {"base": model.base, "base_sha256": base_sha256, "seed": seed})
    with StepMetrics() as metrics:
        adapter = train_adapter(data, model, config, seed, on_step=metrics.log)
    for name, content in adapter.views().items():
        mlflow.log_image(*metrics.as_image(content, name))
    log_facts(adapter)
    return adapter
