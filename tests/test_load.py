"""Recipes: every shipped one is read, and whatever is wrong with one is said in terms of its file, line and key."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tutelage.configs.errors import UserError
from tutelage.configs.load import load_recipe, parse_recipe
from tutelage.configs.schema import FileData, Recipe

CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
DEMO_TEXT = (CONFIGS / "demo.yaml").read_text()
DEMO: dict[str, Any] = yaml.safe_load(DEMO_TEXT)
WHOLE: dict[str, Any] = parse_recipe(DEMO).model_dump(mode="json")


def changed(key: str, value: Any) -> dict[str, Any]:
    """The demo with one key set."""
    data = copy.deepcopy(DEMO)
    *sections, last = key.split(".")
    section = data
    for name in sections:
        section = section[int(name)] if isinstance(section, list) else section.setdefault(name, {})
    section[last] = value
    return data


def without(key: str) -> dict[str, Any]:
    data = changed(key, None)
    *sections, last = key.split(".")
    section = data
    for name in sections:
        section = section[name]
    del section[last]
    return data


def refused(data: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_recipe(data, Path("some.yaml"))
    assert str(caught.value.file) == "some.yaml"
    assert caught.value.remedy
    return caught.value


def refused_file(folder: Path, content: str | bytes, *overrides: str) -> UserError:
    path = folder / "recipe.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_is_read(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.gate.rules
    assert recipe.data.records.source in ("files", "spam_assassin")


def test_there_are_shipped_recipes() -> None:
    assert {"demo.yaml", "template.yaml"} <= {path.name for path in SHIPPED}


# ---- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("taech", "teach"),
        ("teach.temprature", "teach.temperature"),
        ("data.records_per_sillo", "data.records_per_silo"),
        ("task.descripton", "task.description"),
        ("data.records.sorce", "data.records.source"),
        # right key, wrong section
        ("temperature", "teach.temperature"),
        ("teach.learning_rate", "student.learning_rate"),
        # names that pydantic also uses as tags
        ("files", None),
        ("spam_assassin", None),
        ("teach.generation", None),
        ("qqqqqqqq", None),
        ("", None),
    ],
)
def test_an_unknown_key_is_named_with_what_was_meant(key: str, meant: str | None) -> None:
    error = refused(changed(key, 1))
    assert error.problem.startswith("unknown key")
    assert error.key == key
    if meant:
        assert error.remedy == f"did you mean {meant!r}?"


def test_an_unknown_key_in_a_list_and_in_columns() -> None:
    data = changed("gate.rules", [{"metric": "a", "op": "<=", "valeu": 1, "value": 1}])
    error = refused(data)
    assert (error.key, error.remedy) == ("gate.rules.0.valeu", "did you mean 'gate.rules.value'?")
    error = refused(changed("data.records", {"source": "files", "path": "x", "columns": {"txt": "body"}}))
    assert (error.key, error.remedy) == ("data.records.columns.txt", "did you mean 'data.records.columns.text'?")


def sections(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all mappings whose keys are the schema's."""
    if isinstance(data, dict) and path not in (("task", "labels"), ("task", "examples")):
        yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from sections(value, (*path, key))


@given(st.data())
def test_any_misspelled_key_is_refused_by_name(data: st.DataObject) -> None:
    recipe = copy.deepcopy(WHOLE)
    path = data.draw(st.sampled_from(list(sections(WHOLE))))
    section = recipe
    for part in path:
        section = section[part]  # type: ignore[index]
    key = data.draw(st.sampled_from(sorted(section)))
    at = data.draw(st.integers(0, len(key)))
    letter = data.draw(st.sampled_from(["", *"abcxyz_]["]))
    wrong = key[:at] + letter + key[at + 1 :]
    assume(wrong not in section)
    assume(not (path == ("data", "records") and wrong in ("path", "columns")))
    section[wrong] = copy.deepcopy(section[key])
    assert refused(recipe).key == ".".join(map(str, (*path, wrong)))


