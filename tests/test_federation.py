"""Silos at places of their own: real processes that teach there, an exchange between, and nothing private in it."""

from __future__ import annotations

import hashlib
import json
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from conftest import PREFECT_HOME
from drive import printed, server, start
from hypothesis import given
from hypothesis import strategies as st
from small_run import call, files_below, recipe_for, write_recipe

from tutelage.configs.errors import HeldError, PrivacyError, UserError
from tutelage.configs.load import load_recipe, parse_recipe
from tutelage.configs.store import RunDir, canonical_json, file_digest
from tutelage.flows import layout
from tutelage.flows.budget import accounts, recompute_run
from tutelage.flows.federation import exchange as at
from tutelage.flows.federation import part
from tutelage.flows.federation.coordinator import _awaited, certify, coordinator_key, exchange_of, prepare
from tutelage.flows.federation.exchange import Exchange
from tutelage.flows.federation.part import _asked, advance, advance_flow
from tutelage.flows.federation.silo import Silo, agreed, create
from tutelage.flows.stage import Run, StageError, create_run, open_run
from tutelage.flows.verify import verify_run
from tutelage.privacy import canaries, certificate, handed
from tutelage.privacy.handed import Handed
from tutelage.privacy.keys import SealingKey, SiloKey, seal

NAMES = ("north", "south")
PRIVATE = {"mechanism": "private_prediction", "epsilon": 4.0, "batch_units": 6, "brackets": []}
FORMAL: dict[str, Any] = {
    "privacy": PRIVATE,
    "gate": {"rules": [{"metric": "epsilon.claimed", "op": "<=", "value": 4}]},
}


def places(folder: Path, mails: Path, model: Path, exchange: str, epsilon: float | None, **changes: Any) -> Path:
    """A recipe with records of its own, and a folder for each of two silos with theirs; the recipe's path."""
    rows = mails.read_text().splitlines(keepends=True)
    silos, asks = {}, coordinator_key(folder / "here").public_hex
    for number, name in enumerate(NAMES):
        records = folder / f"{name}.jsonl"
        records.write_text("".join(rows[number::3]))
        made = create(folder / name, name, exchange, asks, records, epsilon)
        settings = folder / name / "silo.yaml"
        settings.write_text(settings.read_text() + "screen: {check_texts: 4, min_words: 1}\n")
        silos[name] = {"signing": made.key.public_hex, "sealing": made.sealing.public_hex}
    own = folder / "own.jsonl"
    own.write_text("".join(rows[2::3]))
    recipe = recipe_for(own, model)
    del recipe["data"]["silos"]
    recipe["measure"]["originals"] = False
    recipe["screen"]["min_words"] = 1
    recipe["attack"]["run"] = ["loss"]
    if epsilon is not None:
        recipe["teach"] = {"model": str(model), "prompts_per_label": 4, "max_new_tokens": 12, "batch_rows": 8}
    recipe["federation"] = {"exchange": exchange, "silos": silos, "patience_s": 400}
    return write_recipe(folder, {**recipe, **changes})


