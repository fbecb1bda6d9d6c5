"""What a run of two silos and two rounds released, and a vault beside it with something to look for."""

from __future__ import annotations

from pathlib import Path

from tutelage.configs.jsonl import write_jsonl
from tutelage.configs.records import Lesson
from tutelage.configs.store import canonical_json, write_atomic
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.release import _payload

SECRET = "zq-nobody-may-read-this"
TEXTS = (
    ("ham", "Re: the patch for the parser\nIt builds now, thanks to <PERSON>. Shall I commit it on Friday?"),
    ("spam", "Lower your monthly payment today! Rates have never been this low, call <PHONE_NUMBER> for a quote."),
    ("ham", "The list of packages has changed again, so please read the notes before you update anything."),
    ("spam", "You have been chosen to win a free holiday. Click <URL> now, this offer ends tonight."),
    ("ham", "Minutes of the meeting: we agreed on the date, <PERSON> books the room, everybody brings a laptop."),
    ("spam", "Lower your monthly payment today! Rates have never been this low, call <PHONE_NUMBER> for an offer."),
    ("ham", "<script>alert('x')</script> is how the bug showed; \"quotes\" & ampersands broke the page as well."),
    ("spam", "Make money from home with no experience, thousands did already. Reply with YES to begin."),
)


def small_release(root: Path, texts: tuple[tuple[str, str], ...] = TEXTS) -> list[Lesson]:
    """Make the folder, and give back all lessons in order. Round 2 has the same texts again, and an instruction."""
    write_atomic(root / "vault" / "silos" / "north" / "records.jsonl", canonical_json({"text": SECRET}) + "\n")
    every, keys = [], {}
    for silo in ("north", "south"):
        key = SiloKey.create(root / "vault" / "silos" / silo / "key.pem")
        keys[silo] = key.public_hex
    for round in (1, 2):
        for silo in ("north", "south"):
            key = SiloKey.load(root / "vault" / "silos" / silo / "key.pem")
            half = texts[: len(texts) // 2] if silo == "north" else texts[len(texts) // 2 :]
            made = [_lesson(key, silo, round, i, *one) for i, one in enumerate(half)]
            if round == 2:
                made.append(_lesson(key, silo, round, 99, "", "Say spam if it wants money, else ham.", "instruction"))
            write_jsonl(root / "release" / f"round-{round}" / "silos" / f"{silo}.jsonl", [m.model_dump() for m in made])
            every += made
        chosen = [one.model_dump() for one in every if one.kind == "example"][::2]
        write_jsonl(root / "release" / f"round-{round}" / "lessons.jsonl", chosen)
    write_atomic(root / "release" / "public_keys.json", canonical_json(keys))
    write_atomic(root / "release" / "report.html", "<!DOCTYPE html><title>the report</title>")
    described = {"run_id": "small-0", "recipe": {"name": "small", "task": {"labels": {"ham": "", "spam": ""}}}}
    write_atomic(root / "run.json", canonical_json(described))
    return every


def _lesson(key: SiloKey, silo: str, round: int, number: int, label: str, text: str, kind: str = "example") -> Lesson:
    lesson = Lesson.model_validate(
        {"id": f"{silo}-{round}-{number:04x}", "kind": kind, "silo": silo, "round": round, "prompt": text,
         "completion": label, "mechanism": "screened", "prompt_version": "1", "signature": ""}
    )  # fmt: skip
    return lesson.model_copy(update={"signature": key.sign(_payload(lesson.model_dump(), "small-0")).hex()})
