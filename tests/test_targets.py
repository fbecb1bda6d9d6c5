"""Where published versions go: nobody sees half of one, nothing is changed afterwards, and secrets stay secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hub_server import Hub, serving
from mlflow_server import mlflow_serving

from tutelage.configs.errors import UserError
from tutelage.configs.store import file_digest
from tutelage.students import targets

ABOUT = {"run_id": "small-1", "round": 1, "adapter_digest": "1" * 64}
TOKEN = "hf_zq-a-secret-of-the-tests"
KEY, SECRET = "AKIAZQKEYOFTHETESTS0", "zq-another-secret-of-the-tests"


def version(folder: Path, word: str) -> Path:
    for name, text in (("adapter_config.json", "{}"), ("adapter_model.safetensors", word), ("README.md", f"# {word}")):
        (folder / word).mkdir(parents=True, exist_ok=True)
        (folder / word / name).write_text(text)
    (folder / word / "certificates").mkdir(exist_ok=True)
    (folder / word / "certificates" / "silo-0.json").write_text(word)
    return folder / word


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "disk":
        return str(tmp_path / "models")
    for name, value in {
        "AWS_ENDPOINT_URL": request.getfixturevalue("s3"),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-").lower()[-50:].strip("-")
    fs, _ = fsspec.url_to_fs("s3://")
    fs.clear_instance_cache()
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/models"


def read(target: str, name: str) -> bytes:
    fs, root = fsspec.url_to_fs(target)
    data: bytes = fs.cat_file(f"{root}/{name}")
    return data


def index(target: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read(target, "demo/index.json"))
    return found


# ---- folders ----------------------------------------------------------------------------------------------------


def test_versions_are_added_and_the_last_is_the_latest(target: str, tmp_path: Path) -> None:
    first, second = version(tmp_path, "one"), version(tmp_path, "two")
    assert targets.send(first, target, "demo", ABOUT).endswith("demo/v1")
    assert targets.send(second, target, "demo", ABOUT).endswith("demo/v2")
    found = index(target)
    assert [row["version"] for row in found["versions"]] == ["v1", "v2"]
    assert found["latest"] == "v2"
    for row, folder in zip(found["versions"], (first, second), strict=True):
        assert row.items() >= ABOUT.items()
        for name, digest in row["files"].items():
            assert digest == file_digest(folder / name)
            assert read(target, f"demo/{row['version']}/{name}") == (folder / name).read_bytes()
    assert "certificates/silo-0.json" in found["versions"][0]["files"]
    # the same again is the same version, and the latest again
    assert targets.send(first, target, "demo", ABOUT).endswith("demo/v1")
    assert len(index(target)["versions"]) == 2
    assert index(target)["latest"] == "v1"


def test_an_earlier_version_is_made_the_latest_again(target: str, tmp_path: Path) -> None:
    for word in ("one", "two"):
        targets.send(version(tmp_path, word), target, "demo", ABOUT)
    assert targets.make_latest(target, "demo", "v1").endswith("demo/v1")
    assert index(target)["latest"] == "v1"
    with pytest.raises(UserError, match="no v3"):
        targets.make_latest(target, "demo", "v3")
    assert targets.send(version(tmp_path, "three"), target, "demo", ABOUT).endswith("demo/v3")


def test_on_a_disk_latest_is_a_link(tmp_path: Path) -> None:
    shelf = tmp_path / "models" / "demo"
    for word in ("one", "two"):
        targets.send(version(tmp_path, word), str(tmp_path / "models"), "demo", ABOUT)
        assert (shelf / "latest" / "README.md").read_text() == f"# {word}"
    targets.make_latest(str(tmp_path / "models"), "demo", "v1")
    assert (shelf / "latest").readlink() == Path("v1")


def test_what_a_killed_publisher_left_is_in_no_index_and_goes(target: str, tmp_path: Path) -> None:
    fs, root = fsspec.url_to_fs(target)
    for place in ("v1", *([] if "s3:" in target else ["v1.part"])):
        fs.makedirs(f"{root}/demo/{place}", exist_ok=True)
        fs.pipe_file(f"{root}/demo/{place}/half.safetensors", b"half")
    targets.send(version(tmp_path, "one"), target, "demo", ABOUT)
    assert not [path for path in fs.find(f"{root}/demo") if "half" in path]
    assert [row["version"] for row in index(target)["versions"]] == ["v1"]


def test_a_publisher_killed_anywhere_leaves_whole_versions_only(tmp_path: Path) -> None:
    """On a disk, where readers may list folders too: what is there under a version's name is whole."""
    folder, shelf = version(tmp_path, "one"), tmp_path / "models" / "demo"
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(1 << 20))
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    code = f"""
import os, sys
from pathlib import Path
from tutelage.students import targets
left = int(sys.argv[1])
def trace(frame, event, arg):
    global left
    if event == "call" and ("fsspec" in frame.f_code.co_filename or "targets" in frame.f_code.co_filename):
        left -= 1
        if left < 0: os._exit(9)
sys.setprofile(trace)
targets.send(Path({str(folder)!r}), {str(tmp_path / "models")!r}, "demo", {ABOUT!r})
"""
    ended = []
    for left in range(0, 400, 23):
        ended.append(subprocess.run([sys.executable, "-c", code, str(left)], check=False).returncode)
        for place in shelf.glob("v[0-9]*") if shelf.exists() else ():
            if not place.name.endswith(".part"):
                assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == names
        if (shelf / "index.json").exists():
            for row in json.loads((shelf / "index.json").read_text())["versions"]:
                assert {name: file_digest(shelf / row["version"] / name) for name in names} == row["files"]
        if (shelf / "latest").is_symlink():
            assert (shelf / "latest" / "README.md").exists()
        if ended[-1] == 0:
            break
    assert 9 in ended
    assert ended[-1] == 0
    assert targets.send(folder, str(tmp_path / "models"), "demo", ABOUT).endswith("v1")