def secrets_of(mails: tuple[Path, list[str]], name: str) -> list[bytes]:
    """The strings that only this silo's records hold."""
    mine = "".join(mails[0].read_text().splitlines(keepends=True)[NAMES.index(name) :: 3])
    return [secret.encode() for secret in mails[1] if secret in mine]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """A real S3 server on loopback, and the environment that names it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield env
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def a_bucket(request: pytest.FixtureRequest) -> str:
    """The address of a folder in a new one."""
    request.getfixturevalue("s3")
    bucket = f"bucket-{secrets.token_hex(4)}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/exchange"


def contents(address: str) -> dict[str, bytes]:
    """Every file of an exchange."""
    fs, root = fsspec.url_to_fs(address)
    fs.invalidate_cache()
    return {str(path): fs.cat_file(path) for path in fs.find(root)}


@pytest.fixture(scope="module")
def federated(
    request: pytest.FixtureRequest,
    s3: dict[str, str],
    mails: tuple[Path, list[str]],
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str, str]:
    """A round at ε = 4, begun in a process of its own, with two silos that do their part in this one.

    The folder of all three places, the exchange between them, and what the run said.
    """
    folder, exchange = tmp_path_factory.mktemp("federated"), a_bucket(request)
    recipe = places(folder, mails[0], tiny_model, exchange, 4.0, **FORMAL)
    run = start(
        "own", "run", str(recipe), "--run-dir", str(folder / "here" / "run"),
        output=folder / "said", env=s3 | server(),
    )  # fmt: skip
    awaited = {name: [at.RUN] for name in NAMES}
    try:
        while run.is_alive():
            for run_id in at.runs_at(exchange):
                for name, files in awaited.items():
                    if files and Exchange(exchange, run_id).has(*files):
                        awaited[name] = advance_flow(str(folder / name), run_id)
            run.join(0.2)
        said = (folder / "said").read_text()
        assert run.exitcode == 0, said
        assert not any(awaited.values())
    finally:
        run.kill()
    return folder, exchange, said


# ---- a run whose silos are elsewhere ------------------------------------------------------------------------------


def test_its_report_is_as_if_the_silos_were_here(federated: tuple[Path, str, str]) -> None:
    folder, exchange, said = federated
    run = open_run(folder / "here" / "run")
    report = layout.report(run, 1)
    assert [one.silo for one in report.silos] == list(NAMES)
    assert all(one.released > 0 for one in report.silos)
    assert report.decision.passed
    assert {lesson.silo for lesson in layout.all_lessons(run, 1)} == set(NAMES)
    assert [one.silo for one in report.certificates] == list(NAMES)
    assert all(3.9 < one.epsilon <= 4 for one in report.certificates)
    assert "waits for silo" in said
    assert not verify_run(run.dir.root).findings
    handed_out = Exchange(exchange, run.id)
    assert handed_out.get("release/round-1/report.json") == layout.public_report_path(run, 1).read_bytes()


def test_each_silo_keeps_its_own_log_and_ledger(federated: tuple[Path, str, str]) -> None:
    folder, _, _ = federated
    for name in NAMES:
        [root] = (folder / name / "runs").iterdir()
        assert not verify_run(root).findings
        [account] = accounts(folder / name / "ledgers")
        assert account["budget"] == 4
        assert 3.9 < account["spent"] <= 4
    assert not list((folder / "here").rglob("*.tags")), "there is no ledger where no record is"


def test_certificates_hold_without_the_silos_ledgers_and_with_them(federated: tuple[Path, str, str]) -> None:
    folder, _, _ = federated
    for row in recompute_run(open_run(folder / "here" / "run")):
        assert row["problems"] == []
        assert row["claimed"] == pytest.approx(row["recomputed"], rel=0.01)
    [root] = (folder / "north" / "runs").iterdir()
    assert [row["problems"] for row in recompute_run(open_run(root)) if row["silo"] == "north"] == [[]]


def test_nothing_private_leaves_a_silo(federated: tuple[Path, str, str], mails: tuple[Path, list[str]]) -> None:
    folder, exchange, _ = federated
    for name in NAMES:
        planted = secrets_of(mails, name)
        inside = b"".join(path.read_bytes() for path in files_below(folder / name / "runs"))
        assert sum(secret in inside for secret in planted) > 10, "they must be there for this to mean anything"
        others = [folder / other for other in NAMES if other != name]
        searched = contents(exchange) | {
            str(path): path.read_bytes()
            for place in (folder / "here", *others, PREFECT_HOME)
            for path in files_below(place)
        }
        searched["what it said"] = (folder / "said").read_bytes()
        for path, content in searched.items():
            assert not [secret for secret in planted if secret in content], path


def test_what_is_planted_is_sealed_on_its_way(federated: tuple[Path, str, str]) -> None:
    folder, exchange, _ = federated
    run = open_run(folder / "here" / "run")
    planted = [one for one in canaries.read_canaries(layout.evaluation_path(run, "canaries")) if one.member]
    there = b"".join(contents(exchange).values())
    for name in NAMES:
        [root] = (folder / name / "runs").iterdir()
        records = layout.records_path(open_run(root), name).read_text()
        mine = [one.secret for one in planted if one.silo == name]
        assert all(secret in records for secret in mine)
        assert not [secret for secret in mine if secret.encode() in there]
        others = [one.secret for one in planted if one.silo != name]
        assert not [secret for secret in others if secret in records]


@pytest.mark.slow
def test_a_silo_that_was_killed_goes_on_and_spends_nothing_twice(
    mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "exchange").mkdir()
    recipe = places(tmp_path, mails[0], tiny_model, str(tmp_path / "exchange"), 4.0, **FORMAL)
    run = start("own", "run", str(recipe), "--run-dir", str(tmp_path / "here" / "run"), output=tmp_path / "said")
    work = {name: start("own", "silo", "work", str(tmp_path / name), output=tmp_path / f"{name}.log") for name in NAMES}
    try:
        for line in printed(work["north"], tmp_path / "north.log"):
            if line.split() == ["round-1/teach-north", "..."]:
                while work["north"].is_alive() and not list((tmp_path / "north").rglob("written.jsonl")):
                    work["north"].join(0.002)
                work["north"].kill()
        work["north"].join()
        assert work["north"].exitcode == -signal.SIGKILL
        work["north"] = start("own", "silo", "work", str(tmp_path / "north"), output=tmp_path / "north-2.log")
        run.join(500)
        assert run.exitcode == 0, (tmp_path / "said").read_text() + (tmp_path / "north-2.log").read_text()
    finally:
        for process in (run, *work.values()):
            process.kill()
    assert "prepare-north                done before" in (tmp_path / "north-2.log").read_text()
    [account] = accounts(tmp_path / "north" / "ledgers")
    assert 3.9 < account["spent"] <= 4
    assert [row["problems"] for row in recompute_run(open_run(tmp_path / "here" / "run"))] == [[], []]


@pytest.mark.parametrize(
    "changes",
    [{"epsilon_asked": 9.0}, {"mechanism": "private_evolution"}, {"unit": "owner"}, {"lessons_digest": "0" * 64}],
)
def test_a_certificate_of_another_promise_is_not_taken(
    federated: tuple[Path, str, str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder, exchange, _ = federated
    run, silo = open_run(folder / "here" / "run"), Silo.open(folder / "north")
    there, stage = Exchange(exchange, run.id), "round-1/certify-north"
    name, statement = "release/round-1/certificates/north.json", f"from/north/{stage}.json"
    before = {path: there.get(path) or b"" for path in (f"from/north/{name}", statement)}
    taken = layout.certificate_path(run, 1, "north").read_bytes()
    try:
        forged = certificate.sign(layout.certificates(run, 1)[0].model_copy(update=changes), silo.key)
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(forged.model_dump_json())
        there.hand("north", silo.key, tmp_path, {"stage": stage, "files": {name: file_digest(path)}}, {"epsilon": 1.0})
        with pytest.raises(PrivacyError, match="another promise"):
            certify.__wrapped__(run, 1, "north")
    finally:
        for place, content in before.items():
            there.put(place, content)
        layout.certificate_path(run, 1, "north").write_bytes(taken)
    certify.__wrapped__(run, 1, "north")


# ---- what a silo agrees to ----------------------------------------------------------------------------------------


@pytest.fixture
def made(mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path) -> Path:
    """A formal recipe and two silos' folders, nothing run."""
    return places(tmp_path, mails[0], tiny_model, str(tmp_path / "exchange"), 4.0, **FORMAL)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {**PRIVATE, "epsilon": 4.5}}, "ε of 4.5"),
        ({"privacy": {"mechanism": "screened"}}, "promises no ε"),
        ({"privacy": {**PRIVATE, "label_counts": "public"}}, "label counts"),
        ({"privacy": {**PRIVATE, "unit": "owner"}}, "records.columns.owner"),
    ],
)
def test_a_recipe_that_asks_for_more_is_refused(made: Path, changes: dict[str, Any], said: str) -> None:
    recipe = {**yaml.safe_load(made.read_text()), **changes}
    if "teach" in recipe and changes["privacy"]["mechanism"] == "screened":
        recipe["teach"] = {"model": recipe["teach"]["model"]}
    silo = Silo.open(made.parent / "north")
    with pytest.raises(UserError, match=said):
        agreed(silo, parse_recipe(recipe))


