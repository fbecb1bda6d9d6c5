"""The command line with bad input: exit code 2, the place and the remedy, no traceback, nothing half-written.

Every text of the data holds `SECRET`, and no error may show it.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.load import load_recipe, parse_recipe
from tutelage.flows import cli
from tutelage.flows.cli import main

SECRET = "zq7Secret"
WORDS = ("train", "leaves", "nine", "ticket", "coffee", "music", "garden", "paper", "window", "sold", "out", "late")
HOLD = """
import sys, time
from pathlib import Path
from tutelage.configs.store import RunDir
with RunDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""
HEAVY = {
    "torch",
    "transformers",
    "prefect",
    "datasets",
    "peft",
    "spacy",
    "sklearn",
    "matplotlib",
    "numpy",
    "pydantic",
}


@dataclass(frozen=True)
class Shown:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Shown]:
    """The command line in this process."""

    def run(*arguments: object) -> Shown:
        monkeypatch.setattr(sys, "argv", ["tutelage", *map(str, arguments)])
        capfd.readouterr()
        code: int | str | None = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        shown = capfd.readouterr()
        assert code is None or isinstance(code, int)
        return Shown(code or 0, shown.out, shown.err)

    return run


def good_rows(count: int = 80) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {
            "id": f"r{i}",
            "text": f"{SECRET}{i} " + " ".join(draw.choices(WORDS, k=12)),
            "label": ("good", "bad")[i % 2],
        }
        for i in range(count)
    ]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def recipe_for(path: str, **changes: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "name": "small",
        "task": {"kind": "classification", "description": "Sort.", "labels": {"good": "one", "bad": "other"}},
        "data": {
            "records": {"source": "files", "path": path, "columns": {"id": "id"}},
            "silos": 2,
            "test_records": 20,
            "nonmember_records": 10,
        },
        "gate": {"rules": [{"metric": "accuracy.student", "op": ">=", "value": 0.5}]},
    }
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
    return recipe


def place(folder: Path, name: str = "data.jsonl", content: bytes | None = None, **changes: Any) -> Path:
    """Write data (None: leave it out) and a recipe that names it."""
    if content is not None:
        (folder / name).write_bytes(content)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_for(name, **changes)))
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_refused(shown: Shown, *said: str) -> None:
    assert shown.code == 2, shown
    for words in said:
        assert words in shown.err, shown.err
    assert "\n  try: " in shown.err
    assert "Traceback" not in shown.err
    assert SECRET not in shown.out + shown.err


def row(at: int, **change: Any) -> bytes:
    """Good rows but for one, counted from 1."""
    rows = good_rows()
    rows[at - 1] = {key: value for key, value in (rows[at - 1] | change).items() if value is not ...}
    return jsonl(rows)


def lines(at: int, line: bytes) -> bytes:
    good = jsonl(good_rows()).splitlines(keepends=True)
    good[at - 1] = line
    return b"".join(good)


def as_csv(header: str) -> bytes:
    return (header + "\n" + "".join(f'{r["id"]},"{r["text"]}",{r["label"]}\n' for r in good_rows())).encode()


BAD_DATA: list[tuple[str, str, bytes | None, list[str]]] = [
    ("missing file", "data.jsonl", None, ["no such file", "'data.records.path'"]),
    ("unknown kind", "data.docx", b"PK", ["this kind of file is not read", ".jsonl"]),
    ("empty file", "data.jsonl", b"", ["there are no rows"]),
    ("empty CSV", "data.csv", b"", ["there are no rows"]),
    ("wrong columns", "data.csv", as_csv("id,txet,label"), ["row 1", "'text'", "did you mean 'txet'"]),
    ("no header", "data.csv", as_csv(f"r,{SECRET} some text,good"), ["row 1", "'text'", "header"]),
    ("missing column", "data.jsonl", row(5, label=...), ["row 5", "'label'", "this column is missing"]),
    ("invalid JSON", "data.jsonl", lines(7, b'{"text": "%s' % SECRET.encode()), ["row 7", "not valid JSON"]),
    ("not an object", "data.jsonl", lines(3, b'["%s"]\n' % SECRET.encode()), ["row 3", "not an object"]),
    ("not UTF-8", "data.jsonl", lines(9, b'{"text": "%s \xe9"}\n' % SECRET.encode()), ["row 9", "not UTF-8"]),
    ("null", "data.jsonl", row(4, text=None), ["row 4", "'text'", "null"]),
    ("number", "data.jsonl", row(6, text=3.5), ["row 6", "'text'", "not a text but float"]),
    ("list", "data.jsonl", row(6, text=[SECRET]), ["row 6", "'text'", "not a text but list"]),
    ("blank", "data.jsonl", row(2, text=" \n"), ["row 2", "'text'", "blank"]),
    ("unknown label", "data.jsonl", row(8, label=SECRET), ["row 8", "'label'", "labels of this recipe: bad, good"]),
    ("one label", "data.jsonl", jsonl([r | {"label": "good"} for r in good_rows()]), ["only one label", "'label'"]),
    ("1 MB text", "data.jsonl", row(70, text=(SECRET + " ") * 110_000), ["row 70", "data.max_record_bytes"]),
    ("duplicate id", "data.jsonl", row(9, id="r2"), ["row 9", "'id'", "the same id as in row 3"]),
    ("null id", "data.jsonl", row(9, id=None), ["row 9", "'id'", "null"]),
    ("small silo", "data.jsonl", jsonl(good_rows(40)), ["silo silo-", "'data.silos'", "fewer silos"]),
    ("small test set", "data.jsonl", jsonl(good_rows(12)), ["'data.test_records'", "more records"]),
]


