"""Where a run's files lie, and how they are read back. Lessons are verified at every reading."""

from __future__ import annotations

import json
import operator
from pathlib import Path

import numpy as np

from tutelage.configs.jsonl import Rows
from tutelage.configs.records import Certificate, Lesson, RoundReport
from tutelage.flows.stage import Run
from tutelage.privacy import certificate, review
from tutelage.privacy.custody import KEY, PUBLIC_KEY
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.preferences import Preferences
from tutelage.privacy.release import LessonSet
from tutelage.privacy.vault import PrivateRecord, read_records


def records(run: Run, silo: str) -> Rows[PrivateRecord]:
    """A silo's private records."""
    return read_records(records_path(run, silo))


def spool_path(run: Run) -> Path:
    """A user's records while they are dealt out."""
    return run.dir.vault / "spool.jsonl"


def records_path(run: Run, silo: str) -> Path:
    return run.dir.silo(silo) / "records.jsonl"


def embeddings(run: Run, silo: str) -> np.ndarray:
    """(texts, 384): embeddings of the silo's `indexed_texts`."""
    loaded: np.ndarray = np.load(embeddings_path(run, silo), mmap_mode="r")
    return loaded


def embeddings_path(run: Run, silo: str) -> Path:
    return run.dir.silo(silo) / "embeddings.npy"


def scrubbed(run: Run, silo: str) -> Rows[str]:
    """A silo's `indexed_texts`, scrubbed."""
    return Rows(scrubbed_path(run, silo), operator.itemgetter("text"))


def scrubbed_path(run: Run, silo: str) -> Path:
    return run.dir.silo(silo) / "scrubbed.jsonl"


def owners(run: Run, silo: str) -> dict[str, str]:
    """Record id -> owner."""
    found: dict[str, str] = json.loads(owners_path(run, silo).read_text())
    return found


def owners_path(run: Run, silo: str) -> Path:
    return run.dir.silo(silo) / "owners.json"


def label_counts_path(run: Run, silo: str) -> Path:
    """Noised counts, kept so that a resumed run need not buy them again."""
    return run.dir.silo(silo) / "label_counts.json"


def deal_path(run: Run, round: int, silo: str) -> Path:
    """Which records stand behind which texts of a round."""
    return run.dir.silo(silo) / f"round-{round}" / "deal.json"


def journal_path(run: Run, round: int, silo: str, bracket: str | None = None) -> Path:
    """Texts of a formal mechanism as they are written; `bracket`: of ε = 0 or ε = ∞."""
    return run.dir.silo(silo) / f"round-{round}" / f"written{f'-epsilon-{bracket}' if bracket else ''}.jsonl"


def spending_path(run: Run, round: int, silo: str) -> Path:
    """What several teachers of a silo spend, call by call, and what they wrote for it."""
    return run.dir.silo(silo) / f"round-{round}" / "spending.jsonl"


def ledgers_path(run: Run) -> Path:
    """The folder of ledgers: outside the run, for they outlive it."""
    formal = run.recipe.formal
    return formal.ledgers if formal and formal.ledgers else run.dir.root.parent / "ledgers"


def registry_path(run: Run) -> Path:
    """The folder of published students, beside the run."""
    return run.dir.root.parent / "registry"


def coordinator_key_path(runs: Path) -> Path:
    """The key that all runs of a folder ask silos with that are elsewhere."""
    return runs / "coordinator" / "vault" / "key.pem"


def key_path(run: Run, silo: str) -> Path:
    return run.dir.silo(silo) / "key.pem"


def drafts_path(run: Run, round: int, silo: str, bracket: str | None = None) -> Path:
    return run.dir.silo(silo) / f"round-{round}" / f"drafts{f'-epsilon-{bracket}' if bracket else ''}.jsonl"


def evaluation_path(run: Run, name: str) -> Path:
    """`test`, `members`, `nonmembers` or `canaries`: private, and no teacher's."""
    return run.dir.vault / "evaluation" / f"{name}.jsonl"


def adapter_path(run: Run, round: int) -> Path:
    """The student of a round, in the vault whether or not it passes."""
    return run.dir.vault / f"round-{round}" / "adapter"


def bracket_path(run: Run, round: int, bracket: str) -> Path:
    """The student on what a bracket's teachers wrote. Never leaves the vault."""
    return run.dir.vault / f"round-{round}" / f"epsilon-{bracket}"


def certificate_path(run: Run, round: int, silo: str) -> Path:
    """What a silo's lessons are guaranteed to give away at most."""
    return certificates_path(run, round) / f"{silo}.json"


def certificates_path(run: Run, round: int) -> Path:
    """The folder of all silos' certificates; not there where none is promised anything."""
    return _released(run, round) / "certificates"


