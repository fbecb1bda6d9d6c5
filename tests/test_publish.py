from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_model import make_tiny_model

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import load_model
from tutelage.configs.records import (
    Example,
    GateDecision,
    Metric,
    Override,
    RoundReport,
    RuleOutcome,
    SiloCounts,
)
from tutelage.configs.schema import StudentConfig
from tutelage.configs.store import file_digest
from tutelage.students import chat, publish, train

NAME = "somebody/tiny"


def metric(name: str, value: float, internal: bool = False) -> Metric:
    return Metric(name=name, value=value, ci_low=value - 0.05, ci_high=value + 0.05, n=50, internal=internal)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    folder = tmp_path_factory.mktemp("made")
    base = make_tiny_model(folder / "base")
    examples = [Example(id=str(i), prompt=f"text {i}", completion=("ham", "spam")[i % 2]) for i in range(8)]
    config = StudentConfig(rank=2, epochs=1, batch_rows=4, dtype="float32")
    result = train._fit(examples, "Which is it?", base, folder / "adapter", config, 0, False, NAME)
    return base, result.adapter, load_model(base)[1]


def report_of(adapter: Path, passed: bool = True) -> RoundReport:
    outcomes = (
        RuleOutcome(rule="accuracy.student (ci_low) >= 0.6", observed=0.81, threshold=0.6, passed=True, reason="ok"),
        RuleOutcome(
            rule="overlap.longest_run_max <= 12",
            observed=7.125,
            threshold=12,
            passed=passed,
            reason="7.125 is below",
        ),
    )
    return RoundReport(
        run_id="run",
        round=1,
        recipe_name="demo",
        recipe_digest="0" * 64,
        protection="Screened, no formal guarantee.",
        instruction="Say which it is.\n---\n# not a heading",
        silos=(
            SiloCounts(silo="silo-0", records=9, prompts=4, drafts=8, malformed=0, dropped={}, replaced={}, released=8),
        ),
        lessons_per_class={"ham": 4, "spam": 4},
        topics_next={"ham": 0.5, "spam": 0.5},
        metrics=(
            metric("accuracy.student", 0.86),
            metric("accuracy.upper", 0.9321, internal=True),
            metric("overlap.longest_run_max", 7.125, internal=True),
            metric("recall.student.rare", math.nan),
        ),
        curve=(),
        decision=GateDecision(passed=passed, outcomes=outcomes),
        lessons_digest="1" * 64,
        adapter_digest=publish.adapter_digest(adapter),
    )


def put(made: tuple[Path, Path, Any], registry: Path, **over: Any) -> Path:
    _, adapter, tokenizer = made
    report = over.pop("report", None) or report_of(adapter)
    settings = {"name": "demo", "decision": report.decision, "base_name": NAME, "tokenizer": tokenizer} | over
    return publish.publish(adapter, registry, report=report, **settings)


