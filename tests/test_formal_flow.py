"""The real flow under a formal mechanism, small: real mails, a tiny model that decodes privately, real ledgers."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PREFECT_HOME
from drive import drive, printed, start
from small_run import call, files_below, nothing_escaped, recipe_for, write_recipe

from tutelage.configs.errors import UserError
from tutelage.configs.load import parse_recipe
from tutelage.configs.schema import Recipe
from tutelage.flows import attacks, layout, stages, trials
from tutelage.flows.approve import approval, decide, declined, waiting
from tutelage.flows.budget import accounts
from tutelage.flows.cli import REFUSED, WAITS
from tutelage.flows.report.figures import ceiling
from tutelage.flows.stage import create_run, open_run
from tutelage.flows.verify import verify_run
from tutelage.privacy import accounting, certificate
from tutelage.privacy.allocation import Allocation
from tutelage.privacy.ledger import BudgetError

PRIVATE = {"mechanism": "private_prediction", "epsilon": 4.0, "batch_units": 6, "instruction_units": 5}
EVOLVED = {"mechanism": "private_evolution", "epsilon": 4.0, "candidates_per_label": 5, "iterations": 2}


def formal_recipe(path: Path, model: Path, privacy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    recipe = recipe_for(path, model)
    recipe["teach"] = {"model": str(model), "prompts_per_label": 4, "max_new_tokens": 12, "batch_rows": 8}
    recipe["measure"]["originals"] = False
    recipe["screen"] |= {"min_words": 1}
    recipe["privacy"] = privacy
    recipe["gate"] = {"rules": [{"metric": "epsilon.claimed", "op": "<=", "value": 4}]}
    return {**recipe, **changes}


@pytest.fixture(scope="session")
def formal_run(
    mails: tuple[Path, list[str]], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """One round at ε = 4 with both brackets, killed in the midst of teaching, resumed by two workers, then approved.

    Its folder, and what it said.
    """
    folder = tmp_path_factory.mktemp("formal")
    made = formal_recipe(mails[0], tiny_model, PRIVATE)
    made["gate"]["approval"] = True
    recipe = write_recipe(folder, made)
    process = start("own", "run", str(recipe), "--run-dir", str(folder / "run"), output=folder / "said")
    for line in printed(process, folder / "said"):
        if line.split() == ["round-1/teach-silo-0", "..."]:
            while process.is_alive() and not list((folder / "run" / "vault").rglob("written.jsonl")):
                process.join(0.002)
            process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    code, said = drive("own", "resume", "--jobs", "2", str(folder / "run"), output=folder / "said-2")
    assert code == WAITS, said[-2000:]
    assert "round-1/publish_student" not in said
    code, _ = drive("own", "approve", str(folder / "run"), "--by", "Ann", "--reason", "It reads well.",
                    output=folder / "said-3")  # fmt: skip
    assert code == 0
    code, last = drive("own", "resume", str(folder / "run"), output=folder / "said-4")
    assert code == 0, last[-2000:]
    return folder / "run", said + last


@pytest.fixture
def copied(formal_run: tuple[Path, str], tmp_path: Path) -> Path:
    """The run and its ledgers, to be spoilt."""
    shutil.copytree(formal_run[0].parent, tmp_path / "runs")
    return tmp_path / "runs" / "run"


# ---- what a run promises ------------------------------------------------------------------------------------------


def test_every_lesson_is_the_mechanisms_and_certified(formal_run: tuple[Path, str]) -> None:
    root, said = formal_run
    run = open_run(root)
    lessons = layout.all_lessons(run, 1)
    assert {lesson.mechanism for lesson in lessons} == {"private_prediction"}
    report = layout.report(run, 1)
    assert {one.silo for one in report.certificates} == set(run.silos)
    for one in report.certificates:
        assert 3.99 < one.epsilon <= 4
        assert one.epsilon_ledger == one.epsilon
        assert one.delta == pytest.approx(1 / (one.units * math.log(one.units)))
        assert (one.unit, one.adjacency) == ("record", "replace-by-null")
        assert [spend.what for spend in one.spends] == ["label_counts", "teach", "vote"]
        taught = one.spends[1].parameters
        assert taught["clip spam"] == pytest.approx(taught["sensitivity"] * taught["divisor spam"])
    claimed = report.metric("epsilon.claimed")
    assert claimed is not None
    assert claimed.value == max(one.epsilon for one in report.certificates)
    assert "Guarantee: ε ≤ 4.00" in said


def test_the_brackets_stand_beside_it_and_only_zero_may_leave(formal_run: tuple[Path, str]) -> None:
    root, _ = formal_run
    run = open_run(root)
    report = layout.report(run, 1)
    found = {name: report.metric(f"accuracy.{name}") for name in ("epsilon_0", "student", "epsilon_inf")}
    assert all(metric is not None and metric.measured for metric in found.values())
    assert {name: metric.internal for name, metric in found.items() if metric} == {
        "epsilon_0": False, "student": False, "epsilon_inf": True,
    }  # fmt: skip
    unprotected = [json.loads(line)["prompt"] for silo in run.silos
                   for line in layout.drafts_path(run, 1, silo, "inf").read_text().splitlines()]  # fmt: skip
    released = b"".join(path.read_bytes() for path in files_below(root / "release"))
    long_ones = [text for text in unprotected if len(text) > 12]
    assert long_ones
    assert not [text for text in long_ones if json.dumps(text)[1:-1].encode() in released]


def test_an_approval_stands_in_the_log_and_on_the_card(copied: Path) -> None:
    run = open_run(copied)
    word = approval(run, 1)
    assert word
    assert (word.approved, word.by, word.reason) == (True, "Ann", "It reads well.")
    with pytest.raises(UserError, match="approved by Ann already"):
        decide(run, 1, approved=False, by="Bob", reason="I say no.")
    card = (layout.registry_path(run) / "small" / "v1" / "README.md").read_text()
    assert f"Approved by Ann, {word.at}:\n\n> It reads well." in card
    checked = verify_run(copied)
    assert checked.findings == []
    assert "round-1/approve" in checked.stages()
    assert "round-1/approve" in [name for name, _ in checked.stages()["round-1/publish_student"].materials]
    manifest = run.dir.manifest_path("round-1/approve")
    manifest.write_text(manifest.read_text().replace("Ann", "Eve"))
    assert approval(run, 1) is None  # a word that the log doesn't know is none


def test_what_a_person_declined_stays_in_the_vault(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(copied)
    run.dir.manifest_path("round-1/approve").unlink()
    assert waiting(run) == 1
    assert call(monkeypatch, "publish", str(copied)) == UserError.exit_code
    assert call(monkeypatch, "list", str(copied.parent)) == 0
    assert "waits for approval" in capsys.readouterr().out
    decide(run, 1, approved=False, by="Bob", reason="Half of it is about one offer.")
    assert waiting(run) is None
    assert declined(run) == [1]
    assert trials.publish_student.__wrapped__(run, 1) == ([], {"published": None})  # type: ignore[attr-defined]
    assert call(monkeypatch, "publish", str(copied)) == REFUSED
    assert "declined by Bob" in capsys.readouterr().err


def test_the_data_card_gives_the_guarantee(formal_run: tuple[Path, str]) -> None:
    run = open_run(formal_run[0])
    card = layout.data_card_path(run, 1).read_text()
    for one in layout.certificates(run, 1):
        assert f"| {one.silo} | {ceiling(one.epsilon)} | {ceiling(one.delta)} | record, {one.units} of them |" in card
    assert "differential-privacy" in card.partition("\n---\n")[0]


def test_what_is_released_holds_no_internal_figure(formal_run: tuple[Path, str]) -> None:
    root, _ = formal_run
    whole = layout.report(open_run(root), 1)
    internal = [metric.name for metric in whole.metrics if metric.internal]
    assert {"accuracy.epsilon_inf", "overlap.longest_run_max"} <= set(internal)
    public = json.loads(layout.public_report_path(open_run(root), 1).read_text())
    assert not {metric["name"] for metric in public["metrics"]} & set(internal)
    page = (root / "release" / "report.html").read_text()
    assert "ε = ∞ (never released)" not in page
    assert "teach-silo" not in page, "no seconds by stage: how long records took may tell of them"
    assert "ε = ∞ (never released)" in (root / "vault" / "report.html").read_text()


def test_prefect_keeps_no_internal_figure(formal_run: tuple[Path, str]) -> None:
    """Tasks are handed whole manifests, figures included: of these it may keep who came after whom."""
    metrics = [one for one in layout.report(open_run(formal_run[0]), 1).metrics if one.internal and one.measured]
    figures = {repr(figure) for one in metrics for figure in (one.value, one.ci_low, one.ci_high)}
    marks = {one.name for one in metrics} | {figure for figure in figures if len(figure) > 8}
    assert len(marks) > len(metrics) > 10
    kept = b"".join(path.read_bytes() for path in files_below(PREFECT_HOME))
    assert b"round-1/bracket_student-inf" in kept
    assert not [mark for mark in marks if mark.encode() in kept]


def test_no_planted_string_leaves_the_vault(formal_run: tuple[Path, str], mails: tuple[Path, list[str]]) -> None:
    nothing_escaped(formal_run[0], mails[1])


# ---- the budget ---------------------------------------------------------------------------------------------------


def test_the_budget_is_shown_by_silo_round_and_mechanism(
    formal_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = formal_run
    for place in (root, root.parent, root.parent / "ledgers"):
        assert call(monkeypatch, "budget", str(place), "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert [row["silos"] for row in sorted(shown, key=lambda row: row["silos"])] == [["silo-0"], ["silo-1"]]
    for row in shown:
        assert row["spent"] == pytest.approx(4, abs=0.01)
        assert row["left"] < 0.1
        assert [(one["what"], one["round"], one["parts"], one["parts_used"]) for one in row["spends"]] == [
            ("label_counts", 1, 1, 1), ("teach", 1, 5, 5), ("vote", 1, 1, 1),
        ]  # fmt: skip
        noted = {(note["what"], note.get("bracket")) for note in row["internal"]}
        assert {("teach", "inf"), ("overlap_audit", None)} <= noted
    assert call(monkeypatch, "budget", str(root)) == 0
    text = capsys.readouterr().out
    assert "private prediction" in text
    assert "never released" in text
    assert call(monkeypatch, "budget", str(root / "vault")) == 2
    assert "there are no ledgers here" in capsys.readouterr().err


def test_a_second_run_on_the_same_records_is_refused(
    copied: Path, mails: tuple[Path, list[str]], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run, another seed: other silos, other canaries, and units that have spent what they had."""
    recipe = parse_recipe(formal_recipe(mails[0], tiny_model, PRIVATE, seed=7))
    run = create_run(recipe, copied.parent / "other")
    stages.prepare(str(run.dir.root), after=[])
    with pytest.raises(BudgetError, match=r"spent \d.* of 4, 0.* is left"):
        stages.teach(str(run.dir.root), 1, "silo-0", after=[])
    assert not list((run.dir.root / "vault").rglob("written*.jsonl")), "nothing was generated"
    [charged] = [row for row in accounts(copied.parent) if any("in ledger" in one["what"] for one in row["spends"])]
    assert len(charged["spends"]) == 2, "charged with what both old silos had spent, and with nothing else"