@pytest.mark.parametrize("key", ["name", "task", "gate", "task.description", "task.labels", "gate.rules"])
def test_a_missing_key_is_named(key: str) -> None:
    error = refused(without(key))
    assert error.key == key
    assert "missing" in error.problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", "one"),
        ("rounds", 0),
        ("rounds", 101),
        ("name", "Has Spaces"),
        ("name", "../up"),
        ("name", 7),
        ("name", "x" * 65),
        ("data.silos", 0),
        ("data.silos", 257),
        ("data.silos", "four"),
        ("data.silos", 2.5),
        ("data.silos", [4]),
        ("data.silos", True),
        ("data.records_per_silo", True),
        ("teach.temperature", True),
        ("gate.rules.0.value", True),
        ("data.test_records", 9),
        ("data.max_chars", 20_001),
        ("data.near_duplicate_jaccard", 0),
        ("teach", None),
        ("teach", 3),
        ("teach.engine", "magic"),
        ("teach.temperature", -0.1),
        ("teach.temperature", 5.1),
        ("teach.temperature", float("nan")),
        ("teach.top_p", 1.5),
        ("teach.batch_rows", 0),
        ("screen.entities", "PERSON"),
        ("screen.max_cosine", float("nan")),
        ("aggregate.method", "mean"),
        ("student.learning_rate", 1),
        ("student.learning_rate", float("inf")),
        ("student.heldback_share", 0.5),
        ("student.target_modules", 5),
        ("student.epochs", 1.5),
        ("student.dpo", True),
        ("student.dpo.beta", 0),
        ("student.dpo.learning_rate", float("nan")),
        ("measure.bootstrap", 99),
        ("attack.canaries", 1),
        ("gate.rules", []),
        ("task.labels", {"only": "one"}),
        ("task.kind", "poetry"),
        ("data.records.source", "elsewhere"),
    ],
)
def test_a_value_out_of_range_or_of_the_wrong_kind_names_its_key(key: str, value: Any) -> None:
    error = refused(changed(key, value))
    # a union's own tag is found wrong before its members are looked at
    assert error.key == {"task.kind": "task", "data.records.source": "data.records"}.get(key, key)


@pytest.mark.parametrize(("key", "value"), [("student.weight_decay", float("inf")), ("seed", 2**70)])
def test_values_that_torch_cannot_take_are_refused(key: str, value: Any) -> None:
    assert refused(changed(key, value)).key == key


def test_gate_thresholds_must_be_numbers() -> None:
    for value in (float("nan"), float("inf"), "high", None):
        error = refused(changed("gate.rules", [{"metric": "a", "op": "<=", "value": value}]))
        assert error.key == "gate.rules.0.value"


def test_labels_that_yaml_reads_as_truth_values(tmp_path: Path) -> None:
    error = refused_file(tmp_path, DEMO_TEXT.replace("    spam:", "    yes:").replace("    ham:", "    no:"))
    assert (error.key or "").startswith("task.labels.")


def test_more_than_one_fault_is_counted() -> None:
    data = changed("teach.temperature", -1)
    data["rounds"] = 0
    assert "(and 1 more)" in refused(data).problem


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (changed("teach.keep_per_prompt", 99), ["teach.keep_per_prompt", "teach.drafts_per_prompt"]),
        (changed("task.labels", {"good": "a", "bad": "b"}), ["task", "'ham'", "'spam'"]),
        (changed("task", {"kind": "generation", "description": "Answer."}), ["task", "'ham'", "'spam'"]),
    ],
)
def test_keys_that_contradict_each_other_are_named(data: dict[str, Any], named: list[str]) -> None:
    problem = str(refused(data))
    assert all(name in problem for name in named), problem


# ---- engines ------------------------------------------------------------------------------------------------------


HERE = {"kind": "openai", "url": "http://127.0.0.1:8000/v1/"}