def test_a_published_student_loads_and_answers_alike(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    base, adapter, tokenizer = made
    version = put(made, tmp_path)
    assert version == tmp_path / "demo" / "v1"
    ids = torch.tensor([tokenizer("the meeting is moved").input_ids])
    models = [PeftModel.from_pretrained(load_model(base)[0], str(folder)).eval() for folder in (adapter, version)]
    with torch.no_grad():
        plain, first, second = (m(input_ids=ids).logits for m in (load_model(base)[0], *models))
    assert torch.equal(first, second)
    assert not torch.equal(plain, first)
    again = AutoTokenizer.from_pretrained(version)
    assert again("free prize").input_ids == tokenizer("free prize").input_ids
    assert again.chat_template == tokenizer.chat_template


def test_versions_are_added_never_changed(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    first = put(made, tmp_path)
    before = {path.name: file_digest(path) for path in first.iterdir()}
    (tmp_path / "demo" / "index.json").unlink()
    second = put(made, tmp_path)
    assert second.name == "v2"
    assert {path.name: file_digest(path) for path in first.iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["index.json", "v1", "v2"]
    index = json.loads((tmp_path / "demo" / "index.json").read_text())
    assert [row["version"] for row in index["versions"]] == ["v1", "v2"]
    assert index["versions"][0]["files"] == before


def test_a_rival_publisher_costs_a_version_number_only(
    made: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(made, tmp_path)
    seen = iter([[], [], [1], [1, 2]])
    monkeypatch.setattr(publish, "_versions", lambda shelf: next(seen))
    assert put(made, tmp_path).name == "v2"
    assert (tmp_path / "demo" / "v1" / "README.md").is_file()


def test_the_card_is_for_the_hub(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    card = (put(made, tmp_path) / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["base_model"] == NAME
    assert front["library_name"] == "peft"
    assert front["license"] == "apache-2.0"
    assert front["metrics"] == ["accuracy", "recall"]
    assert "> Say which it is.\n> ---\n> # not a heading\n" in body
    assert "| accuracy.student | 0.86 | 0.81 to 0.91 | 50 |" in body
    assert "preference" not in body
    tuned = report_of(made[1]).model_copy(update={"preference_pairs": 7})
    assert "(7 in all)" in publish.model_card("demo", tuned, NAME)


def test_the_cards_lines_load_the_student(
    made: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, _, tokenizer = made
    version = put(made, tmp_path)
    instruction = report_of(made[1]).instruction
    lines = (version / "README.md").read_text().split("```python\n")[1].split("```")[0]
    # what its config names is on a hub
    from_hub = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda name, **more: from_hub(base if name == NAME else name, **more)
    )
    monkeypatch.chdir(version)
    exec(lines, {})
    ids = chat.prompt_ids(tokenizer, chat.prompt_messages("...", instruction))
    student = PeftModel.from_pretrained(load_model(base)[0], str(version)).eval()
    expected = student.generate(input_ids=torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
    assert capsys.readouterr().out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"


def test_internal_figures_and_local_paths_stay_behind(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    version = put(made, tmp_path)
    texts = {path.name: path.read_text() for path in version.iterdir() if path.suffix != ".safetensors"}
    for name, text in texts.items():
        for secret in ("0.9321", "7.125", "accuracy.upper", str(made[0]), str(made[1].parent)):
            assert secret not in text, f"{secret} in {name}"
    assert "internal figure, not published" in texts["README.md"]
    assert json.loads(texts["report.json"])["decision"]["outcomes"][0]["observed"] == 0.81
    assert "is_local" not in texts["tokenizer_config.json"]


def test_what_did_not_pass_is_not_published(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    refused = report_of(made[1], passed=False)
    passed = report_of(made[1])
    claims = GateDecision(passed=True, outcomes=refused.decision.outcomes)
    for report, decision in (
        (refused, refused.decision),
        (passed, refused.decision),
        (refused, passed.decision),
        (refused.model_copy(update={"decision": claims}), claims),
        (passed, GateDecision(passed=True, outcomes=())),
        (passed.model_copy(update={"adapter_digest": "2" * 64}), passed.decision),
    ):
        with pytest.raises(PrivacyError):
            put(made, tmp_path / "registry", report=report, decision=decision)
    with pytest.raises(PrivacyError):
        put(made, tmp_path / "registry", base_name="another/base")
    assert not (tmp_path / "registry").exists()


def test_a_refused_student_is_published_by_name_and_says_so(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    refused = report_of(made[1], passed=False)
    override = Override(by="Ada  Example", reason="The rule is about\n# another corpus, see ticket 12.")
    version = put(made, tmp_path, report=refused, override=override)
    card = (version / "README.md").read_text()
    assert "refused by its gate and published all the same**, by Ada Example" in card
    assert "> # another corpus" in card  # its words cannot become a heading of the card
    assert card.index("Ada Example") < card.index("## Use")
    assert "**refused**: overlap.longest_run_max" in card
    published = json.loads((version / "report.json").read_text())
    assert published["override"] == override.model_dump()
    assert published["decision"]["passed"] is False


def test_an_override_needs_a_name_a_reason_and_a_refusal(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    for by, reason in (("", "a reason that is long enough"), ("Ada Example", "because")):
        with pytest.raises(ValueError, match="at least"):
            Override(by=by, reason=reason)
    with pytest.raises(UserError, match="nothing to override"):
        put(made, tmp_path, override=Override(by="Ada Example", reason="a reason that is long enough"))
    broken = report_of(made[1], passed=False).model_copy(update={"adapter_digest": "2" * 64})
    with pytest.raises(PrivacyError, match="another adapter"):
        put(made, tmp_path, report=broken, override=Override(by="Ada Example", reason="a reason that is long enough"))


def test_what_the_user_can_mend(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    for name in ("", "../up", "Name", "a/b", ".hidden", "x" * 65):
        with pytest.raises(UserError, match="name"):
            put(made, tmp_path, name=name)
    with pytest.raises(UserError, match="adapter_config"):
        publish.adapter_digest(tmp_path)
    assert not list(tmp_path.iterdir())
