"""What is printed of runs and versions."""

from pathlib import Path

import pytest

from radloop.config import DEFAULT_CONFIG
from radloop.registry import Version
from radloop.summary import list_versions, next_commands


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


def test_around_again_is_with_the_same_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radloop.registry.champion", lambda _: None)

    def last(config: Path, *, tiny: bool) -> str:
        return next_commands(version("a"), config, tiny=tiny)[-1][0]

    assert last(DEFAULT_CONFIG, tiny=False) == "radloop retrain --if-new-data"
    assert last(Path("my run.yaml"), tiny=False) == "radloop retrain -c 'my run.yaml' --if-new-data"
    assert last(Path("a.yaml"), tiny=True) == "radloop run -c a.yaml"