@pytest.mark.parametrize("engine", ["transformers", "vllm", {"kind": "vllm", "dtype": "float16"}, HERE])
def test_an_engine_is_a_name_or_has_settings(engine: Any) -> None:
    recipe = parse_recipe(changed("teach.engine", engine))
    assert recipe.teach.engine.kind == (engine if isinstance(engine, str) else engine["kind"])
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("engine", "key", "said"),
    [
        ({"kind": "vllm", "dtyp": "float16"}, "teach.engine.dtyp", "unknown key"),
        ({"kind": "vllm", "dtype": "int8"}, "teach.engine.dtype", "'float16'"),
        ({"kind": "vllm", "max_model_len": True}, "teach.engine.max_model_len", "true or false"),
        ({"kind": "vllm", "gpu_memory_utilization": 1.1}, "teach.engine.gpu_memory_utilization", "less than"),
        ({"kind": "vllm", "python": "/bin/sh"}, "teach.engine.python", "unknown key"),
        ({"kind": "transformers", "dtype": "auto"}, "teach.engine.dtype", "unknown key"),
        ({"url": "http://127.0.0.1/v1"}, "teach.engine", "kind"),
        ("openai", "teach.engine.url", "missing"),
        ({**HERE, "url": "127.0.0.1:8000"}, "teach.engine.url", "an http or https address"),
        ({**HERE, "url": "file:///v1"}, "teach.engine.url", "an http or https address"),
        ({**HERE, "url": "http://127.0.0.1:port/v1"}, "teach.engine.url", "an http or https address"),
        ({**HERE, "url": "http://me:secret@127.0.0.1/v1"}, "teach.engine.url", "no credentials"),
        ({**HERE, "url": "http://127.0.0.1/v1?key=secret"}, "teach.engine.url", "no credentials"),
        ({**HERE, "key": "secret"}, "teach.engine.key", "unknown key"),
        ({**HERE, "key_env": "sk-secret"}, "teach.engine.key_env", "pattern"),
        ({**HERE, "url": "https://api.example/v1"}, "teach.engine", "trust boundary"),
        ({**HERE, "url": "http://127.0.0.1.example/v1"}, "teach.engine", "trust boundary"),
        ({**HERE, "url": "http://10.0.0.1/v1"}, "teach.engine", "trust boundary"),
        ({**HERE, "url": "http://10.0.0.1/v1", "trusted": True, "key_env": "KEY"}, "teach.engine", "https"),
    ],
)
def test_what_is_wrong_with_an_engine(engine: Any, key: str, said: str) -> None:
    error = refused(changed("teach.engine", engine))
    assert error.key == key
    assert said in error.problem
    assert "secret" not in f"{error} {error.remedy}"


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "http://[::1]:8000/v1", "https://127.8.0.1/v1", "HTTP://LOCALHOST/v1"]
)
def test_an_endpoint_on_this_machine_needs_no_word_of_trust(url: str) -> None:
    parse_recipe(changed("teach.engine", {"kind": "openai", "url": url}))


@pytest.mark.parametrize("url", ["https://models.example/v1", "http://10.0.0.1/v1"])
def test_an_endpoint_elsewhere_that_is_trusted(url: str) -> None:
    parse_recipe(changed("teach.engine", {"kind": "openai", "url": url, "trusted": True}))


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (HERE, "private_prediction needs transformers or vllm"),
        ({"kind": "vllm", "tensor_parallel_size": 2}, "tensor_parallel_size must be 1"),
        ({"kind": "vllm", "data_parallel_size": 2}, "data_parallel_size must be 1"),
        ({"kind": "vllm", "quantization": "fp8"}, "quantization must be null"),
    ],
)
def test_private_prediction_needs_the_scores_of_every_token(engine: Any, why: str) -> None:
    data = yaml.safe_load((CONFIGS / "strict_dp.yaml").read_text())
    data["teach"]["engine"] = engine
    assert why in refused(data).problem
    data["privacy"] = {"mechanism": "private_evolution", "epsilon": 4}
    parse_recipe(data)
    data["teach"]["engine"] = "vllm"
    data["privacy"]["mechanism"] = "private_prediction"
    parse_recipe(data)


