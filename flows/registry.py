"""A run's student goes into the registry beside the run."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.models import hub_name, load_tokenizer, resolve_model
from tutelage.configs.records import Approval, Override
from tutelage.flows import layout
from tutelage.flows.stage import Done, Run, by_hand
from tutelage.flows.verify import verify_run
from tutelage.students import publish, targets


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


def send_round(run: Run, round: int, target: str) -> str:
    """Put a round's published student where others get it, with its report and certificates beside it.

    Args:
        run: The run.
        round: One whose student is in the registry.
        target: See `students.targets`.

    Returns:
        Where it is.

    Raises:
        UserError: the round has no published student, or the target can't be used.
        PrivacyError: something of the run is not as its signed log says.
    """
    version = published_version(run, round)
    checked = verify_run(run.dir.root)
    if checked.findings:
        first = checked.findings[0]
        raise PrivacyError(
            f"{len(checked.findings)} findings in the run's chain of custody, first {first.where}: {first.problem} "
            f"(`tutelage audit verify {run.dir.root}`)"
        )
    report = layout.report(run, round)
    about = {"run_id": run.id, "round": round, "adapter_digest": report.adapter_digest}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "version"
        shutil.copytree(version, bundle)
        page, certificates = run.dir.release / "report.html", layout.certificates_path(run, round)
        if page.exists():
            shutil.copyfile(page, bundle / "report.html")
        if certificates.is_dir():
            shutil.copytree(certificates, bundle / "certificates")
        return targets.send(bundle, target, run.recipe.name, about)


def published_version(run: Run, round: int) -> Path:
    """The registry's folder of a round's student.

    Raises:
        UserError: it has none: refused, declined, or not there yet.
    """
    root = run.dir.root
    overridden = run.dir.manifest_path(f"round-{round}/override")
    done = overridden if overridden.exists() else run.dir.manifest_path(f"round-{round}/publish_student")
    if not done.exists():
        raise UserError(f"round {round} is not published yet", file=root, remedy=f"tutelage resume {root}")
    name = json.loads(done.read_text())["facts"]["published"]
    if name is None:
        raise UserError(f"the student of round {round} was refused", file=root, remedy=f"tutelage publish {root}")
    return layout.registry_path(run) / run.recipe.name / str(name)


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
