"""The judging as a whole: draw pairs, ask, count."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from radloop.config import JudgeConfig
from radloop.errors import JudgeError
from radloop.evaluation import EvaluationReport
from radloop.evaluation.predict import TUNED
from radloop.evaluation.statistics import Groups
from radloop.judging.judges import get_judge
from radloop.judging.protocol import Judge, Judgement, Pair, Verdict, judge_pair
from radloop.judging.report import JudgeReport

_RESAMPLES = 1000
_CONFIDENCE = 0.95
_POINTS = {"challenger": 1.0, "tie": 0.5, "incumbent": 0.0}


def judge(report: EvaluationReport, config: JudgeConfig, seed: int) -> JudgeReport:
    """Compare the tuned model's answers with the champion's, or with the base's where there is none.

    Args:
        report: Its predictions are judged; images are not.
        config: Which judge, and how many test samples at most.
        seed: Of the samples drawn and of the interval.

    Raises:
        JudgeError: The judge cannot be set up or asked, or most of its replies are outside the protocol.
    """
    return compare(get_judge(config.judge), report, config.max_pairs, seed)


def compare(judge: Judge, report: EvaluationReport, max_pairs: int, seed: int) -> JudgeReport:
    """Do the same with a judge that is set up already."""
    incumbent = report.metrics["gain"]["incumbent"]
    pairs = draw(report.predictions, incumbent, max_pairs, seed)
    judgements = _ask(judge, pairs)
    num_asked = sum(not pair.equal for pair in pairs)
    num_invalid = sum(judgement.verdict == "invalid" for judgement in judgements)
    if 2 * num_invalid > num_asked:
        raise JudgeError(
            f"judge {judge.name}: {num_invalid} of {num_asked} pairs were answered outside the protocol "
            "(one word: A, B or TIE); choose a model that follows instructions"
        )
    return JudgeReport(_summary(judge.name, incumbent, judgements, num_asked, seed), tuple(judgements))


def draw(predictions: pa.Table, incumbent: str, max_pairs: int, seed: int) -> list[Pair]:
    """Return up to `max_pairs` test samples with both systems' answers, in the order of the table."""
    ours = predictions.filter(pc.equal(predictions["system"], TUNED)).to_pylist()
    theirs = predictions.filter(pc.equal(predictions["system"], incumbent)).to_pylist()
    drawn = np.random.default_rng(seed).permutation(len(ours))[:max_pairs]
    return [
        Pair(
            sample_id=ours[row]["sample_id"],
            group=ours[row]["group"],
            question=ours[row]["question"],
            references=tuple(ours[row]["answers"]),
            challenger=ours[row]["prediction"],
            incumbent=theirs[row]["prediction"],
        )
        for row in sorted(drawn.tolist())
    ]


def _ask(judge: Judge, pairs: list[Pair]) -> list[Judgement]:
    """Judge all pairs; the first error stops what has not begun."""
    with ThreadPoolExecutor(judge.calls_at_once) as pool:
        futures = [pool.submit(judge_pair, judge, pair) for pair in pairs]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)
        for future in done:
            future.result()
        return [future.result() for future in futures]


def _summary(
    name: str, incumbent: str, judgements: list[Judgement], num_asked: int, seed: int
) -> dict[str, Any]:
    valid = [judgement for judgement in judgements if judgement.verdict != "invalid"]
    points = [_POINTS[judgement.verdict] for judgement in valid]
    groups = Groups([judgement.pair.group for judgement in valid], _RESAMPLES, _CONFIDENCE, seed)
    rate = groups.mean(points)
    consistent = [judgement.first == judgement.second for judgement in valid if not judgement.pair.equal]
    verdicts = Counter(judgement.verdict for judgement in judgements)
    return {
        "judge": name,
        "challenger": TUNED,
        "incumbent": incumbent,
        "num_pairs": len(judgements),
        "num_groups": len(groups),
        "num_asked": num_asked,
        "verdicts": {verdict: verdicts[verdict] for verdict in get_args(Verdict)},
        "win_rate": rate.value,
        "interval": [rate.low, rate.high],
        "confidence_level": _CONFIDENCE,
        "p": groups.sign_flip([point - 0.5 for point in points]),
        "consistency": sum(consistent) / len(consistent) if consistent else None,
        "tokens": sum(judgement.tokens for judgement in judgements),
    }
