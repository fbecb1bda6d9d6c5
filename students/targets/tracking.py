"""An MLflow tracking server: `mlflow:` or `mlflow:NAME`; `MLFLOW_TRACKING_URI` says which.

A run has the files and the released figures, and a version of the registered model NAME points at it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.configs.errors import UserError, without_credentials
from tutelage.configs.store import digest, file_digest, files_below
from tutelage.students.targets.versions import number_of

SCHEME = "mlflow:"
ALIAS = "published"
"""Of the latest version; `latest` itself MLflow keeps for itself."""
_FOLDER = "student"
_DIGEST = "tutelage.files"
_FIGURES_A_CALL = 500
"""A server takes 1,000 at most."""


def send(version: Path, target: str, name: str, about: dict[str, Any]) -> str:
    """As `targets.send`. The same files twice are one version.

    The version is registered last, when all files are there: what a killed publisher left is a run that no version
    points at.
    """
    name = _name(target, name)
    files = {file.relative_to(version).as_posix(): file_digest(file) for file in files_below(version)}
    tags = {**{f"tutelage.{key}": str(value) for key, value in about.items()}, _DIGEST: digest(files)}
    with _client() as client:
        known = _versions(client, name)
        if known is None:
            client.create_registered_model(name)
        number = next((one.version for one in known or [] if one.tags.get(_DIGEST) == tags[_DIGEST]), None)
        if number is None:
            experiment = client.get_experiment_by_name(name)
            id = experiment.experiment_id if experiment else client.create_experiment(name)
            run = client.create_run(id, run_name=f"{about.get('run_id', name)}", tags=tags)
            client.log_artifacts(run.info.run_id, str(version), _FOLDER)
            figures = _figures(version)
            for at in range(0, len(figures), _FIGURES_A_CALL):
                client.log_batch(run.info.run_id, metrics=figures[at : at + _FIGURES_A_CALL])
            client.set_terminated(run.info.run_id)
            source = f"{run.info.artifact_uri}/{_FOLDER}"
            number = client.create_model_version(name, source, run_id=run.info.run_id, tags=tags).version
        client.set_registered_model_alias(name, ALIAS, number)
    return f"{SCHEME}{name}@v{number}"


def make_latest(target: str, name: str, version: str) -> str:
    """As `targets.make_latest`."""
    name = _name(target, name)
    with _client() as client:
        known = [f"v{one.version}" for one in _versions(client, name) or []]
        if version not in known:
            raise UserError(f"there is no {version} of {name}", key="--latest", remedy=f"one of: {', '.join(known)}")
        client.set_registered_model_alias(name, ALIAS, str(number_of(version)))
    return f"{SCHEME}{name}@{version}"


def _name(target: str, name: str) -> str:
    given = target.removeprefix(SCHEME).strip("/") or name
    if "/" in given or ":" in given:
        raise UserError(
            "a registered model's name has neither : nor /", key="--to",
            remedy="mlflow:NAME; which server it is says MLFLOW_TRACKING_URI",
        )  # fmt: skip
    return given


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        raise UserError("MLFLOW_TRACKING_URI is not set", key="--to", remedy="set it to the tracking server's address")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise UserError("mlflow is not installed", key="--to", remedy="pip install 'tutelage[mlflow]'") from None
    try:
        yield MlflowClient(tracking_uri=address)
    except UserError:
        raise
    except Exception as error:  # of the network, or the server's, which may quote what it was sent
        raise UserError(
            f"the tracking server could not be used ({type(error).__name__})", file=without_credentials(address),
            key="--to", remedy="check its address, and MLFLOW_TRACKING_USERNAME and _PASSWORD or _TOKEN",
        ) from None  # fmt: skip


def _versions(client: Any, name: str) -> list[Any] | None:
    """All versions of a registered model; None: there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    found: list[Any] = client.search_model_versions(f"name='{name}'")
    return sorted(found, key=lambda one: int(one.version))


def _figures(version: Path) -> list[Any]:
    """The released figures of the report beside the adapter, and the ends of their intervals, as MLflow's metrics."""
    from mlflow.entities import Metric

    report = version / "report.json"
    metrics = json.loads(report.read_text()).get("metrics", []) if report.exists() else []
    found, now = [], int(time.time() * 1000)
    for metric in metrics:
        for end, key in (("", "value"), (".ci_low", "ci_low"), (".ci_high", "ci_high")):
            value = metric.get(key)
            if isinstance(value, int | float):  # a missing one is no number
                found.append(Metric(f"{metric['name']}{end}", float(value), now, 0))
    return found
