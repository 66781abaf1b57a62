"""Run folders for the report's tests, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report import run_folders


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete SSR run over five tasks."""
    return run_folders.make_run(tmp_path_factory.mktemp("runs") / "single")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run whose texts try to break out of the page."""
    return run_folders.make_run(tmp_path_factory.mktemp("runs") / "hostile", hostile=True)


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after three of five stages."""
    return run_folders.make_run(tmp_path_factory.mktemp("runs") / "unfinished", finished=3)


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods, three seeds each."""
    return run_folders.make_comparison(tmp_path_factory.mktemp("runs") / "compared", rows=30)