def auxiliary_path(run: Run, round: int) -> Path:
    """The attacker's model, tuned on the released texts. Never leaves the vault."""
    return run.dir.vault / f"round-{round}" / "auxiliary"


def upper_line_path(run: Run, round: int) -> Path:
    """The reference student on original records. Never leaves the vault."""
    return run.dir.vault / f"round-{round}" / "upper-line"


def public_keys_path(run: Run) -> Path:
    return run.dir.release / "public_keys.json"


def released_path(run: Run, round: int, silo: str) -> Path:
    """What one silo released in a round."""
    return _released(run, round) / "silos" / f"{silo}.jsonl"


def lessons_path(run: Run, round: int) -> Path:
    """What the round's student learns from."""
    return _released(run, round) / "lessons.jsonl"


def preferences_paths(run: Run, round: int) -> tuple[Path, Path]:
    """The lessons that were chosen and those that were rejected, where reviewers' decisions make pairs of them."""
    return _released(run, round) / "chosen.jsonl", _released(run, round) / "rejected.jsonl"


def review_path(run: Run) -> Path:
    """What people decided about released texts, as they go."""
    return run.dir.root / review.FILE


def heeded_path(run: Run, round: int) -> Path:
    """What they had decided when a round chose its lessons."""
    return run.dir.vault / f"round-{round}" / review.FILE


def instruction_path(run: Run, round: int) -> Path:
    return _released(run, round) / "instruction.txt"


def report_path(run: Run, round: int) -> Path:
    """The report in full, figures marked internal included: for the silos."""
    return run.dir.vault / f"round-{round}" / "report.json"


def public_report_path(run: Run, round: int) -> Path:
    """The report without internal figures: it may leave."""
    return _released(run, round) / "report.json"


def data_card_path(run: Run, round: int) -> Path:
    """README.md beside a round's released texts."""
    return _released(run, round) / "README.md"


def lessons(run: Run, round: int) -> LessonSet:
    """The lessons the round's student learns from; every signature is verified."""
    return LessonSet.load(lessons_path(run, round), run.id, public_keys(run))


def preferences(run: Run, round: int) -> Preferences | None:
    """The pairs that the round's student is trained on; every signature is verified. None where it isn't asked for."""
    if run.recipe.student.dpo is None:
        return None
    keys = public_keys(run)
    return Preferences(*(LessonSet.load(path, run.id, keys) for path in preferences_paths(run, round)))


def taught(run: Run, round: int) -> list[Lesson]:
    """Every lesson that the round's student was trained on, those of pairs among them: some are in it twice."""
    pairs = preferences(run, round)
    return [*lessons(run, round), *(pairs.chosen if pairs else ()), *(pairs.rejected if pairs else ())]


def all_lessons(run: Run, round: int) -> LessonSet:
    """Everything released up to a round, instructions included; every signature is verified."""
    keys = public_keys(run)
    every = [(earlier, silo) for earlier in range(1, round + 1) for silo in run.silos]
    return LessonSet.combine(
        [LessonSet.load(released_path(run, earlier, silo), run.id, keys) for earlier, silo in every]
    )


def topics(run: Run, round: int) -> dict[str, float]:
    """What a round's teachers write more of. A silo that is elsewhere was told; here the round before measured it."""
    if run.silo:
        told: dict[str, float] = run.facts(f"round-{round}/begin-{run.silo}")["topics"]
        return told
    measured: dict[str, float] = run.facts(f"round-{round - 1}/measure")["topics"] if round > 1 else {}
    return measured


def instruction(run: Run, round: int) -> str:
    return instruction_path(run, round).read_text().strip()


def certificates(run: Run, round: int) -> tuple[Certificate, ...]:
    """One per silo, every signature verified; none where lessons were screened only."""
    if not run.recipe.formal:
        return ()
    keys = public_keys(run)
    return tuple(certificate.load(certificate_path(run, round, silo), keys) for silo in run.silos)


def report(run: Run, round: int) -> RoundReport:
    return RoundReport.model_validate_json(report_path(run, round).read_text())


def reports(run: Run) -> list[RoundReport]:
    """The reports of the rounds finished so far."""
    return [report(run, n) for n in range(1, run.recipe.rounds + 1) if report_path(run, n).exists()]


def _released(run: Run, round: int) -> Path:
    return run.dir.release / f"round-{round}"


def run_key(run: Run) -> SiloKey:
    """The run's own, which signs its custody log and edited lessons."""
    return SiloKey.load(run.dir.root / KEY)


def public_keys(run: Run) -> dict[str, str]:
    """Silo -> its public key in hex."""
    keys: dict[str, str] = json.loads(public_keys_path(run).read_text())
    # A silo that is elsewhere has written down the key of the run there, whose reviewers' edits it meets.
    return {review.SILO: (run.dir.root / PUBLIC_KEY).read_text().strip(), **keys}