@pytest.mark.slow
def test_workers_that_are_refused_say_so(
    copied: Path, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    """What one stage ends with is what is said, though others wait for it and others are at work."""
    recipe = write_recipe(tmp_path, formal_recipe(mails[0], tiny_model, PRIVATE, seed=7))
    other = str(copied.parent / "other")
    code, said = drive("own", "run", str(recipe), "--jobs", "2", "--run-dir", other, output=tmp_path / "said")
    assert code == 2, said[-2000:]
    assert "of 4, 0" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_an_interrupt_ends_workers_at_once(mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, formal_recipe(mails[0], tiny_model, PRIVATE))
    process = start(
        "own", "run", str(recipe), "--jobs", "2", "--run-dir", str(tmp_path / "run"), output=tmp_path / "said"
    )
    for line in printed(process, tmp_path / "said"):
        if line.split() == ["index-silo-1", "..."]:
            assert process.pid is not None
            below = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGINT)
            asked = time.monotonic()
    process.join(60)
    assert process.exitcode == 130
    assert time.monotonic() - asked < 20
    assert "interrupted" in (tmp_path / "said").read_text()
    assert not psutil.wait_procs(below, timeout=20)[1]


def test_the_run_was_killed_while_teaching_and_spent_nothing_twice(formal_run: tuple[Path, str]) -> None:
    """Its ledgers have exactly what one run costs: a second spending would have been refused."""
    root, said = formal_run
    assert "done before" in said
    taught = [open_run(root).facts(f"round-1/teach-silo-{i}") for i in range(2)]
    assert all(one["sampled"] + one["dropped"].get("lost_with_a_killed_process", 0) == 8 for one in taught)
    for row in accounts(root.parent):
        assert row["spent"] <= 4
        assert len([one for one in row["spends"] if one["what"] == "teach"]) == 1


