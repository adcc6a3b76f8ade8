from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radloop.data.privacy import Pseudonyms, load_key
from radloop.errors import ConfigError

KEY = b"a key of enough length"
OTHER = b"another key of enough length"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RADLOOP_PSEUDONYM_KEY", raising=False)
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@given(st.text(), st.text())
def test_a_pseudonym_depends_on_key_kind_and_value_and_shows_none_of_them(value: str, kind: str) -> None:
    name = Pseudonyms(KEY).of(kind, value)
    if not value.strip():
        assert name == ""
        return
    assert re.fullmatch("[A-Z2-7]{16}", name)
    assert name == Pseudonyms(KEY).of(kind, f" {value} ")
    others = (
        Pseudonyms(OTHER).of(kind, value),
        Pseudonyms(KEY).of(kind + "s", value),
        Pseudonyms(KEY).of(kind, value + "1"),
    )
    assert name not in others


def test_kind_and_value_cannot_be_shifted_into_each_other() -> None:
    assert Pseudonyms(KEY).of("a", "b:c") != Pseudonyms(KEY).of("a:b", "c")
    assert Pseudonyms(KEY).of("a", "1:b:c") != Pseudonyms(KEY).of("a:1:b", "c")


def test_a_pseudonym_stays_the_same_over_releases() -> None:
    assert Pseudonyms(KEY).of("patient", "12345") == "SPKXREN67FD54ONX"
    assert Pseudonyms(KEY).uid("1.2.3") == "2.25.192445491111658931111476687337996441121"


@given(st.from_regex(r"1\.[0-9]{1,9}(\.[1-9][0-9]{0,9}){0,4}", fullmatch=True))
def test_a_uid_is_valid_and_depends_on_the_key(uid: str) -> None:
    new = Pseudonyms(KEY).uid(uid)
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", new)
    assert new == Pseudonyms(KEY).uid(uid + "\0")
    assert new != Pseudonyms(OTHER).uid(uid)


def test_no_uid_stays_no_uid() -> None:
    assert Pseudonyms(KEY).uid("") == Pseudonyms(KEY).uid("\0") == ""


def test_a_value_that_is_no_valid_text_raises_nothing_that_would_print_it() -> None:
    assert len(Pseudonyms(KEY).of("patient", "SMITH\ud800")) == 16


def test_the_key_shows_nowhere() -> None:
    names = Pseudonyms(KEY)
    assert "key of" not in f"{names!r} {names} {[names]}"
    assert not hasattr(names, "__dict__")
    for leak in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match=r"not pickled; make them anew with load_key\(\)") as error:
            leak(names)
        assert "enough" not in str(error.value)


@pytest.mark.parametrize("key", [b"", b"0123456789abcde"])
def test_a_short_key_is_refused_without_printing_it(key: bytes) -> None:
    with pytest.raises(ConfigError, match=f"has {len(key)} characters; a key needs at least 16") as error:
        Pseudonyms(key)
    assert "0123456789" not in str(error.value)


def test_the_environment_gives_the_key_and_no_file_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADLOOP_PSEUDONYM_KEY", "0123456789abcdef")
    assert load_key() == b"0123456789abcdef"
    assert not home.exists()


@pytest.mark.parametrize("key", ["", "0123456789abcde"])
def test_a_short_key_in_the_environment_is_refused_rather_than_ignored(
    key: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADLOOP_PSEUDONYM_KEY", key)
    with pytest.raises(ConfigError, match="RADLOOP_PSEUDONYM_KEY has") as error:
        load_key()
    assert "0123456789" not in str(error.value)


def test_the_key_file_is_made_once_and_for_its_owner_only(home: Path) -> None:
    key = load_key()
    assert re.fullmatch(rb"[0-9a-f]{64}", key)
    assert load_key() == key
    assert [file.name for file in home.iterdir()] == ["pseudonym.key"]
    assert (home / "pseudonym.key").stat().st_mode & 0o777 == 0o600


def test_another_project_gets_another_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = load_key()
    monkeypatch.setenv("RADLOOP_HOME", str(home / "other"))
    assert load_key() != key


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644])
def test_a_key_that_others_may_read_is_refused_with_the_command_that_mends_it(home: Path, mode: int) -> None:
    key = load_key()
    file = home / "pseudonym.key"
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 '{re.escape(str(file))}'") as error:
        load_key()
    assert key.decode() not in str(error.value)


def test_an_emptied_key_file_is_refused_and_left_alone(home: Path) -> None:
    load_key()
    (home / "pseudonym.key").write_text("")
    with pytest.raises(ConfigError, match=r"pseudonym\.key has 0 characters"):
        load_key()
    assert (home / "pseudonym.key").read_text() == ""


def test_a_state_folder_that_cannot_be_made_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"cannot be read or made .* give the key in RADLOOP_PSEUDONYM_KEY"):
        load_key()


def test_processes_that_start_together_get_one_key(home: Path) -> None:
    code = "from radloop.data.privacy.pseudonyms import load_key; print(load_key().decode())"
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    keys = {job.communicate(timeout=60)[0] for job in jobs}
    assert len(keys) == 1
    assert keys != {b""}
    assert [file.name for file in home.iterdir()] == ["pseudonym.key"]
