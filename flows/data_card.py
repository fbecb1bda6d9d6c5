"""README.md of a round's released texts: with it the round's folder is a data set that `datasets` and the hub open."""

from __future__ import annotations

import yaml

from tutelage.configs.models import hub_name
from tutelage.configs.records import RoundReport
from tutelage.configs.schema import ClassificationTask, Recipe, TeacherConfig
from tutelage.flows.report.figures import by_key, ceiling, families, figure

# name -> (files, what they are); the first is what `load_dataset` opens if it isn't told otherwise
SUBSETS = {
    "lessons": ("lessons.jsonl", "what the round's student learned from: chosen from what all silos released so far"),
    "released": ("silos/*.jsonl", "all that the silos released in this round, one file each, instructions included"),
}
_WRITTEN = {
    "screened": "in continuation of prompts that hold a few of its silo's records",
    "private_prediction": "token by token from what prompts of one record each say together, every one's say bounded",
    "private_evolution": "without seeing a record; the silo's records voted, with noise, for those to be varied",
}
_MEASURED = (
    "lessons.canary_verbatim", "audit.lessons.epsilon_low", "audit.lessons.epsilon_ceiling",
    "contamination.lessons_share",
)  # fmt: skip
"""Beside what a student makes of them: what was measured of the lessons alone."""
_COLUMNS = {
    "id": "of the lesson; unique in the run",
    "kind": "`example`, or `instruction`: a teacher's wording of the task, with no completion",
    "silo": "whose teacher wrote it; `_review` where a reviewer edited it since",
    "round": "in which it was written",
    "prompt": "the synthetic text",
    "completion": "its label or answer",
    "mechanism": "how it was protected",
    "prompt_version": "of the teacher's prompt",
    "signature": "the silo's, Ed25519 (hex), over all other columns and the run's id; the keys are in "
    "`../public_keys.json`, that of `_review` in `../custody-key.txt`",
}


def data_card(report: RoundReport, recipe: Recipe) -> str:
    """The card of a round's released texts: how they were made, what protects the records, what was screened.

    Args:
        report: The round's, without internal figures.
        recipe: The run's.

    Returns:
        Markdown with the hub's front matter.
    """
    lessons, formal = sum(report.lessons_per_class.values()), bool(report.certificates)
    classification = isinstance(recipe.task, ClassificationTask)
    head = {
        "pretty_name": f"{report.recipe_name}, round {report.round}: synthetic lessons",
        "task_categories": ["text-classification" if classification else "text-generation"],
        "tags": ["synthetic", "social-learning", "tutelage", *(["differential-privacy"] if formal else [])],
        "size_categories": [_size(lessons)],
        "configs": [
            {"config_name": name, "data_files": files} | ({"default": True} if name == "lessons" else {})
            for name, (files, _) in SUBSETS.items()
        ],
    }
    subsets = "".join(f"- `{name}`: {what}.\n" for name, (_, what) in SUBSETS.items())
    columns = "".join(f"| `{name}` | {what} |\n" for name, what in _COLUMNS.items())
    balance = ", ".join(f"{count} {name}" for name, count in sorted(report.lessons_per_class.items()))
    gate = "passed its gate" if report.decision.passed else "was **refused** by its gate"
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# Lessons of {report.recipe_name}, round {report.round}\n\n"
        f"{lessons} synthetic texts ({balance}) that the teachers of {len(report.silos)} silos wrote, who see private "
        f"records. The student that learned from them {gate}: `report.json` has every figure and its interval.\n\n"
        "```python\n"
        "from datasets import load_dataset\n\n"
        "lessons = load_dataset(FOLDER)  # the folder of this file\n"
        'released = load_dataset(FOLDER, "released")\n'
        "```\n\n"
        f"{subsets}{_preferred(report)}\n"
        f"| Column | What it holds |\n|---|---|\n{columns}\n"
        f"## How they were made\n\n"
        f"{_teachers(recipe)} wrote texts (kind: {recipe.task.text_noun}) "
        f"{_WRITTEN[recipe.privacy.mechanism]}, sampled at temperature {recipe.teach.temperature:g}, at most "
        f"{recipe.teach.max_new_tokens} tokens long. "
        f"Recipe `{report.recipe_digest}`, run `{report.run_id}`, lessons `{report.lessons_digest}` (sha256).\n\n"
        f"## Protection\n\n{report.protection}\n\n{_guarantee(report)}"
        f"## Screening\n\nDrafts dropped and spans replaced, by silo.\n\n{_screening(report)}\n"
        f"## Measured\n\n{_measured(report)}"
    )


def _teachers(recipe: Recipe) -> str:
    names = [_model(one) for one in recipe.teach.staff]
    if recipe.teach.route is None:
        return f"Each silo's teacher, {names[0]},"
    return f"Teachers with the models {', '.join(dict.fromkeys(names))}, routed by {recipe.teach.route.by},"


def _model(teacher: TeacherConfig) -> str:
    base = f"`{hub_name(teacher.model)}`"
    return f"{base} with the adapter `{hub_name(teacher.adapter)}`" if teacher.adapter else base


def _preferred(report: RoundReport) -> str:
    if not report.preference_pairs:
        return ""
    return (
        "\nAfter the lessons the student was trained on pairs that reviewers' decisions make "
        f"({report.preference_pairs} in all): lessons in `chosen.jsonl` were preferred to those in `rejected.jsonl` "
        "that have the same prompt.\n"
    )


def _guarantee(report: RoundReport) -> str:
    if not report.certificates:
        return ""
    rows = "".join(
        f"| {one.silo} | {ceiling(one.epsilon)} | {ceiling(one.delta)} | {one.unit}, {one.units} of them "
        f"| {one.adjacency} | {one.mechanism} |\n"
        for one in report.certificates
    )
    return (
        "| Silo | ε at most | δ | Unit | Adjacency | Mechanism |\n|---|---|---|---|---|---|\n"
        f"{rows}\nSigned, with all events, in `certificates/`. Who is in several silos adds up what bounds those.\n\n"
    )


def _screening(report: RoundReport) -> str:
    names = [silo.silo for silo in report.silos]
    rows = [("released", [silo.released for silo in report.silos])]
    rows += [(f"dropped: {name}", counts) for name, counts in by_key([silo.dropped for silo in report.silos])]
    rows += [(f"replaced: {name}", counts) for name, counts in by_key([silo.replaced for silo in report.silos])]
    head = f"| | {' | '.join(names)} |\n|---{'|---' * len(names)}|\n"
    return head + "".join(f"| {name} | {' | '.join(map(str, counts))} |\n" for name, counts in rows)


def _measured(report: RoundReport) -> str:
    family = families(report)[0]
    names = [f"{family}.{method}" for method in ("student", "tfidf")] + list(_MEASURED)
    figures = [figure(report, name) for name in names if report.metric(name)]
    rows = "".join(f"| {one.label} | {one.text} | {one.interval} | {one.n} | {one.how} |\n" for one in figures)
    return f"| Figure | Value | Interval | n | How |\n|---|---|---|---|---|\n{rows}"


def _size(rows: int) -> str:
    """The hub's word for it."""
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")