def test_publishers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    folders = [version(tmp_path, f"word{i}") for i in range(8)]
    threads = [
        threading.Thread(target=targets.send, args=(one, str(tmp_path / "models"), "demo", ABOUT)) for one in folders
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = index(str(tmp_path / "models"))
    assert sorted(row["version"] for row in found["versions"]) == [f"v{i}" for i in range(1, 9)]
    shelf = tmp_path / "models" / "demo"
    assert {(shelf / row["version"] / "README.md").read_text() for row in found["versions"]} == {
        f"# word{i}" for i in range(8)
    }


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"versions": [{"version": "latest"}]}'])
def test_a_damaged_index_is_named_and_kept(target: str, tmp_path: Path, damage: bytes) -> None:
    fs, root = fsspec.url_to_fs(target)
    fs.makedirs(f"{root}/demo", exist_ok=True)
    fs.pipe_file(f"{root}/demo/index.json", damage)
    with pytest.raises(UserError, match="damaged"):
        targets.send(version(tmp_path, "one"), target, "demo", ABOUT)
    assert read(target, "demo/index.json") == damage


def test_targets_that_cannot_be_used_are_the_users_error(tmp_path: Path) -> None:
    folder = version(tmp_path, "one")
    (tmp_path / "file").write_text("")
    for wrong in (str(tmp_path / "file"), "nosuchscheme://x", "hf://", "hf://name-alone", "hf://a/b/c", "hf://a b/c"):
        with pytest.raises(UserError) as caught:
            targets.send(folder, wrong, "demo", ABOUT)
        assert caught.value.remedy


def test_object_storage_that_refuses_is_said_without_the_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(UserError) as caught:
        targets.send(version(tmp_path, "one"), "s3://zquser:zqword@bucket/models?token=zq", "demo", ABOUT)
    said = f"{caught.value} {caught.value.remedy} {caught.value.__cause__}"
    assert not [secret for secret in (KEY, SECRET, "zq") if secret in said]


