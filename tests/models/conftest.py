"""A tiny model of each architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ARCHITECTURES, make_tiny_model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is saved."""
    return make_tiny_model(tmp_path_factory.mktemp(request.param), request.param, context=64)
