"""The real flow end to end, small: real mails, Prefect's embedded server, a tiny student, test doubles as teachers.

What the doubles stand in for is only the language model of the teacher: with it, an honest and a copying teacher can
be told apart. One slow test runs the same flow with the real model.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from conftest import PREFECT_HOME
from doubles import HonestTeacher
from drive import drive
from small_run import call, files_below, nothing_escaped, recipe_for, write_recipe
from tampering import findings, flips, found, log_lines, named, payload

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.load import parse_recipe
from tutelage.configs.schema import DpoConfig
from tutelage.configs.store import canonical_json
from tutelage.flows import layout, stages, teaching, trials
from tutelage.flows.stage import create_run, open_run
from tutelage.flows.verify import verify_run
from tutelage.privacy import review
from tutelage.privacy.custody import LOG
from tutelage.privacy.release import LessonSet
from tutelage.students import publish


@pytest.fixture(scope="session")
def honest_run(
    mails: tuple[Path, list[str]], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str]:
    """Two rounds with an honest teacher: run folder, exit code, everything printed."""
    folder = tmp_path_factory.mktemp("honest")
    recipe = write_recipe(folder, recipe_for(mails[0], tiny_model, rounds=2))
    return folder / "run", *drive(
        "honest", "run", str(recipe), "--run-dir", str(folder / "run"), output=folder / "said"
    )


def test_an_honest_teacher_passes_and_its_student_is_published(honest_run: tuple[Path, int, str]) -> None:
    root, code, printed = honest_run
    assert code == 0, printed[-2000:]
    run = open_run(root)
    for number in (1, 2):
        report = layout.report(run, number)
        assert report.decision.passed
        assert sum(report.lessons_per_class.values()) == 12
        names = {metric.name for metric in report.metrics if metric.measured}
        for needed in ("accuracy.zero_shot", "accuracy.few_shot", "accuracy.instruction", "accuracy.student",
                       "accuracy.originals", "accuracy.tfidf", "forgetting.increase", "overlap.cosine_max",
                       "canary.exposure_mean", "lessons.canary_verbatim"):  # fmt: skip
            assert needed in names
    # the first round's mistakes on released lessons set the second round's topics
    assert sum(layout.report(run, 1).topics_next.values()) == pytest.approx(1)
    assert (root.parent / "registry" / "small" / "v2" / "adapter_model.safetensors").is_file()
    assert (root / "release" / "report.html").stat().st_size > 10_000


def test_no_planted_string_leaves_the_vault(honest_run: tuple[Path, int, str], mails: tuple[Path, list[str]]) -> None:
    root, _, said = honest_run
    nothing_escaped(root, mails[1])
    assert not [i for i, secret in enumerate(mails[1]) if secret in said]
    assert (root / "vault").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_the_real_model_teaches_learns_and_leaks_no_planted_string(
    mails: tuple[Path, list[str]], smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach = {"prompts_per_label": 2, "drafts_per_prompt": 8, "keep_per_prompt": 4, "max_new_tokens": 40}
    recipe = write_recipe(tmp_path, recipe_for(mails[0], smollm, teach=teach, student={"epochs": 1, "rank": 8}))
    # so small a student may pass or be refused; either way it was taught, measured and attacked
    assert call(monkeypatch, "run", str(recipe), "--run-dir", str(tmp_path / "run")) in (0, 3)
    report = layout.report(open_run(tmp_path / "run"), 1)
    assert sum(report.lessons_per_class.values()) >= 4
    assert sum(silo.drafts for silo in report.silos) >= 64
    measured = {metric.name for metric in report.metrics if metric.measured}
    assert {"accuracy.student", "accuracy.originals", "canary.exposure_mean", "overlap.cosine_max"} <= measured
    nothing_escaped(tmp_path / "run", mails[1])


def test_an_error_that_quotes_a_record_stays_in_the_vault(
    mails: tuple[Path, list[str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    class Clumsy(HonestTeacher):
        def write(self, prompt: str, draw: random.Random, j: int) -> str:
            raise ValueError(prompt)

    monkeypatch.setattr(teaching, "teacher_engine", lambda *_: Clumsy())
    recipe = write_recipe(tmp_path, recipe_for(mails[0], tiny_model))
    assert call(monkeypatch, "run", str(recipe), "--run-dir", str(tmp_path / "run")) == 1
    shown = "".join(capfd.readouterr())
    assert "ValueError" in shown
    assert "A collection of different examples" not in shown
    for path in [*files_below(PREFECT_HOME), *files_below(tmp_path / "run" / "stages")]:
        assert b"A collection of different examples" not in path.read_bytes()
    assert list((tmp_path / "run" / "vault" / "errors").glob("*.log"))


def test_a_finished_run_is_not_redone(
    honest_run: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _, _ = honest_run
    monkeypatch.setattr(teaching, "teacher_engine", lambda *_: pytest.fail("a finished stage was run again"))
    before = {path: path.stat().st_mtime_ns for path in files_below(root) if path.suffix in (".json", ".jsonl")}
    assert call(monkeypatch, "resume", str(root)) == 0
    assert capsys.readouterr().err.count("done before") == len(files_below(root / "stages"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_file_is_noticed_and_made_again(
    honest_run: tuple[Path, int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "teacher_engine", lambda *_: HonestTeacher())

    root = tmp_path / "run"
    shutil.copytree(honest_run[0], root)
    lessons = root / "release" / "round-1" / "lessons.jsonl"
    good = lessons.read_bytes()
    lessons.write_bytes(good.replace(b'"round":1', b'"round":2', 1))
    run = open_run(root)
    keys = json.loads((root / "release" / "public_keys.json").read_text())
    with pytest.raises(Exception, match="signature"):
        LessonSet.load(lessons, run.id, keys)
    assert call(monkeypatch, "resume", str(root)) == 0
    assert lessons.read_bytes() == good


def test_two_processes_do_not_share_a_run_folder(
    honest_run: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(honest_run[0])
    with run.dir.locked():
        assert call(monkeypatch, "resume", str(honest_run[0])) == 2
    assert "another process holds this run folder" in capsys.readouterr().err


def test_another_recipe_does_not_overwrite_a_run(
    honest_run: tuple[Path, int, str], mails: tuple[Path, list[str]], tiny_model: Path
) -> None:
    other = parse_recipe(recipe_for(mails[0], tiny_model, seed=9))
    with pytest.raises(UserError, match="another recipe"):
        create_run(other, honest_run[0])


def test_list_and_report_read_the_run(
    honest_run: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", str(honest_run[0].parent), "--json") == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["state"] == "passed"
    assert row["rounds"] == "2/2"
    assert call(monkeypatch, "report", str(honest_run[0]), "--json") == 0
    reports = json.loads(capsys.readouterr().out)["reports"]
    assert [one["round"] for one in reports] == [1, 2]
    assert call(monkeypatch, "report", str(honest_run[0])) == 0
    assert "report.html" in capsys.readouterr().out


def test_a_published_student_answers(
    honest_run: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(honest_run[0])
    assert call(monkeypatch, "ask", root, "Win a prize now", "Shall we meet on Friday?") == 0
    answers = capsys.readouterr().out.split()
    assert len(answers) == 2
    assert set(answers) <= {"spam", "ham"}
    monkeypatch.setattr("sys.stdin", StringIO("\nWin a prize now\n\n"))
    assert call(monkeypatch, "ask", root) == 0
    assert capsys.readouterr().out.split() == answers[:1]
    monkeypatch.setattr("sys.stdin", StringIO(""))
    assert call(monkeypatch, "ask", root) == 2
    assert "nothing was asked" in capsys.readouterr().err
    assert call(monkeypatch, "ask", root, "x", "--round", "9") == 2


def test_a_rounds_folder_opens_with_datasets(honest_run: tuple[Path, int, str], tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = honest_run[0] / "release" / "round-1"
    lessons = load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert lessons["id"] == [row["id"] for row in map(json.loads, (folder / "lessons.jsonl").open())]
    assert set(lessons["completion"]) == {"spam", "ham"}
    released = load_dataset(str(folder), "released", split="train", cache_dir=str(tmp_path))
    assert set(released["id"]) >= set(lessons["id"])
    assert set(released["kind"]) == {"example", "instruction"}
    card = (folder / "README.md").read_text()
    report = layout.report(open_run(honest_run[0]), 1)
    assert "passed its gate" in card
    assert report.protection in card
    for silo in report.silos:
        assert silo.silo in card


def test_the_next_round_learns_what_reviewers_left(honest_run: tuple[Path, int, str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(honest_run[0], root)
    run = open_run(root)
    spam = [lesson for lesson in layout.lessons(run, 2) if lesson.completion == "spam"]
    edited, other, rejected = spam[0], spam[1], spam[-1]
    by = {"by": "ann", "at": "2026-01-01T00:00:00+00:00"}
    text = "Reviewed: write to ann@example.org about the offer."
    for one in (
        review.Decision(lesson=rejected.id, verdict="reject", **by),
        review.Decision(lesson=edited.id, verdict="edit", prompt=text, completion="spam", **by),
        review.Decision(lesson=other.id, verdict="accept", **by),
        review.Decision(lesson="of-no-run", verdict="reject", **by),
    ):
        review.append(layout.review_path(run), one)
    checked = verify_run(root)
    assert checked.findings == []
    assert [note for note in checked.notes if "review.jsonl" in note]
    files, facts = stages.aggregate.__wrapped__(run, 2)  # type: ignore[attr-defined]
    assert facts["reviewed"] == {"reject": 2, "edit": 1, "accept": 1}
    assert layout.heeded_path(run, 2) in files
    chosen = {lesson.id: lesson for lesson in layout.lessons(run, 2)}  # every signature is verified
    assert rejected.id not in chosen
    assert other.id in chosen
    assert chosen[edited.id].silo == review.SILO
    assert chosen[edited.id].prompt == text.replace("ann@example.org", "<EMAIL_ADDRESS>")
    assert edited in layout.all_lessons(run, 2).lessons  # what the silo signed stays
    forged = layout.lessons_path(run, 2)
    forged.write_text(forged.read_text().replace("Reviewed:", "Replaced:"))
    with pytest.raises(PrivacyError, match="signature"):
        layout.lessons(run, 2)


def test_a_round_is_trained_on_what_reviewers_preferred(honest_run: tuple[Path, int, str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(honest_run[0], root)
    student = open_run(root).recipe.student.model_copy(update={"epochs": 1, "dpo": DpoConfig(learning_rate=1e-4)})
    run = replace(open_run(root), recipe=open_run(root).recipe.model_copy(update={"student": student}))
    aggregate, learn, audit, judge = (
        one.__wrapped__  # type: ignore[attr-defined]
        for one in (stages.aggregate, trials.learn, stages.audit_silo, trials.judge_round)
    )
    aggregate(run, 2)
    _, unreviewed = learn(run, 2)
    assert unreviewed["preference_pairs"] == 0, "nobody decided anything: no pass, and no error"
    chosen = {lesson.id for lesson in layout.lessons(run, 2)}
    spare = [lesson for lesson in layout.all_lessons(run, 2) if lesson.kind == "example" and lesson.id not in chosen]
    for one in spare[:2]:
        other = {"spam": "ham", "ham": "spam"}[one.completion]
        edit = {"verdict": "edit", "prompt": one.prompt, "completion": other}
        review.append(
            layout.review_path(run), review.Decision(lesson=one.id, by="ann", at="2026-01-01T00:00:00+00:00", **edit)
        )
    files, _ = aggregate(run, 2)
    assert {path.name for path in files} >= {"chosen.jsonl", "rejected.jsonl"}
    _, facts = learn(run, 2)
    assert facts["preference_pairs"] == 2
    assert facts["adapter_digest"] != unreviewed["adapter_digest"]
    audited = audit(run, 2, run.silos[0])[1]["overlap"]["n"]
    assert audited == len(layout.all_lessons(run, 2)) + 2, "edits of pairs are audited, each once"
    path = run.dir.manifest_path("round-2/learn")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "facts": facts}))
    judge(run, 2)
    assert layout.report(run, 2).preference_pairs == 2
    assert "(2 in all): lessons in `chosen.jsonl`" in layout.data_card_path(run, 2).read_text()
    forged = layout.preferences_paths(run, 2)[0]
    forged.write_text(forged.read_text().replace(review.SILO, "silo-0"))
    with pytest.raises(PrivacyError, match="signature"):
        learn(run, 2)


# ---- its chain of custody -----------------------------------------------------------------------------------------


def test_two_hundred_bits_of_a_real_run(honest_run: tuple[Path, int, str]) -> None:
    """Half of the places by file, half by byte: else the largest file would have nearly all."""
    root, _, _ = honest_run
    checked = verify_run(root)
    assert (checked.findings, checked.notes) == ([], [])
    draw = random.Random()
    files = [path for path in files_below(root) if path.stat().st_size]
    assert {"vault", "release", "stages", "run.json", LOG} <= {path.relative_to(root).parts[0] for path in files}
    by_file = [draw.choice(files) for _ in range(100)]
    by_byte = draw.choices(files, [path.stat().st_size for path in files], k=100)
    places = [(path, draw.randrange(path.stat().st_size)) for path in [*by_file, *by_byte]]
    missed = [
        (name, places[i]) for i, (name, checked) in enumerate(flips(root, places, draw)) if not named(name, checked)
    ]
    assert missed == []
    assert findings(root) == []


def test_a_real_run_keeps_its_log_and_its_texts(
    honest_run: tuple[Path, int, str], mails: tuple[Path, list[str]]
) -> None:
    texts = b"".join(canonical_json(payload(line)).encode() for line in log_lines(honest_run[0]))
    assert not [secret for secret in mails[1] if secret.encode() in texts]
    searched = [path.read_bytes() for path in files_below(PREFECT_HOME)]
    assert not [secret for secret in mails[1] if any(secret.encode() in data for data in searched)]


def test_what_was_published_is_what_was_judged(honest_run: tuple[Path, int, str], tmp_path: Path) -> None:
    shutil.copytree(honest_run[0].parent, tmp_path / "runs")
    root = tmp_path / "runs" / "run"
    version = tmp_path / "runs" / "registry" / "small" / "v2"
    assert findings(root) == []
    for path in [*files_below(version), version.parent / "index.json"]:
        good = path.read_bytes()
        path.write_bytes(good[:-2] + b"~" + good[-1:])
        assert {kind for kind, _ in found(root)} == {"registry"}, path.name
        path.write_bytes(good)
    assert findings(root) == []
    # the same student, published by hand
    shutil.copytree(version, version.with_name("v3"))
    publish._write_index(version.parent)
    assert findings(root) == []
    weights = version.with_name("v3") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"~")
    publish._write_index(version.parent)
    assert found(root) == {("registry", "registry/small/v3")}
    shutil.rmtree(weights.parent)
    shutil.rmtree(version)
    publish._write_index(version.parent)
    assert found(root) == {("registry", "registry/small/v2")}
    shutil.rmtree(version.parent.parent)
    assert findings(root) == []
    assert "not checked: the student that round-1/publish_student published" in verify_run(root).notes[0]


def test_only_an_unchanged_run_goes_elsewhere(
    honest_run: tuple[Path, int, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(honest_run[0].parent, tmp_path / "runs")
    root, models = tmp_path / "runs" / "run", tmp_path / "models"
    assert call(monkeypatch, "publish", str(root), "--to", str(models)) == 0
    assert capsys.readouterr().out.split() == [
        str(root.parent / "registry" / "small" / "v2"),
        str(models / "small" / "v1"),
    ]
    sent = {path.name: path.read_bytes() for path in files_below(models / "small" / "v1")}
    assert {
        path.name: path.read_bytes() for path in files_below(root.parent / "registry" / "small" / "v2")
    }.items() <= sent.items()
    assert sent["report.html"] == (root / "release" / "report.html").read_bytes()
    assert call(monkeypatch, "publish", str(root), "--round", "1", "--to", str(models)) == 0
    assert (models / "small" / "latest").readlink() == Path("v2")
    assert call(monkeypatch, "publish", str(root), "--to", str(models), "--latest", "v1") == 0
    assert (models / "small" / "latest").readlink() == Path("v1")
    assert call(monkeypatch, "publish", str(root), "--latest", "v1") == UserError.exit_code
    report = root / "release" / "round-2" / "report.json"
    report.write_bytes(report.read_bytes().replace(b"1", b"2", 1))
    before = (models / "small" / "index.json").read_bytes()
    capsys.readouterr()
    assert call(monkeypatch, "publish", str(root), "--to", str(models)) == PrivacyError.exit_code
    assert "release/round-2/report.json" in capsys.readouterr().err
    assert (models / "small" / "index.json").read_bytes() == before


def test_showing_a_report_changes_nothing(honest_run: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, _, _ = honest_run
    before = (root / LOG).read_bytes()
    assert call(monkeypatch, "report", str(root)) == 0
    assert (root / LOG).read_bytes() == before
    assert findings(root) == []