def test_an_adapter_whose_text_is_not_known_to_be_public_has_no_place_under_a_guarantee() -> None:
    parse_recipe(changed("teach.adapter", "somebody/tone"))
    data = yaml.safe_load((CONFIGS / "strict_dp.yaml").read_text())
    data["teach"]["adapter"] = "somebody/tone"
    for mechanism in ("private_prediction", "private_evolution"):
        data["privacy"] = {"mechanism": mechanism, "epsilon": 4}
        data["teach"].pop("adapter_is_public", None)
        assert "adapter_is_public: true" in refused(data).problem
        data["teach"]["adapter_is_public"] = True
        parse_recipe(data)
    data["teach"]["engine"] = "vllm"
    parse_recipe(data)
    data["privacy"]["mechanism"] = "private_prediction"
    assert "teach.adapter needs teach.engine transformers" in refused(data).problem


def test_a_server_loads_its_own_adapter() -> None:
    data = changed("teach.engine", HERE)
    data["teach"]["adapter"] = "somebody/tone"
    assert "teach.engine.model" in refused(data).problem


def test_top_k_needs_a_server_that_takes_it() -> None:
    data = changed("teach.engine", {**HERE, "extensions": False})
    data["teach"]["top_k"] = 5
    assert "teach.top_k" in refused(data).problem
    data["teach"]["top_k"] = 0
    parse_recipe(data)


def test_an_engine_is_named_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(DEMO_TEXT)
    assert load_recipe(path, ("teach.engine=vllm",)).teach.engine.kind == "vllm"
    assert load_recipe(path, ("teach.engine.kind=vllm", "teach.engine.dtype=float32")).teach.engine.kind == "vllm"


# ---- several teachers -----------------------------------------------------------------------------------------------


TWO = [
    {"name": "small", "model": "smollm2-135m-instruct", "prompt_price": 1, "draft_price": 2},
    {"name": "large", "model": "our/large", "engine": "vllm", "prompt_price": 1, "draft_price": 20},
]
BUDGET = {"by": "cascade", "budget": 5}
LABELS = {"by": "label", "teachers": {"spam": "small", "ham": "large"}}


def routed(route: Any, teachers: Any = None, **changes: Any) -> dict[str, Any]:
    data = copy.deepcopy(DEMO)
    data["teach"] = {key: value for key, value in data["teach"].items() if key != "model"}
    data["teach"] |= {"teachers": TWO if teachers is None else teachers, "route": route}
    for section, values in changes.items():
        data[section] = {**data.get(section, {}), **values} if isinstance(values, dict) else values
    return data


@pytest.mark.parametrize(
    "route",
    [BUDGET, {"by": "skill"}, LABELS, {"by": "silo", "teachers": {f"silo-{k}": "small" for k in range(4)}}],
    ids=lambda route: route["by"],
)
def test_several_teachers_and_a_route_survive_json(route: dict[str, Any]) -> None:
    recipe = parse_recipe(routed(route))
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    assert [one.name for one in recipe.teach.staff] == ["small", "large"]
    assert recipe.teach.staff[1].engine.kind == "vllm"


def test_one_teacher_is_what_it_was() -> None:
    teach = parse_recipe(DEMO).teach
    assert [(one.model, one.engine) for one in teach.staff] == [(teach.model, teach.engine)]
    assert teach.routed is None
    assert teach.only("any silo") == teach.staff[0]


SERVER = {"name": "server", "model": "our/large", "draft_price": 20, "prompt_price": 2, "engine": HERE}
MEAN = {"by": "cascade", "budget": 0.0001}