def test_a_silo_runs_a_recipe_on_its_own_terms(made: Path, tiny_model: Path) -> None:
    silo = Silo.open(made.parent / "north")
    asked = load_recipe(made, ("privacy.epsilon=2", "privacy.budget=100", "screen.max_jaccard=1"))
    here = agreed(silo, asked)
    assert here.formal is not None
    assert (here.formal.epsilon, here.formal.budget, here.formal.ledgers) == (2, 4, made.parent / "north" / "ledgers")
    assert here.screen == silo.config.screen
    assert here.data.records == silo.config.records


def test_no_recipe_has_a_silo_send_its_records_to_a_server(made: Path) -> None:
    server = {"kind": "openai", "url": "https://models.example/v1", "trusted": True}
    evolution = {"mechanism": "private_evolution", "epsilon": 4.0, "brackets": []}
    teach = {"model": load_recipe(made).teach.model}

    def asked(engine: Any) -> Any:
        recipe = {**yaml.safe_load(made.read_text()), "privacy": evolution, "teach": {**teach, "engine": engine}}
        return parse_recipe(recipe)

    silo = Silo.open(made.parent / "north")
    with pytest.raises(UserError, match="ask a server"):
        agreed(silo, asked(server))
    assert agreed(silo, asked("vllm")).teach.engine.kind == "vllm"

    settings = made.parent / "north" / "silo.yaml"
    settings.write_text(settings.read_text() + "engine: {kind: openai, url: 'http://127.0.0.1:8000/v1'}\n")
    own = agreed(Silo.open(made.parent / "north"), asked(server)).teach.engine
    assert own.kind == "openai"
    assert own.url == "http://127.0.0.1:8000/v1"
    with pytest.raises(UserError, match="private_prediction needs transformers"):
        agreed(Silo.open(made.parent / "north"), load_recipe(made))


