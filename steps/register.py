"""Register the tuned model as challenger."""

from typing import Annotated

import mlflow
from zenml import log_metadata, step
from zenml.metadata.metadata_types import MetadataType

from materializers import ReleaseMaterializer
from radloop import registry, source
from radloop.answering import AnswerConfig
from radloop.data.prepared import PreparedData
from radloop.evaluation import EvaluationReport
from radloop.judging import JudgeReport
from radloop.release import Release
from radloop.training.adapter import Adapter
from steps._caching import registry_code, reuse_while_same
from steps._tracking import log_facts, run_names


@step(
    cache_policy=reuse_while_same(registry_code),
    experiment_tracker=True,
    output_materializers=ReleaseMaterializer,
)
def register(
    data: PreparedData,
    adapter: Adapter,
    evaluation: EvaluationReport,
    judged: JudgeReport,
    answering: AnswerConfig,
    model_name: str,
    provenance: dict[str, str],
) -> Annotated[Release, "registered"]:
    """Create the version with all that is known of it, in one transaction."""
    run = mlflow.active_run()
    version = registry.register(
        model_name,
        adapter.folder,
        answering,
        tags=provenance
        | run_names()
        | {"git_commit": source.git_commit(), "judge": str(judged.facts()["judge"])},
        metrics=evaluation.scores(),
        split=data.split_of_keys(),
        run_id=run.info.run_id if run else None,
    )
    release = Release(model_name, version.version, provenance["fingerprint"])
    log_facts(release)
    on_model: dict[str, MetadataType] = {"registered_version": release.version}
    log_metadata(metadata=on_model, infer_model=True)
    return release