@pytest.mark.parametrize(
    ("data", "key", "said"),
    [
        (changed("teach.route", BUDGET), "teach", "stand together"),
        (changed("teach.teachers", TWO), "teach", "stand together"),
        (routed(BUDGET, TWO[:1]), "teach", "two teachers or more"),
        (routed(BUDGET, [TWO[0], {**TWO[1], "name": "small"}]), "teach", "the same name"),
        (routed(BUDGET, TWO[::-1]), "teach", "cheaper than 'large'"),
        (routed(BUDGET, [{"name": name, "model": "m"} for name in "ab"]), "teach", "needs prices"),
        (routed(BUDGET, [TWO[0], {**TWO[1], "price": 1}]), "teach.teachers.1.price", "unknown key"),
        (routed(BUDGET, [TWO[0], {**TWO[1], "draft_price": True}]), "teach.teachers.1.draft_price", "true or false"),
        (
            routed(BUDGET, [TWO[0], {**TWO[1], "engine": {**HERE, "urll": 1}}]),
            "teach.teachers.1.engine.urll",
            "unknown",
        ),
        (routed(BUDGET, TWO, teach={"engine": "vllm"}), "teach", "no effect beside teachers"),
        (routed({"by": "cascade"}), "teach.route.budget", "missing"),
        (routed({**BUDGET, "budget": True}), "teach.route.budget", "true or false"),
        (routed({**BUDGET, "by": "chance"}), "teach.route", "'cascade'"),
        (routed({"budget": 5}), "teach.route", "needs the key 'by'"),
        (routed({**BUDGET, "calibration_promts": 4}), "teach.route.calibration_promts", "unknown key"),
        (routed(BUDGET, [TWO[0], SERVER]), "teach", "retries: 0"),
        (routed(MEAN), None, "the calibration's drafts alone"),
        (routed({**LABELS, "teachers": {"spam": "small"}}), None, "every label"),
        (routed({**LABELS, "teachers": {"spam": "small", "ham": "huge"}}), "teach", "'huge'"),
    ],
)
def test_what_is_wrong_with_several_teachers(data: dict[str, Any], key: str | None, said: str) -> None:
    if said == "no effect beside teachers":
        data["teach"] |= {"teachers": TWO, "route": BUDGET}
    error = refused(data)
    assert (error.key, said in error.problem) == (key, True), error


PREDICTION = {"mechanism": "private_prediction", "epsilon": 4.0}
EVOLUTION = {"mechanism": "private_evolution", "epsilon": 4.0, "brackets": []}


@pytest.mark.parametrize(
    ("route", "privacy", "said"),
    [
        (BUDGET, PREDICTION, "would read those units again"),
        ({"by": "skill"}, PREDICTION, "would read those units again"),
        (LABELS, PREDICTION, "would read those units again"),
        (BUDGET, {**EVOLUTION, "brackets": [0.0]}, "would spend the budget once more"),
        ({**BUDGET, "scorer": "typicality"}, EVOLUTION, "paid for by no budget of ε"),
        (BUDGET, EVOLUTION, None),
        ({"by": "silo", "teachers": {f"silo-{k}": "small" for k in range(4)}}, PREDICTION, None),
    ],
)
def test_a_route_that_a_guarantee_does_not_allow(route: Any, privacy: Any, said: str | None) -> None:
    data = routed(route, [{**one, "engine": "transformers"} for one in TWO])
    data["attack"] = {**data["attack"], "canary_copies": 1}
    data["privacy"], data["teach"] = privacy, {key: data["teach"][key] for key in ("teachers", "route")}
    if said is None:
        parse_recipe(data)
    else:
        assert said in refused(data).problem


def test_a_generation_has_no_labels_to_route_or_to_be_typical_of() -> None:
    task = {"kind": "generation", "description": "Answer."}
    files = {"records": {"source": "files", "path": "x.jsonl"}}
    for route, said in (({"by": "skill"}, "labels to route"), ({**BUDGET, "scorer": "typicality"}, "has not")):
        data = routed(route, data=files)
        data["task"] = task
        assert said in refused(data).problem
    data = routed(BUDGET, data=files)
    data["task"] = task
    parse_recipe(data)


def test_a_silo_without_a_teacher_is_named_before_anything_is_dealt() -> None:
    recipe = parse_recipe(routed({"by": "silo", "teachers": {"north": "small", "south": "large"}}))
    recipe.check_silos(["south", "north"])
    for silos in (["north"], ["north", "south", "west"]):
        with pytest.raises(ValueError, match="every silo, and for no other"):
            recipe.check_silos(silos)


def test_models_of_several_teachers_lie_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "models" / "own").mkdir(parents=True)
    own = [{**one, "model": "models/own"} for one in TWO]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(routed({**BUDGET, "scorer_model": "models/own"}, own)))
    teach = load_recipe(path).teach
    assert {one.model for one in teach.teachers} == {teach.route.scorer_model} == {str(tmp_path / "models" / "own")}