def test_of_several_teachers_none_may_be_a_server_and_a_silos_own_takes_the_place_of_all(made: Path) -> None:
    evolution = {"mechanism": "private_evolution", "epsilon": 4.0, "brackets": []}
    model = load_recipe(made).teach.model
    server = {"kind": "openai", "url": "https://models.example/v1", "trusted": True, "retries": 0}

    def asked(engine: Any, route: Any) -> Any:
        teachers = [{"name": "a", "model": model, "draft_price": 1}]
        teachers += [{"name": "b", "model": model, "draft_price": 2, "engine": engine}]
        recipe = {**yaml.safe_load(made.read_text()), "privacy": evolution}
        return parse_recipe({**recipe, "teach": {"teachers": teachers, "route": route}})

    cascade = {"by": "cascade", "budget": 5}
    silo = Silo.open(made.parent / "north")
    with pytest.raises(UserError, match="ask a server"):
        agreed(silo, asked(server, cascade))
    assert agreed(silo, asked("vllm", cascade)).teach == asked("vllm", cascade).teach
    with pytest.raises(UserError, match="every silo"):
        asked("vllm", {"by": "silo", "teachers": {"north": "a"}})

    settings = made.parent / "north" / "silo.yaml"
    settings.write_text(settings.read_text() + "engine: {kind: openai, url: 'http://127.0.0.1:8000/v1'}\n")
    own = agreed(Silo.open(made.parent / "north"), asked(server, cascade)).teach
    assert (own.teachers, own.route, own.model) == ((), None, model)
    assert own.staff[0].engine.kind == "openai"


