import pytest

from tests.e2e.project import Project, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project for all tests of a module."""
    return make_project(tmp_path_factory.mktemp("project"))
