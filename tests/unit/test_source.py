from pathlib import Path

import pytest

from radloop import source


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "radloop"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "one.py").write_text("a = 1")
    (folder / "other.py").write_text("b = 1")
    (tmp_path / "deployment").mkdir()
    monkeypatch.setattr(source, "ROOT", folder)
    source.code_hash.cache_clear()
    yield folder
    source.code_hash.cache_clear()


def test_a_change_changes_the_hash_of_its_part_only(root: Path) -> None:
    before = {part: source.code_hash(*part) for part in [("data",), ("other",), ()]}
    (root / "data" / "one.py").write_text("a = 2")
    source.code_hash.cache_clear()
    after = {part: source.code_hash(*part) for part in before}
    assert after["data",] != before["data",]
    assert after["other",] == before["other",]
    assert after[()] != before[()]


def test_a_part_that_does_not_exist_is_an_error(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        source.code_hash("nothing")


def test_commit_of_a_folder_without_git(root: Path) -> None:
    assert source.git_commit() == "unknown"
