"""A run's student goes into the registry beside the run."""

from __future__ import annotations

from pathlib import Path

from tutelage.configs.errors import UserError
from tutelage.configs.models import hub_name, load_tokenizer, resolve_model
from tutelage.configs.records import Approval, Override
from tutelage.flows import layout
from tutelage.flows.stage import Done, Run, by_hand
from tutelage.students import publish


def publish_round(run: Run, round: int, *, override: Override | None = None, approval: Approval | None = None) -> Path:
    """Publish a round's student as its recipe's next version.

    Args:
        run: The run.
        round: A finished one.
        override: Who publishes it although its gate refused.
        approval: Who approved what its gate passed, where the recipe asks for that.

    Returns:
        The version's folder.

    Raises:
        UserError: the round is not finished, or had no student.
        PrivacyError: its gate refused, and nobody overrides that.
    """
    if not layout.report_path(run, round).exists():
        raise UserError(f"round {round} is not finished", file=run.dir.root, remedy=f"tutelage resume {run.dir.root}")
    report = layout.report(run, round)
    return publish.publish(
        layout.adapter_path(run, round),
        layout.registry_path(run),
        run.recipe.name,
        report.decision,
        report,
        base_name=hub_name(run.recipe.student.base),
        tokenizer=load_tokenizer(resolve_model(run.recipe.student.base)),
        override=override,
        approval=approval,
    )


def publish_by_hand(run: Run, round: int, override: Override) -> Path:
    """Publish a refused student, and write into the run's log who did so and why.

    Raises:
        UserError: the round is not finished, had no student, or was not refused.
    """

    def body(run: Run, round: int) -> Done:
        target = publish_round(run, round, override=override)
        return [], {"published": target.name, **override.model_dump()}

    after = [f"round-{round}/judge_round", f"round-{round}/learn"]
    made = by_hand(run, f"round-{round}/override", body, round, after=after)
    return layout.registry_path(run) / run.recipe.name / str(made["facts"]["published"])
