"""A person's word between gate and registry: `gate.approval: true`, `tutelage approve RUN`.

A run whose recipe asks for it stops after each round that its gate has passed. Whoever approves or declines says who
they are and why; both stand in the run's signed log. Then the run goes on: what was approved is published, and the next
round heeds what reviewers decided meanwhile.
"""

from __future__ import annotations

import datetime
import json

from pydantic import BaseModel, Field

from tutelage.configs.errors import UserError
from tutelage.configs.records import Approval
from tutelage.flows import layout
from tutelage.flows.stage import Done, Manifest, Run, by_hand
from tutelage.privacy.custody import Custody


class Word(BaseModel):
    """The form that a person fills in."""

    approved: bool = Field(description="Whether the student may be published.")
    by: str = Field(min_length=3, max_length=100, description="Your name; it stands in the log and on the model card.")
    reason: str = Field(min_length=3, max_length=2000, description="Why, for all to read.")


def waiting(run: Run) -> int | None:
    """The round that waits for a person; None: none does."""
    if not run.recipe.gate.approval:
        return None
    return next(
        (one.round for one in layout.reports(run) if one.decision.passed and manifest(run, one.round) is None), None
    )


def declined(run: Run) -> list[int]:
    """The rounds that a person declined."""
    words = {one.round: approval(run, one.round) for one in layout.reports(run)} if run.recipe.gate.approval else {}
    return [round for round, word in words.items() if word is not None and not word.approved]


def manifest(run: Run, round: int) -> Manifest | None:
    """The statement's manifest, once a person has decided about a round. One that the log doesn't know is none."""
    path = run.dir.manifest_path(_name(round))
    if not path.exists() or not Custody(run.dir.root).knows(_name(round)):
        return None
    found: Manifest = json.loads(path.read_text())
    return found


def approval(run: Run, round: int) -> Approval | None:
    """What a person decided about a round."""
    found = manifest(run, round)
    return Approval(**found["facts"]) if found else None


def decide(run: Run, round: int, *, approved: bool, by: str, reason: str) -> Approval:
    """Approve or decline a round's student, for good.

    Args:
        run: A run that waits.
        round: Which round.
        approved: Whether it may be published.
        by: Who decides.
        reason: Why.

    Raises:
        UserError: the round isn't finished, was refused by its gate, or has been decided about.
    """
    root = run.dir.root
    if not layout.report_path(run, round).exists():
        raise UserError(f"round {round} is not finished", file=root, remedy=f"tutelage resume {root}")
    if not run.recipe.gate.approval:
        raise UserError("this run's recipe asks for no approval", file=root, key="gate.approval")
    if not layout.report(run, round).decision.passed:
        raise UserError(
            f"the gate of round {round} refused: there is nothing to approve",
            file=root,
            remedy=f"tutelage publish {root} --override, if it must be",
        )
    earlier = approval(run, round)
    if earlier:
        said = "approved" if earlier.approved else "declined"
        raise UserError(
            f"round {round} was {said} by {earlier.by} already", file=root, remedy=f"tutelage resume {root}"
        )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made = Approval(approved=approved, by=by, reason=reason, at=now)

    def body(run: Run, round: int) -> Done:
        return [], made.model_dump()

    by_hand(run, _name(round), body, round, after=[f"round-{round}/judge_round", f"round-{round}/learn"])
    return made


def _name(round: int) -> str:
    return f"round-{round}/approve"