# ---- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said", "row"),
    [
        ("name: [demo\nseed: 0\n", "not valid YAML", 2),
        ("name: demo\nseed: 0\n\tbad: 1\n", "not valid YAML", 3),
        ("name: demo\ntask: *nowhere\n", "not valid YAML", 2),
        ("name: !!python/object:os.system x\n", "not valid YAML", 1),
        ("name: demo\nseed: 0\nname: other\n", "'name' is given twice", 3),
        ("teach:\n  top_k: 1\n  top_k: 2\n", "'top_k' is given twice", 3),
        ("seed: 2024-99-99\n", "cannot be read", None),
        ("seed: !!bool maybe\n", "cannot be read", None),
        ("[" * 5000, "cannot be read", None),
        ("name: &a {b: *a}\n", "nested without end", None),
        ("- name: demo\n", "a mapping", None),
        ("just words\n", "a mapping", None),
        ("", "a mapping", None),
        ("# only a comment\n", "a mapping", None),
        (b"name: caf\xe9\n", "byte 9 is not UTF-8", None),
    ],
)
def test_a_file_that_is_no_recipe(content: str | bytes, said: str, row: int | None, tmp_path: Path) -> None:
    error = refused_file(tmp_path, content)
    assert said in error.problem
    assert error.row == row
    assert error.file == tmp_path / "recipe.yaml"


def test_no_file_a_folder_and_a_path_through_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe") as caught:
        load_recipe(tmp_path / "none.yaml")
    assert "tutelage init" in (caught.value.remedy or "")
    with pytest.raises(UserError, match="a folder"):
        load_recipe(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "file" / "recipe.yaml")


@example("name: demo\nseed: 0b_\n")
@example("? [a, b]\n: 1\n")
@example("1: 2\n")
@example("files: 1\n")
@given(st.text(st.sampled_from("abn: \n\t-[]{}&*!|>'\"%@`#?,\\0123.~=<${}é\U0001f600"), max_size=60))
def test_junk_is_refused_and_nothing_worse(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_recipe(path)


@given(st.integers(0, len(DEMO_TEXT)), st.integers(0, 12), st.text(max_size=4))
def test_a_damaged_demo_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(DEMO_TEXT[:at] + put + DEMO_TEXT[at + cut :])
    with contextlib.suppress(UserError):
        assert isinstance(load_recipe(path), Recipe)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(list(sections(WHOLE))), st.data())
def test_a_junk_value_anywhere_is_taken_or_refused(path: tuple[str | int, ...], data: st.DataObject) -> None:
    recipe = copy.deepcopy(WHOLE)
    section: Any = recipe
    for part in path:
        section = section[part]
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(JUNK)
    with contextlib.suppress(UserError):
        assert isinstance(parse_recipe(recipe, Path("some.yaml")), Recipe)


# ---- environment, overrides, paths --------------------------------------------------------------------------------


def test_environment_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed("teach.model", "${MODEL_HOME}/small") | {"seed": "${RUN_SEED}"}))
    monkeypatch.setenv("MODEL_HOME", "/models")
    monkeypatch.setenv("RUN_SEED", "7")
    recipe = load_recipe(path)
    assert recipe.teach.model == "/models/small"
    assert recipe.seed == 7
    monkeypatch.delenv("MODEL_HOME")
    with pytest.raises(UserError, match="MODEL_HOME is not set") as caught:
        load_recipe(path)
    assert caught.value.remedy == "export MODEL_HOME=..."


def test_overrides_are_typed_and_win(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(DEMO_TEXT)
    recipe = load_recipe(
        path,
        ("seed=3", "teach.temperature=0.5", "measure.originals=false", "screen.entities=[PERSON, URL]", "seed=4"),
    )
    assert recipe.seed == 4
    assert recipe.teach.temperature == 0.5
    assert recipe.measure.originals is False
    assert recipe.screen.entities == ("PERSON", "URL")
    assert recipe.student.rank == load_recipe(path).student.rank


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("teach.temperature", "teach.temperature"),
        ("teach.temprature=1", "teach.temprature"),
        ("teach.temperature=hot", "teach.temperature"),
        ("teach.temperature=[", "teach.temperature"),
        ("teach.temperature=2024-99-99", "teach.temperature"),
        ("seed.deep.er=1", "seed"),
        ("gate.rules.0.value=1", "gate.rules"),
        ("=1", ""),
        ("teach=1", "teach"),
    ],
)
def test_a_bad_override_names_its_key(override: str, key: str, tmp_path: Path) -> None:
    assert refused_file(tmp_path, DEMO_TEXT, override).key == key


