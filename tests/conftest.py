"""Fixtures that many rooms share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline for an example would be a timed assertion.
settings.register_profile("aula", deadline=None)
settings.load_profile("aula")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that the whole session shares, so that the engines in it are built once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data that may lie beside the checkout."""
    candidates = [Path(os.environ["AULA_TEST_DATA"])] if "AULA_TEST_DATA" in os.environ else []
    candidates.append(REPOSITORY.parent / "shared" / "data")
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip(
        "real test data is absent: put it in ../shared/data or name its folder in AULA_TEST_DATA",
        allow_module_level=True,
    )
