"""What is printed of runs and versions."""

import pytest

from radloop.registry import Version
from radloop.summary import list_versions


def version(name: str, *aliases: str) -> Version:
    shares = {"": 0.957, "_base": 0.112, "_blind": 0.591, "_shuffled": 0.48}
    metrics = {f"exact_match{which}": share for which, share in shares.items()} | {"n": 3003.0}
    return Version(name, 1, aliases, {"fingerprint": "2ab8"}, metrics, None)


def test_figures_stay_whole_where_names_are_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    list_versions([version("rocov2_baseline_llava_next", "challenger", "champion")])
    table = capsys.readouterr().out
    for figure in ("95.7 %", "11.2 %", "59.1 %", "48.0 %", "3,003"):
        assert figure in table