@pytest.mark.parametrize(("name", "content", "said"), [case[1:] for case in BAD_DATA], ids=[c[0] for c in BAD_DATA])
def test_bad_data(
    name: str, content: bytes | None, said: list[str], tmp_path: Path, call: Callable[..., Shown]
) -> None:
    recipe = place(tmp_path, name, content)
    before = snapshot(tmp_path)
    check_refused(call("validate", recipe), *said)
    assert snapshot(tmp_path) == before


def test_good_data_is_fine(tmp_path: Path, call: Callable[..., Shown]) -> None:
    recipe = place(tmp_path, content=jsonl(good_rows()))
    before = snapshot(tmp_path)
    shown = call("validate", recipe)
    assert shown.code == 0
    assert shown.out == f"{recipe}: fine; 80 records, 2 silos, 20 for testing\n"
    assert snapshot(tmp_path) == before


def test_data_need_not_be_there_with_no_data(tmp_path: Path, call: Callable[..., Shown]) -> None:
    assert call("validate", place(tmp_path), "--no-data").code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teech": {}}, ["recipe.yaml", "'teech'", "did you mean 'teach'?"]),
        ({"data": {"silo": 3}}, ["recipe.yaml", "'data.silo'", "did you mean 'data.silos'?"]),
        ({"data": {"silos": -1}}, ["recipe.yaml", "'data.silos'", "greater than or equal to 1"]),
        ({"student": {"learning_rate": 50}}, ["recipe.yaml", "'student.learning_rate'", "less than 1"]),
        ({"teach": {"model": "no-such-model"}}, ["'no-such-model'", "no such model"]),
        ({"student": {"base": "./no/such/model"}}, ["'./no/such/model'", "no such model"]),
    ],
)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_bad_recipes(
    command: str, changes: dict[str, Any], said: list[str], tmp_path: Path, call: Callable[..., Shown],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = place(tmp_path, content=jsonl(good_rows()), **changes)
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_refused(call(command, recipe), *said)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("role", ["teach.model", "student.base"])
@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_model_folder_without_a_tokenizer(
    command: str, role: str, tmp_path: Path, call: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    recipe = place(tmp_path, content=jsonl(good_rows()))
    monkeypatch.chdir(tmp_path)
    shown = call(command, recipe, "--set", f"{role}={tmp_path / 'model'}")
    check_refused(shown, str(tmp_path / "model"), "no tokenizer", "tokenizer.save_pretrained")
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_cannot_be_read(tmp_path: Path, call: Callable[..., Shown]) -> None:
    check_refused(call("run", tmp_path / "none.yaml"), "no such recipe", "tutelage init")
    (tmp_path / "bad.yaml").write_text("name: [demo\nseed: 0\n")
    check_refused(call("plan", tmp_path / "bad.yaml"), "bad.yaml", "row 2", "not valid YAML")


# ---- run folders --------------------------------------------------------------------------------------------------


def test_bad_data_leaves_the_run_folder_to_the_mended_recipe(tmp_path: Path, call: Callable[..., Shown]) -> None:
    from tutelage.flows.stage import create_run, open_run

    root = tmp_path / "run"
    recipe = place(tmp_path, content=row(4, text=None))
    check_refused(call("run", recipe, "--run-dir", root), "row 4", "'text'", "null")
    assert sorted(snapshot(root)) == ["lock", "run.json"]

    place(tmp_path, "other.jsonl", jsonl(good_rows()))
    mended = load_recipe(recipe)
    made = create_run(mended, root)
    assert made.recipe == open_run(root).recipe == mended
    assert create_run(mended, root).id == made.id
    # once the records are dealt out, the folder belongs to this recipe
    made.dir.commit("prepare", "key", [], {}, 0)
    with pytest.raises(UserError, match="another recipe"):
        create_run(parse_recipe(recipe_for("x.jsonl")), root)
    assert create_run(mended, root).id == made.id


def test_what_a_killed_preparation_wrote_goes_with_its_recipe(tmp_path: Path) -> None:
    from tutelage.flows.stage import create_run

    first = create_run(parse_recipe(recipe_for("/a.jsonl")), tmp_path / "run")
    (first.dir.vault / "half.jsonl").write_text(SECRET)
    second = create_run(parse_recipe(recipe_for("/b.jsonl")), tmp_path / "run")
    assert second.id != first.id
    assert sorted(snapshot(tmp_path / "run")) == ["run.json"]
    assert second.dir.vault.stat().st_mode & 0o777 == 0o700


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path, call: Callable[..., Shown]) -> None:
    recipe = place(tmp_path, content=jsonl(good_rows()))
    root = tmp_path / "thesis"
    root.mkdir()
    (root / "chapter.tex").write_text("mine")
    check_refused(call("run", recipe, "--run-dir", root), str(root), "not empty and holds no run", "--run-dir")
    assert (root / "chapter.tex").read_text() == "mine"
    check_refused(call("run", recipe, "--run-dir", root / "chapter.tex"), "chapter.tex", "cannot be used")


@pytest.mark.parametrize("command", ["resume", "report"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"run_id": "x"}'])
def test_a_folder_that_is_no_run(command: str, content: str | None, tmp_path: Path, call: Callable[..., Shown]) -> None:
    root = tmp_path / "run"
    root.mkdir()
    if content is not None:
        (root / "run.json").write_text(content)
    before = snapshot(tmp_path)
    check_refused(call(command, root), str(root), "not a run folder", "tutelage list")
    assert snapshot(tmp_path) == before
    assert [path.name for path in root.iterdir()] == list(snapshot(root))
    check_refused(call(command, tmp_path / "none"), "not a run folder")
    assert not (tmp_path / "none").exists()


def test_a_run_without_a_finished_round_has_no_report(tmp_path: Path, call: Callable[..., Shown]) -> None:
    from tutelage.flows.stage import create_run

    create_run(parse_recipe(recipe_for("/a.jsonl")), tmp_path / "runs" / "one")
    check_refused(call("report", tmp_path / "runs" / "one"), "no round is finished", "tutelage resume")
    [listed] = json.loads(call("list", tmp_path / "runs", "--json").out)
    assert (listed["rounds"], listed["state"]) == ("0/1", "unfinished")
    assert call("list", tmp_path / "nowhere").out == f"no runs in {tmp_path / 'nowhere'}\n"


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run folder that another process holds."""
    from tutelage.flows.stage import create_run

    root = tmp_path / "run"
    create_run(parse_recipe(recipe_for("/a.jsonl")), root)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield root
    holder.send_signal(signal.SIGKILL)
    holder.wait()


def test_a_run_folder_that_another_process_holds(held: Path, tmp_path: Path, call: Callable[..., Shown]) -> None:
    recipe = place(tmp_path, content=jsonl(good_rows()))
    before = snapshot(held)
    for arguments in (["run", recipe, "--run-dir", held], ["resume", held]):
        check_refused(call(*arguments), str(held), "another process holds this run folder")
    assert snapshot(held) == before


# ---- the commands themselves --------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = f"""
import sys
sys.argv = ["tutelage", "--help"]
from tutelage.flows import cli
from tutelage.flows.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("heavy:", sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("init", "validate", "plan", "run", "resume", "list", "report", "doctor"):
        assert f" {command} " in done.stdout
    assert "heavy: []" in done.stdout


def test_no_command_an_unknown_one_and_a_missing_argument(call: Callable[..., Shown]) -> None:
    shown = call()
    assert shown.code == 2
    assert "Usage:" in shown.out + shown.err
    assert "error" not in shown.err
    check_refused(call("teach"), "No such command 'teach'", "--help")
    check_refused(call("run"), "Missing argument", "--help")
    check_refused(call("validate"), "no recipe given")


def test_init_writes_a_recipe_that_is_read_and_overwrites_nothing(
    tmp_path: Path, call: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = call("init")
    assert (shown.code, shown.err) == (0, "")
    assert "tutelage validate recipe.yaml" in shown.out
    assert load_recipe(tmp_path / "recipe.yaml").task.kind == "classification"
    (tmp_path / "recipe.yaml").write_text("mine")
    check_refused(call("init"), "recipe.yaml", "there is a file already")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert call("init", "deep/er.yaml").code == 0
    assert (tmp_path / "deep" / "er.yaml").read_text() == files("tutelage.configs").joinpath(
        "template.yaml"
    ).read_text()


def test_the_schema_is_json_and_knows_every_section(call: Callable[..., Shown]) -> None:
    schema = json.loads(call("validate", "--schema").out)
    assert {"name", "task", "data", "teach", "screen", "student", "attack", "gate"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_what_an_engine_needs_is_looked_for_before_a_run(
    call: Callable[..., Shown], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.jsonl").write_bytes(jsonl(good_rows()))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_for("data.jsonl")))
    monkeypatch.setenv("TUTELAGE_VLLM", str(tmp_path / "no-python"))
    monkeypatch.delenv("OUR_KEY", raising=False)
    server = "teach.engine={kind: openai, url: 'http://127.0.0.1:9/v1', key_env: OUR_KEY}"
    for engine, said in (("teach.engine=vllm", "make vllm"), (server, "export OUR_KEY=")):
        for command in (["validate", recipe], ["run", recipe, "--run-dir", tmp_path / "run"]):
            shown = call(*command, "--set", engine)
            assert shown.code == 2
            assert said in shown.err
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("OUR_KEY", "sk-some")
    assert call("validate", recipe, "--set", server).code == 0


def test_doctor_in_both_forms(call: Callable[..., Shown]) -> None:
    shown = call("doctor", "--json")
    findings = json.loads(shown.out)
    assert {"python", "packages", "disk", "memory", "cache", "processor"} <= {finding["what"] for finding in findings}
    assert shown.code == (0 if all(finding["ok"] for finding in findings) else 2)
    assert [f for f in findings if f["what"] in ("python", "packages") and not f["ok"]] == []
    assert len(call("doctor").out.splitlines()) >= len(findings)


def test_doctor_tells_a_bad_machine_by_its_exit_code(
    call: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    shown = call("doctor")
    assert shown.code == 2
    assert "FAIL npm" in shown.out
    assert "install npm" in shown.out


def test_doctor_works_without_the_packages_it_looks_for(
    call: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    from tutelage.flows import doctor

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "torch" else find(name))
    monkeypatch.setattr(doctor, "best_dtype", lambda: pytest.fail("torch was needed"))
    shown = call("doctor")
    assert shown.code == 2
    assert "FAIL packages         torch" in shown.out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            UserError("odd", file="f", row=3, key="k", remedy="mend it"),
            2,
            "error: f, row 3, key 'k': odd\n  try: mend it",
        ),
        (PrivacyError("a forged lesson"), 4, "stopped to protect private text: a forged lesson"),
        (KeyboardInterrupt(), 130, "tutelage resume"),
        (OSError(28, "No space left on device"), 2, "the disk is full"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, call: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("tutelage.flows.doctor.examine", fail)
    shown = call("doctor")
    assert shown.code == code
    assert said in shown.err
    assert "Traceback" not in shown.err


def _fail_quoting_a_record() -> None:
    record = " ".join(["Dear", "Smith"])  # in two parts: a traceback shows this line
    raise ZeroDivisionError(record)


def test_a_defect_shows_where_it_happened_and_no_message(
    call: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cli.SHOW_MESSAGES, raising=False)
    monkeypatch.setattr("tutelage.flows.doctor.examine", _fail_quoting_a_record)
    shown = call("doctor")
    assert shown.code == 1
    assert "ZeroDivisionError" in shown.err
    assert "_fail_quoting_a_record" in shown.err  # the traceback's last frame
    assert "Dear Smith" not in shown.out + shown.err
    monkeypatch.setenv(cli.SHOW_MESSAGES, "1")
    with pytest.raises(ZeroDivisionError, match="Dear Smith"):
        call("doctor")