def test_only_the_silo_itself_can_say_that_an_adapter_is_public(made: Path) -> None:
    adapter = made.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (adapter / "adapter_model.safetensors").touch()
    asked = load_recipe(made, (f"teach.adapter={adapter}", "teach.adapter_is_public=true"))
    with pytest.raises(UserError, match="no ε covers what that was tuned on"):
        agreed(Silo.open(made.parent / "north"), asked)
    settings = made.parent / "north" / "silo.yaml"
    settings.write_text(settings.read_text() + "adapter_is_public: true\n")
    assert agreed(Silo.open(made.parent / "north"), asked).teach.adapter == str(adapter)


def test_a_silo_whose_keys_a_recipe_does_not_know_refuses(made: Path) -> None:
    other = create(
        made.parent / "other", "north", str(made.parent / "exchange"), "0" * 64, made.parent / "north.jsonl", 4.0
    )
    with pytest.raises(UserError, match="public keys"):
        agreed(other, load_recipe(made))


def opened(recipe: Path, root: Path) -> Run:
    """A run that is open to its silos, with nothing planted."""
    run = create_run(load_recipe(recipe), root)
    sealed = dict.fromkeys(NAMES, hashlib.sha256(b"").hexdigest())
    facts = {"recipe": run.recipe.model_dump(mode="json"), "sealed": sealed}
    exchange_of(run).say(at.RUN, coordinator_key(root.parent), facts)
    return run


def test_a_refusal_reaches_the_run(made: Path, tmp_path: Path) -> None:
    run, settings = opened(made, tmp_path / "here" / "run"), tmp_path / "north" / "silo.yaml"
    settings.write_text(settings.read_text().replace("epsilon: 4", "epsilon: 1"))
    with pytest.raises(UserError, match="ε of 4, more than this silo's 1"):
        advance(Silo.open(tmp_path / "north"), run.id)
    assert not (tmp_path / "north" / "runs" / run.id / "vault").exists(), "nothing was read"
    with pytest.raises(UserError, match="silo north stopped: the recipe asks for an ε of 4"):
        _awaited(run, "north", "prepare")


