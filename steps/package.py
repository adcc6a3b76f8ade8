"""Build the Bento of a promoted version."""

from dataclasses import replace
from typing import Annotated

from zenml import step

from materializers import ReleaseMaterializer
from radloop import packaging, registry
from radloop.promotion import PromotionDecision
from radloop.release import Release
from steps._caching import registry_code, reuse_while_same
from steps._tracking import log_facts


@step(
    cache_policy=reuse_while_same(registry_code),
    experiment_tracker=True,
    output_materializers=ReleaseMaterializer,
)
def package(release: Release, decision: PromotionDecision) -> Annotated[Release, "packaged"]:
    """Package the version if it was promoted; a refused one gets no Bento."""
    if not decision.promoted:
        return release
    version = registry.version(release.model_name, release.version)
    packaged = replace(release, bento=packaging.package(version))
    log_facts(packaged)
    return packaged
