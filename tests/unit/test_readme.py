"""The documents hold no placeholder and no dead link."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_no_placeholder_and_no_dead_link(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"@[A-Z_]{3,}@|TODO|FIXME", text)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (ROOT / target).is_file(), target