def test_what_is_wrong_with_a_silos_records_stays_there(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened(made, tmp_path / "here" / "run")
    records = tmp_path / "north.jsonl"
    records.write_text(records.read_text() + '{"text": "zqsecret", "label": "neither"}\n')
    with pytest.raises(StageError) as caught:
        advance_flow(str(tmp_path / "north"), run.id)
    assert "row 81" in capsys.readouterr().err, "its own log says where"
    with pytest.raises(UserError, match="silo north stopped: the stage prepare-north stopped") as told:
        _awaited(run, "north", "prepare")
    there = b"".join(path.read_bytes() for path in [*files_below(tmp_path / "exchange"), *files_below(PREFECT_HOME)])
    for message in (str(caught.value), str(told.value), there.decode(errors="replace")):
        assert "row 81" not in message
        assert "zqsecret" not in message


def test_a_run_that_the_coordinator_did_not_sign_is_passed_over(made: Path, tmp_path: Path) -> None:
    run = opened(made, tmp_path / "elsewhere" / "run")  # under a key of its own
    silo, said = Silo.open(tmp_path / "north"), list[str]()
    with pytest.raises(PrivacyError, match="not signed"):
        advance(silo, run.id)
    assert not _asked(silo, run.id, said.append)
    assert "passed over" in said[0]
    assert not list((tmp_path / "exchange" / run.id).rglob("north*"))
    # Nor can one run's word be another's, or a later round's.
    ours = opened(made, tmp_path / "here" / "run")
    exchange = silo.exchange(ours.id)
    assert exchange.said(at.RUN, silo.config.coordinator)
    exchange.put(at.begin(1), exchange.get(at.RUN) or b"")
    with pytest.raises(PrivacyError, match="another run, silo or stage"):
        exchange.said(at.begin(1), silo.config.coordinator)


def test_what_was_not_sealed_by_the_coordinator_is_not_planted(made: Path, tmp_path: Path) -> None:
    run, silo = opened(made, tmp_path / "here" / "run"), Silo.open(tmp_path / "north")
    silo.exchange(run.id).put(at.sealed("north"), seal(b"", silo.sealing.public_hex, at.about_planted(run.id, "north")))
    with pytest.raises(PrivacyError, match="not what the coordinator sealed"):
        advance_flow(str(silo.home), run.id)


def test_a_defect_at_a_silo_is_told_without_its_message(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, silo = opened(made, tmp_path / "here" / "run"), Silo.open(tmp_path / "north")
    monkeypatch.setattr(part, "_steps", lambda *_: {}["zqsecret"])
    with pytest.raises(StageError) as caught:
        advance(silo, run.id)
    told = exchange_of(run).refused("north", {"north": silo.key.public_hex})
    assert "a defect, KeyError" in str(told)
    assert "zqsecret" not in f"{caught.value}{told}"


def test_a_silo_that_takes_too_long_is_named(made: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(made.read_text())
    recipe["federation"]["patience_s"] = 1
    with pytest.raises(UserError, match="silo south has not handed over round-1/vote-south within 1 s"):
        _awaited(create_run(parse_recipe(recipe), tmp_path / "run"), "south", "vote", 1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("measure.originals=true", "originals"),
        ("privacy.brackets=[0]", "brackets"),
        ("gate.rules=[{metric: overlap.longest_run_max, op: '<=', value: 12}]", "overlap"),
        ("federation.silos.north.signing=abc", "pattern"),
    ],
)
def test_recipes_that_cannot_be_kept_are_refused(made: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe(made, (override,))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("screen: {compare: false}", "word for word"),
        ("unit: owner", "twice|names no column"),
        ("epsilom: 3", "unknown key"),
    ],
)
def test_faulty_settings_are_named(made: Path, line: str, said: str) -> None:
    settings = made.parent / "north" / "silo.yaml"
    text = settings.read_text().replace("screen:", "# screen:") if line.startswith("screen") else settings.read_text()
    settings.write_text(f"{text}{line}\n")
    with pytest.raises(UserError, match=said) as caught:
        Silo.open(made.parent / "north")
    assert str(settings) in str(caught.value)


def test_a_silos_folder_is_made_once_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("silo", "init", str(tmp_path / "a"), "--name", "a", "--exchange", "x", "--records", "r.jsonl",
             "--coordinator", "0" * 64)  # fmt: skip
    assert call(monkeypatch, *asked, "--epsilon", "3") == 0
    printed_keys = capsys.readouterr().out
    assert call(monkeypatch, "silo", "keys", str(tmp_path / "a")) == 0
    assert capsys.readouterr().out == printed_keys
    silo = Silo.open(tmp_path / "a")
    assert yaml.safe_load(printed_keys) == {"a": {"signing": silo.key.public_hex, "sealing": silo.sealing.public_hex}}
    assert (tmp_path / "a" / "vault").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files_below(tmp_path / "a"))
    assert call(monkeypatch, *asked) == 2
    assert "there is a silo already" in capsys.readouterr().err
    assert Silo.open(tmp_path / "a").key.public_hex == silo.key.public_hex


def test_validate_and_plan_know_of_silos_elsewhere(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "validate", str(made)) == 0
    assert "80 records, 2 silos elsewhere, 20 for testing" in capsys.readouterr().out
    assert call(monkeypatch, "plan", str(made)) == 2
    assert "the silos are elsewhere" in capsys.readouterr().err


# ---- what passes the exchange --------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "s3"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Exchange:
    return Exchange(str(tmp_path / "exchange") if request.param == "disk" else a_bucket(request), "run-1")