def test_a_relative_data_path_is_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "recipe.yaml"
    for written, expected in (
        ("mails.jsonl", tmp_path / "here" / "mails.jsonl"),
        ("../mails.jsonl", tmp_path / "mails.jsonl"),
        ("/data/mails.jsonl", Path("/data/mails.jsonl")),
    ):
        path.write_text(yaml.safe_dump(changed("data.records", {"source": "files", "path": written})))
        monkeypatch.chdir(tmp_path)
        for name in (path, Path("here/recipe.yaml")):
            records = load_recipe(name).data.records
            assert isinstance(records, FileData)
            assert records.path == expected


def test_a_relative_model_folder_is_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "models" / "own").mkdir(parents=True)
    path = tmp_path / "here" / "recipe.yaml"
    data = changed("teach.model", "models/own")
    data["teach"]["adapter"] = "models/own"
    data["student"]["base"] = "someone/on-the-hub"
    path.write_text(yaml.safe_dump(data))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("here/recipe.yaml"))
    assert Path(recipe.teach.model) == Path(recipe.teach.adapter or "") == tmp_path / "here" / "models" / "own"
    assert recipe.student.base == "someone/on-the-hub"


def test_a_merged_mapping_may_override_a_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = DEMO_TEXT.replace("data:\n  records:", "data:\n  <<: {silos: 9, test_records: 77}\n  records:")
    path.write_text(text)
    recipe = load_recipe(path)
    assert (recipe.data.silos, recipe.data.test_records) == (4, 120)


def test_a_path_with_a_nul(tmp_path: Path) -> None:
    text = yaml.safe_dump(changed("data.records", {"source": "files", "path": "a\0b"}))
    assert refused_file(tmp_path, text).key == "data.records.path"


# ---- a recipe is stored as JSON -----------------------------------------------------------------------------------

SHARE = st.floats(0.01, 1)
SOURCE = st.fixed_dictionaries(
    {"source": st.just("files"), "path": st.text("abc/._-", min_size=1).map("/".__add__)},
    optional={"columns": st.fixed_dictionaries({}, optional={"text": st.text(), "silo": st.none() | st.text()})},
)
LABELS = st.dictionaries(st.text(min_size=1), st.text(), min_size=2, max_size=4)
VALID = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True),
        "task": st.fixed_dictionaries({"kind": st.just("classification"), "description": st.text(min_size=1),
                                       "labels": LABELS})
        | st.fixed_dictionaries({"kind": st.just("generation"), "description": st.text(min_size=1)}),
        "data": st.fixed_dictionaries({"records": SOURCE}, optional={"near_duplicate_jaccard": SHARE}),
        "gate": st.fixed_dictionaries({"rules": st.lists(
            st.fixed_dictionaries({"metric": st.text(), "op": st.sampled_from([">=", "<="]),
                                   "value": st.floats(allow_nan=False, allow_infinity=False) | st.integers()}),
            min_size=1, max_size=3)}),
    },
    optional={
        "seed": st.integers(0, 2**60),
        "teach": st.fixed_dictionaries({}, optional={"temperature": st.floats(0.01, 5), "model": st.text()}),
        "screen": st.fixed_dictionaries({}, optional={"entities": st.lists(st.text(), max_size=3)}),
        "student": st.fixed_dictionaries({}, optional={
            "target_modules": st.just("all-linear") | st.lists(st.text(), max_size=3),
            "learning_rate": st.floats(1e-9, 0.99)}),
    },
)  # fmt: skip


@given(VALID)
def test_a_recipe_survives_json(data: dict[str, Any]) -> None:
    recipe = parse_recipe(data, Path("/recipes/some.yaml"))
    stored = json.dumps(recipe.model_dump(mode="json"))
    assert parse_recipe(json.loads(stored), Path("/runs/some/run.json")) == recipe
