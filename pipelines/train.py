"""The training pipeline: wiring only."""

from __future__ import annotations

from typing import Any

from zenml.enums import ExecutionMode

from pipelines._checked import CheckedPipeline
from radloop import incumbency, preflight
from radloop.answering import AnswerConfig
from radloop.config import RunConfig
from radloop.data.ingest import ingest as read_corpus
from radloop.tiny_run import provide_data
from steps.evaluate import evaluate
from steps.finetune import finetune
from steps.ingest import ingest
from steps.judge import judge
from steps.package import package
from steps.preprocess import preprocess
from steps.promote import promote
from steps.register import register
from steps.validate import validate


def _wire(config: dict[str, Any]) -> None:
    """Ingest, validate, preprocess, finetune, evaluate, judge, register, promote, package.

    Args:
        config: A `radloop.config.RunConfig`, as the config file has it.
    """
    run = RunConfig.parse(config, "parameters.config")
    preflight.packages()
    provide_data(run)
    preflight.suites(run.validation)
    judge_name = preflight.judge(run.judge)
    base_sha256 = preflight.base(run)
    fingerprint = read_corpus(run.data).fingerprint
    incumbent, provenance = incumbency.resolve(run, fingerprint, base_sha256)

    corpus = ingest(run.data, fingerprint)
    checked = validate(corpus, run.validation)
    data = preprocess(corpus, checked, run.preprocess, run.seed, incumbency.split_to_keep(run, incumbent))
    adapter = finetune(data, run.model, base_sha256, run.finetune, run.seed)
    evaluation = evaluate(data, adapter, run.model, run.evaluation, run.seed, incumbent)
    judged = judge(evaluation, run.judge, judge_name, run.seed)
    answering = AnswerConfig.of(run.preprocess, run.evaluation)
    registered = register(data, adapter, evaluation, judged, answering, run.model_name, provenance)
    decision = promote(registered, evaluation, judged, run.promotion, incumbent)
    package(registered, decision)


train_pipeline = CheckedPipeline(
    name="train_pipeline",
    entrypoint=_wire,
    execution_mode=ExecutionMode.FAIL_FAST,  # so that the error itself reaches the command line
)