# ---- recomputed ---------------------------------------------------------------------------------------------------


def test_recomputed_and_claimed_agree(
    formal_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "audit", "recompute", str(formal_run[0]), "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    for row in rows:
        assert row["problems"] == []
        assert row["recomputed"] == pytest.approx(row["claimed"], rel=0.01)
        assert row["recomputed"] != row["claimed"], "another accountant's"


def ledger_of(run: Path, silo: str) -> Path:
    certificate = json.loads((run / "release" / "round-1" / "certificates" / f"{silo}.json").read_text())
    return run.parent / "ledgers" / f"{certificate['ledger']}.jsonl"


@pytest.mark.parametrize("what", ["epsilon", "delta", "spends", "signature", "gone", "swapped", "lessons"])
def test_an_edited_certificate_fails(
    copied: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "release" / "round-1" / "certificates" / "silo-0.json"
    written = json.loads(path.read_text())
    match what:
        case "epsilon" | "delta":
            written[what] /= 2
        case "spends":
            written["spends"].pop()
        case "signature":
            written["signature"] = "00" * 64
        case "swapped":
            written = json.loads(path.with_name("silo-1.json").read_text())
    path.write_text(json.dumps(written))
    if what == "gone":
        path.unlink()
    if what == "lessons":
        lessons = copied / "release" / "round-1" / "silos" / "silo-0.jsonl"
        lessons.write_bytes(lessons.read_bytes()[:-2])
    assert call(monkeypatch, "audit", "recompute", str(copied)) == 4
    said = capsys.readouterr().out
    assert "silo-0" in said
    assert "FAILED" in said
    assert said.count("holds") >= 1, "the other silo's is whole"


@pytest.mark.parametrize("what", ["edited", "shortened", "gone", "rewritten"])
def test_an_edited_ledger_fails(
    copied: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ledger_of(copied, "silo-0")
    match what:
        case "edited":
            path.write_text(path.read_text().replace('"rho":0.', '"rho":0.0', 1))
        case "shortened":
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
        case "gone":
            path.unlink()
            path.with_name(f"{path.name}.next").unlink()
        case "rewritten":  # a whole new chain, with less spent
            _rewrite(path)
    assert call(monkeypatch, "audit", "recompute", str(copied)) == 4
    assert "FAILED" in capsys.readouterr().out


def _rewrite(path: Path) -> None:
    import hashlib

    from tutelage.configs.store import canonical_json

    previous, lines = "0" * 64, []
    for line in path.read_text().splitlines():
        row = json.loads(line) | {"previous": previous}
        if row["kind"] == "reserve":
            row["event"] = {"event": "zcdp", "rho": row["event"]["rho"] / 4}
        lines.append(canonical_json(row).encode() + b"\n")
        previous = hashlib.sha256(lines[-1]).hexdigest()
    path.write_bytes(b"".join(lines))
    path.with_name(f"{path.name}.next").write_bytes(lines[-1])


def test_a_screened_run_claims_nothing(
    tmp_path: Path, mails: tuple[Path, list[str]], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(parse_recipe(recipe_for(mails[0], tiny_model)), tmp_path / "run")
    assert call(monkeypatch, "audit", "recompute", str(tmp_path / "run")) == 2
    assert call(monkeypatch, "budget", str(tmp_path / "run")) == 2


# ---- other mechanisms and units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_private_evolution_by_owner(task: str, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path) -> None:
    """Stage by stage: one owner, one vote; two rounds cost the budget together."""
    data = formal_recipe(mails[0], tiny_model, EVOLVED | {"unit": "owner", "brackets": [0.0]}, rounds=2)
    columns = {"owner": "sender"} | ({"prompt": "text", "completion": "label"} if task == "generation" else {})
    data["data"]["records"]["columns"] = columns
    data["aggregate"]["method"] = "random"
    data["teach"]["prompts_per_label"] = 3
    if task == "generation":
        data["task"] = {"kind": "generation", "description": "Sort mail."}
    run = create_run(parse_recipe(data), tmp_path / "run")
    root = str(run.dir.root)
    stages.prepare(root, after=[])
    owners = [set(layout.owners(run, silo).values()) for silo in run.silos]
    assert not owners[0] & owners[1], "all of an owner's records are in one silo"
    stages.index(root, "silo-0", after=[])
    stages.teach(root, 1, "silo-0", after=[])
    stages.screen(root, 1, "silo-0", after=[])
    stages.certify(root, 1, "silo-0", after=[])
    written = json.loads(layout.certificate_path(run, 1, "silo-0").read_text())
    assert (written["unit"], written["units"]) == ("owner", len(owners[0]))
    assert 1 < written["epsilon"] < 4, "half of it is the second round's"
    what = [spend["what"] for spend in written["spends"]]
    assert what == ["teach"] * 2, "evolution asks for no label counts"
    found = trials._silo_counts(run, 1, "silo-0", len(layout.records(run, "silo-0")), certificate.load(
        layout.certificate_path(run, 1, "silo-0"), layout.public_keys(run)))  # fmt: skip
    assert found.records == len(owners[0]) < len(layout.records(run, "silo-0")), "how many records they have is theirs"
    stages.teach_bracket(root, 1, "silo-0", "0", after=[])
    assert layout.drafts_path(run, 1, "silo-0", "0").exists()


def test_what_nothing_asks_for_is_not_computed(mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path) -> None:
    """Records are embedded where meanings are compared, and an instruction is attacked where a teacher wrote in it."""
    data = formal_recipe(mails[0], tiny_model, {**PRIVATE, "instruction_units": 0})
    assert parse_recipe(data).embeds_records, "lessons are voted on"
    data["aggregate"]["method"] = "random"
    rule = {"metric": "overlap.cosine_max", "op": "<=", "value": 0.9}
    assert parse_recipe({**data, "gate": {"rules": [rule]}}).embeds_records
    assert parse_recipe({**data, "privacy": EVOLVED}).embeds_records
    run = create_run(parse_recipe(data), tmp_path / "run")
    root = str(run.dir.root)
    stages.prepare(root, after=[])
    for silo in run.silos:
        stages.index(root, silo, after=[])
        stages.teach(root, 1, silo, after=[])
        stages.screen(root, 1, silo, after=[])
    for silo in run.silos:
        stages.vote(root, 1, silo, after=[])
    stages.aggregate(root, 1, after=[])
    assert not layout.embeddings_path(run, "silo-0").exists()
    figures = stages.audit_silo(root, 1, "silo-0", after=[]).facts["overlap"]
    assert figures["n"] > 0
    assert "cosine_max" not in figures
    assert attacks.attack(root, 1, "instruction", after=[]).facts == {"metrics": [], "roc": []}


# ---- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"mechanism": "private_prediction"}, "privacy.epsilon"),
        ({"mechanism": "private_prediction", "epsilon": -1}, "privacy.epsilon"),
        ({"mechanism": "private_prediction", "epsilon": math.inf}, "privacy.epsilon"),
        ({"mechanism": "private_prediction", "epsilon": True}, "privacy.epsilon"),
        ({"epsilon": 4}, "needs the key 'mechanism'"),
        ({"mechanism": "magic", "epsilon": 4}, "magic"),
        ({"mechanism": "private_prediction", "epsilon": 4, "unit": "owner"}, "names no column"),
        ({"mechanism": "private_prediction", "epsilon": 4, "brackets": [4.0]}, "must differ"),
        ({"mechanism": "private_evolution", "epsilon": 4, "candidates_per_label": 2}, "candidates_per_label"),
        ({"mechanism": "private_evolution", "epsilon": 4, "candidates": 2}, "candidates_per_label"),
    ],
)
def test_recipes_that_promise_nothing_clear_are_refused(
    privacy: dict[str, Any], said: str, mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(formal_recipe(mails[0], tiny_model, privacy), tmp_path / "recipe.yaml")
    assert said in f"{caught.value} {caught.value.remedy}"


def recipe_of(mails: tuple[Path, list[str]], model: Path, **privacy: Any) -> Recipe:
    return parse_recipe(formal_recipe(mails[0], model, PRIVATE | privacy))


def test_keys_of_screened_teachers_are_refused(mails: tuple[Path, list[str]], tiny_model: Path) -> None:
    data = formal_recipe(mails[0], tiny_model, PRIVATE)
    data["teach"]["keep_per_prompt"] = 3
    with pytest.raises(UserError, match=r"teach.keep_per_prompt is of use to screened teachers only"):
        parse_recipe(data)
    del data["teach"]["keep_per_prompt"]
    data["screen"] = {"compare": False}
    with pytest.raises(UserError, match=r"screen.compare is of use to screened teachers only"):
        parse_recipe(data)


def test_a_delta_that_gives_records_away_is_refused(mails: tuple[Path, list[str]], tiny_model: Path) -> None:
    assert Allocation.of(recipe_of(mails, tiny_model, delta=1e-6), 1000).delta == 1e-6
    with pytest.raises(UserError, match="more than 1/") as caught:
        Allocation.of(recipe_of(mails, tiny_model, delta=0.01), 1000)
    assert caught.value.key == "privacy.delta"


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("method", ["random", "vote"])
def test_shares_add_up_to_the_budget_and_no_further(
    rounds: int, method: str, mails: tuple[Path, list[str]], tiny_model: Path
) -> None:
    import dp_accounting as dp

    for asked in (0.1, 1.0, 4.0, 10.0):
        data = formal_recipe(mails[0], tiny_model, PRIVATE | {"epsilon": asked, "brackets": []}, rounds=rounds)
        data["aggregate"]["method"] = method
        made = Allocation.of(parse_recipe(data), 500)
        events = [dp.ZCDpEvent(made.label_counts)]
        for _ in range(rounds):
            events += [dp.ZCDpEvent(made.teach), dp.ZCDpEvent(made.vote)]
        assert 0.999 * asked < accounting.epsilon(events, made.delta) <= asked
        assert (made.vote > 0) == (method == "vote")


def test_the_ends_of_the_scale(mails: tuple[Path, list[str]], tiny_model: Path) -> None:
    recipe = recipe_of(mails, tiny_model)
    assert (Allocation.of(recipe, 500, 0.0).teach, Allocation.of(recipe, 500, 0.0).label_counts) == (0, 0)
    assert Allocation.of(recipe, 500, math.inf).teach == math.inf
