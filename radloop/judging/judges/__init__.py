"""One judge a file here, and one line in `REGISTRY`."""

from __future__ import annotations

import importlib

from radloop.errors import JudgeError, unknown
from radloop.judging.protocol import Judge

REGISTRY = {
    "offline": "radloop.judging.judges.offline:OfflineJudge",
    "openai": "radloop.judging.judges.openai:OpenAIJudge",
}


def get_judge(name: str) -> Judge:
    """Return the judge of that name, ready to compare.

    Raises:
        JudgeError: No judge has this name, or its environment variables are not set.
    """
    if name not in REGISTRY:
        raise JudgeError(unknown("judge", name, REGISTRY))
    module, attribute = REGISTRY[name].split(":")
    judge: Judge = getattr(importlib.import_module(module), attribute).from_environment()
    return judge