def a_manifest(root: Path) -> dict[str, Any]:
    path = root / "release" / "round-1" / "silos" / "north.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("lessons\n")
    private = root / "vault" / "drafts.jsonl"
    files = {path.relative_to(root).as_posix(): file_digest(path), private.relative_to(root).as_posix(): "0" * 64}
    return {"stage": "round-1/screen-north", "files": files, "facts": {"released": 3, "secret": 1}}


def test_what_is_handed_over_is_taken_and_checked(exchange: Exchange, tmp_path: Path) -> None:
    key = SiloKey.create(tmp_path / "vault" / "key.pem")
    keys, manifest = {"north": key.public_hex}, a_manifest(tmp_path)
    stage, name = manifest["stage"], "release/round-1/silos/north.jsonl"
    assert at.runs_at(exchange.address) == []
    assert exchange.take("north", stage, keys) is None
    exchange.say(at.RUN, key, {"recipe": {}})
    assert at.runs_at(exchange.address) == ["run-1"]
    exchange.hand("north", key, tmp_path, manifest, {"released": 3})
    found = exchange.take("north", stage, keys)
    assert found is not None
    assert (found.facts, list(found.files)) == ({"released": 3}, [name]), "no more than was named, nothing of the vault"
    assert exchange.fetch(found, name, tmp_path / "there").read_text() == "lessons\n"

    with pytest.raises(PrivacyError, match="not signed"):
        exchange.take("north", stage, {"north": SiloKey.create(tmp_path / "vault" / "other.pem").public_hex})
    exchange.put(f"from/north/{name}", b"others\n")
    with pytest.raises(PrivacyError, match="not what it signed"):
        exchange.fetch(found, name, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(PrivacyError, match="missing"):
        exchange.fetch(found, "release/round-1/certificates/north.json", tmp_path / "there")
    # One stage's statement in the place of another's.
    exchange.put("from/north/round-2/screen-north.json", exchange.get("from/north/round-1/screen-north.json") or b"")
    with pytest.raises(PrivacyError, match="another run, silo or stage"):
        exchange.take("north", "round-2/screen-north", keys)


def test_a_refusal_is_signed_and_can_be_taken_back(exchange: Exchange, tmp_path: Path) -> None:
    key = SiloKey.create(tmp_path / "vault" / "key.pem")
    keys = {"north": key.public_hex}
    assert exchange.refused("north", keys) is None
    exchange.refuse("north", key, "too much", "ask for less")
    said = exchange.refused("north", keys)
    assert said is not None
    assert (str(said), said.remedy) == ("silo north stopped: too much", "ask for less")
    exchange.go_on("north", key)
    assert exchange.refused("north", keys) is None


def test_an_exchange_that_is_not_there_is_named_without_credentials(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be used"):
        Exchange(str(tmp_path / "file"), "run-1").put("x", b"")
    with pytest.raises(UserError, match="exchange") as caught:
        Exchange("nosuch://user:zqword@host/x", "run-1").get("x")
    assert "zqword" not in str(caught.value)


def test_a_run_that_is_not_open_yet_is_waited_for(made: Path) -> None:
    assert advance(Silo.open(made.parent / "north"), "small-00000000") == [at.RUN]


@pytest.mark.parametrize("run_id", ["../../etc", "a/b-00000000", ".", "", "small-00000000/..", "small-1"])
def test_a_runs_id_names_no_other_folder(made: Path, run_id: str) -> None:
    with pytest.raises(UserError, match="no run's id"):
        advance(Silo.open(made.parent / "north"), run_id)


def test_a_silo_at_work_in_another_process_is_no_refusal(made: Path, tmp_path: Path) -> None:
    run, silo = opened(made, tmp_path / "here" / "run"), Silo.open(tmp_path / "north")
    with RunDir(silo.folder(run.id)).locked(), pytest.raises(HeldError):
        advance(silo, run.id)
    assert exchange_of(run).refused("north", {"north": silo.key.public_hex}) is None


def test_nothing_is_handed_out_before_it_is_written_down(made: Path, tmp_path: Path) -> None:
    run = create_run(load_recipe(made), tmp_path / "here" / "run")
    files, facts = prepare.__wrapped__(run)
    assert not (tmp_path / "exchange").exists()
    assert {path.name for path in files} > {"north", "south", "canaries.jsonl"}
    assert "records" not in facts


def test_an_exchange_that_is_out_of_reach_for_a_while_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at, "SECONDS_BETWEEN_LOOKS", 0.01)
    looks = iter([UserError("gone", key="exchange"), None, UserError("gone", key="exchange"), "found"])

    def look() -> str | None:
        found = next(looks)
        if isinstance(found, UserError):
            raise found
        return found

    assert at.patiently(look, 60) == "found"

    def gone() -> str | None:
        raise UserError("gone", key="exchange")

    with pytest.raises(UserError, match="gone"):
        at.patiently(gone, 0.05)
    assert at.patiently(lambda: None, 0.05) is None
    with pytest.raises(UserError, match="other"):
        at.patiently(lambda: (_ for _ in ()).throw(UserError("other")), 60)


STATEMENT = Handed(
    run_id="r", silo="north", stage="round-1/vote-north", facts={"votes": {"a": 1}}, files={}, signature=""
)


@given(data=st.data())
def test_no_field_of_a_statement_can_be_changed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    key = SiloKey.create(tmp_path_factory.mktemp("key") / "vault" / "key.pem")
    signed = handed.sign(STATEMENT, key)
    expected = {"run_id": "r", "silo": "north", "stage": "round-1/vote-north"}
    keys = {"north": key.public_hex}
    assert handed.verify(signed, public_keys=keys, **expected).facts == STATEMENT.facts
    place = data.draw(st.integers(0, 8 * len(signed) - 1))
    flipped = bytearray(signed)
    flipped[place // 8] ^= 1 << place % 8
    try:
        found = handed.verify(bytes(flipped), public_keys=keys, **expected)
    except PrivacyError:
        return
    same = {"signature": ""}  # which may be spelt another way
    assert found.model_copy(update=same) == STATEMENT, "only how it is written may have changed"


def test_a_lessons_signature_is_no_statements(tmp_path: Path) -> None:
    key = SiloKey.create(tmp_path / "vault" / "key.pem")
    fields = {**STATEMENT.model_dump(), "signature": None}
    forged = {**fields, "signature": key.sign(canonical_json(fields).encode()).hex()}
    with pytest.raises(PrivacyError):
        handed.verify(json.dumps(forged).encode(), run_id="r", silo="north", stage="round-1/vote-north",
                      public_keys={"north": key.public_hex})  # fmt: skip


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(0, 10_000))
def test_only_the_key_it_was_sealed_to_opens_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, about: str, place: int
) -> None:
    folder = tmp_path_factory.mktemp("keys") / "vault"
    mine, other = SealingKey.create(folder / "mine.pem"), SealingKey.create(folder / "other.pem")
    sealed = seal(content, mine.public_hex, about)
    assert SealingKey.load(folder / "mine.pem").open(sealed, about) == content
    changed = bytearray(sealed)
    changed[place % len(changed)] ^= 1
    for key, data, what in ((other, sealed, about), (mine, sealed, about + "x"), (mine, bytes(changed), about)):
        with pytest.raises(PrivacyError):
            key.open(data, what)


def test_keys_of_one_kind_are_not_taken_for_the_other(tmp_path: Path) -> None:
    SiloKey.create(tmp_path / "vault" / "a.pem")
    SealingKey.create(tmp_path / "vault" / "b.pem")
    with pytest.raises(UserError, match="no X25519 key"):
        SealingKey.load(tmp_path / "vault" / "a.pem")
    with pytest.raises(UserError, match="no Ed25519 key"):
        SiloKey.load(tmp_path / "vault" / "b.pem")
    with pytest.raises(PrivacyError, match="pickled"):
        __import__("pickle").dumps(SealingKey.load(tmp_path / "vault" / "b.pem"))
    assert (tmp_path / "vault" / "b.pem").stat().st_mode & 0o777 == 0o600