# ---- a hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with serving(TOKEN) as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def test_a_hub_gets_one_commit_and_a_tag_for_each_version(hub: Hub, tmp_path: Path) -> None:
    first, second = version(tmp_path, "one"), version(tmp_path, "two")
    (first / "only-in-one.txt").write_text("gone in two")
    assert targets.send(first, "hf://ann/demo", "demo", ABOUT) == "hf://ann/demo@v1"
    assert targets.send(second, "hf://ann/demo", "demo", ABOUT) == "hf://ann/demo@v2"
    assert hub.private == {"ann/demo": True}
    assert len(hub.repos["ann/demo"]) == 3  # with the one that made it
    for tag, folder in (("v1", first), ("v2", second)):
        _, files = hub.at("ann/demo", tag)
        expected = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        assert {name: data for name, data in files.items() if name != ".gitattributes"} == expected
    assert hub.at("ann/demo", "main") == hub.at("ann/demo", "v2")
    targets.make_latest("hf://ann/demo", "demo", "v1")
    assert hub.at("ann/demo", "main")[1] == hub.at("ann/demo", "v1")[1]
    with pytest.raises(UserError, match="no v7"):
        targets.make_latest("hf://ann/demo", "demo", "v7")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_a_hub_that_refuses_is_said_without_the_token(
    hub: Hub, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's waits between its attempts
    hub.refuse = status
    with pytest.raises(UserError) as caught:
        targets.send(version(tmp_path, "one"), "hf://ann/demo", "demo", ABOUT)
    assert TOKEN not in f"{caught.value} {caught.value.remedy} {caught.value.__cause__}"
    assert str(status) in str(caught.value)


def test_no_hub_is_the_users_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="can't be reached"):
        targets.send(version(tmp_path, "one"), "hf://ann/demo", "demo", ABOUT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        targets.send(version(tmp_path, "one"), "hf://ann/demo", "demo", ABOUT)


# ---- MLflow -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_serving(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture
def mlflow_name(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return tmp_path.name


@pytest.mark.slow
def test_mlflow_gets_a_registered_version(mlflow_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow.tracking import MlflowClient

    first, second = version(tmp_path, "one"), version(tmp_path, "two")
    measured = {"name": "accuracy.student", "value": 0.8, "ci_low": 0.7, "ci_high": 0.9}
    figures = [measured, {"name": "gone", "value": None}]
    (second / "report.json").write_text(json.dumps({"metrics": figures}))
    target = f"mlflow:{mlflow_name}"
    assert targets.send(first, "mlflow:", mlflow_name, ABOUT) == f"{target}@v1"
    assert targets.send(second, target, "demo", ABOUT) == f"{target}@v2"
    client = MlflowClient()
    published = client.get_model_version_by_alias(mlflow_name, "published")
    assert published.version == "2"
    assert published.tags["tutelage.run_id"] == ABOUT["run_id"]
    got = Path(mlflow.artifacts.download_artifacts(f"models:/{mlflow_name}@published", dst_path=str(tmp_path / "got")))
    assert {name: file_digest(got / name) for name in ("README.md", "certificates/silo-0.json")} == {
        name: file_digest(second / name) for name in ("README.md", "certificates/silo-0.json")
    }
    logged = client.get_run(published.run_id).data
    assert logged.metrics == {"accuracy.student": 0.8, "accuracy.student.ci_low": 0.7, "accuracy.student.ci_high": 0.9}
    # the same again is the same version, and the latest again; and back by hand
    assert targets.send(first, target, "demo", ABOUT) == f"{target}@v1"
    assert client.get_model_version_by_alias(mlflow_name, "published").version == "1"
    assert targets.make_latest(target, "demo", "v2") == f"{target}@v2"
    with pytest.raises(UserError, match="no v3"):
        targets.make_latest(target, "demo", "v3")

    # one that ends while files are sent leaves a run, and no version
    third = version(tmp_path, "three")
    monkeypatch.setattr(MlflowClient, "log_artifacts", lambda *_, **__: (_ for _ in ()).throw(ConnectionError(TOKEN)))
    with pytest.raises(UserError, match="could not be used") as stopped:
        targets.send(third, target, "demo", ABOUT)
    assert TOKEN not in str(stopped.value)
    assert len(client.search_model_versions(f"name='{mlflow_name}'")) == 2


@pytest.mark.slow
def test_mlflow_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        targets.send(version(tmp_path, "one"), "mlflow:demo", "demo", ABOUT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
    with pytest.raises(UserError, match="could not be used") as stopped:
        targets.send(version(tmp_path, "one"), "mlflow:demo", "demo", ABOUT)
    assert TOKEN not in str(stopped.value)
    assert SECRET not in str(stopped.value)
    for wrong in ("mlflow:a/b", "mlflow:http://host"):
        with pytest.raises(UserError, match="name"):
            targets.send(version(tmp_path, "one"), wrong, "demo", ABOUT)
