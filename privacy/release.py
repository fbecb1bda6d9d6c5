"""The one door: drafts become signed lessons here and nowhere else.

`release` scrubs a silo's drafts, drops those that copy its records, and signs what is left with the silo's key. Drafts
written under differential privacy are not compared with records: what that drops would be told to whoever counts. A
`LessonSet` cannot be made in any other way than by `release` or by loading a file whose signatures all hold, so a
function that takes a `LessonSet` cannot be handed unscreened text.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from tutelage.configs.errors import PrivacyError
from tutelage.configs.jsonl import read_jsonl, write_jsonl
from tutelage.configs.records import Example, Lesson
from tutelage.configs.schema import ScreenConfig, Structure
from tutelage.configs.store import canonical_json, digest
from tutelage.privacy import review
from tutelage.privacy.control_tokens import without_control_tokens
from tutelage.privacy.drafts import Draft
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.near_duplicates import near_duplicate_groups
from tutelage.privacy.overlap import Corpus
from tutelage.privacy.pii import PLACEHOLDER, Scrubber
from tutelage.privacy.similarity import words
from tutelage.privacy.vault import PrivateRecord

if TYPE_CHECKING:
    import numpy as np

_SEAL = object()
"""Held by this module only: the proof that a `LessonSet` is made from released or verified lessons."""


class LessonSet:
    """Lessons of one run that are known to be released: immutable, and not to be made by hand.

    It comes from `release`, from `LessonSet.load`, or from other sets by `combine` and `select`.
    """

    __slots__ = ("lessons", "run_id")

    lessons: tuple[Lesson, ...]
    run_id: str

    def __init__(self, lessons: Iterable[Lesson], run_id: str, seal: object = None) -> None:
        if seal is not _SEAL:
            raise PrivacyError("a LessonSet is made by release() or LessonSet.load() only")
        object.__setattr__(self, "lessons", tuple(lessons))
        object.__setattr__(self, "run_id", run_id)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise PrivacyError("a LessonSet cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise PrivacyError("a LessonSet cannot be changed")

    def __len__(self) -> int:
        return len(self.lessons)

    def __iter__(self) -> Iterator[Lesson]:
        return iter(self.lessons)

    def __repr__(self) -> str:
        return f"<LessonSet of {len(self)} lessons>"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError("a LessonSet must not be pickled: save it, and load it where it is needed")

    @classmethod
    def combine(cls, sets: Sequence[LessonSet]) -> LessonSet:
        """Several sets of one run as one, in the order given.

        Raises:
            ValueError: no set at all.
            PrivacyError: sets of different runs, or a lesson that is in two of them.
        """
        if not sets:
            raise ValueError("there is nothing to combine")
        if len({one.run_id for one in sets}) > 1:
            raise PrivacyError("lessons of different runs do not go into one set")
        lessons = [lesson for one in sets for lesson in one]
        if len({lesson.id for lesson in lessons}) < len(lessons):
            raise PrivacyError("a lesson is in two of the sets")
        return cls(lessons, sets[0].run_id, _SEAL)

    def examples(self) -> list[Example]:
        """The synthetic examples among them, instructions left out."""
        return [lesson.example() for lesson in self.lessons if lesson.kind == "example"]

    def select(self, ids: Iterable[str]) -> LessonSet:
        """The lessons with these ids, in the order asked for.

        Raises:
            PrivacyError: an id that is not in the set, or one asked for twice.
        """
        by_id = {lesson.id: lesson for lesson in self.lessons}
        wanted = list(ids)
        if len(set(wanted)) < len(wanted) or not by_id.keys() >= set(wanted):
            raise PrivacyError("only lessons of the set, each once, can be selected")
        return LessonSet((by_id[one] for one in wanted), self.run_id, _SEAL)

    def save(self, path: Path) -> Path:
        """Write JSONL, one lesson per line, as `datasets.load_dataset("json", ...)` reads it."""
        return write_jsonl(path, [lesson.model_dump() for lesson in self.lessons])

    @classmethod
    def load(cls, path: Path, run_id: str, public_keys: Mapping[str, str]) -> LessonSet:
        """Read lessons and verify every signature.

        Args:
            path: What `save` wrote.
            run_id: The run the lessons must have been signed for.
            public_keys: Silo name -> its public key in hex; and `review.SILO` -> the run's.

        Raises:
            PrivacyError: a lesson that is forged, edited, unsigned, in the file twice, or of an unknown silo.
            UserError: the file is missing or not JSONL.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        lessons: dict[str, Lesson] = {}
        for number, row in enumerate(read_jsonl(path), 1):
            refused = f"{path}, row {number}: "
            try:
                lesson = Lesson.model_validate(row, strict=True)
            except ValidationError:
                raise PrivacyError(refused + "this is not a signed lesson") from None
            if lesson.silo not in public_keys:
                raise PrivacyError(refused + "the lesson is of a silo that is not in this run")
            if lesson.id in lessons:
                raise PrivacyError(refused + "the lesson is in the file twice")
            try:
                key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_keys[lesson.silo]))
                key.verify(bytes.fromhex(lesson.signature), _payload(lesson.model_dump(), run_id))
            except (InvalidSignature, ValueError):
                raise PrivacyError(refused + "the signature does not hold") from None
            lessons[lesson.id] = lesson
        return cls(lessons.values(), run_id, _SEAL)


def _payload(fields: dict[str, Any], run_id: str) -> bytes:
    """What is signed: every field but the signature, and the run."""
    return canonical_json({**fields, "signature": None, "run_id": run_id}).encode()


@dataclass(frozen=True, slots=True)
class Released:
    """What `release` let through, and counts of what it did."""

    lessons: LessonSet
    dropped: dict[str, int]
    """Reason -> drafts dropped for it; each draft counts once, for the first reason that applies."""
    replaced: dict[str, int]
    """PII entity -> spans replaced, over all drafts."""


@dataclass(frozen=True, slots=True, repr=False)
class _Candidate:
    """A draft on its way: cleaned parts as measured, and scrubbed ones as released."""

    draft: Draft
    raw: tuple[str, ...]
    prompt: str
    completion: str


def release(
    drafts: Sequence[Draft],
    *,
    records: Sequence[PrivateRecord] | None,
    silo: str,
    round: int,
    run_id: str,
    screen: ScreenConfig,
    key: SiloKey,
    scrubber: Scrubber,
    public_completions: frozenset[str] = frozenset(),
    embeddings: np.ndarray | None = None,
    scrubbed: Sequence[str] | None = None,
    structure: Structure | None = None,
) -> Released:
    """Screen one silo's drafts and sign what passes.

    Personal data is replaced first. Then a draft is dropped for the first of these that applies: `empty`,
    `too_short`, `unfit` (its completion, as scrubbed, lacks the structure that the task asks for), `duplicate_draft`
    (the same as, or a near-duplicate of, an earlier draft of its kind), and against the silo's records, unless
    `screen.compare` is off, `common_run`, `ngram_overlap`, `near_duplicate`, `semantic_neighbour`.

    Args:
        drafts: What the silo's teacher wrote.
        records: The silo's own records, all of them. None for drafts of a formal mechanism, which only what lies in the
            drafts themselves may drop: that is post-processing, and free.
        silo: The silo's name, as the lessons will carry it.
        round: 1-based.
        run_id: Signed along with each lesson, so that it is of no use in another run.
        screen: The thresholds.
        key: The silo's key.
        scrubber: Built from `screen.entities` and `screen.pii_score`.
        public_completions: The labels of a classification task. A completion outside it is scrubbed and, where it
            has `min_words` words, measured like a prompt; a shorter answer ("yes", "42") recurs without being copied.
        embeddings: Of the silo's `indexed_texts`, where they have been computed before.
        scrubbed: The same texts as `scrubber` leaves them, where that has been done before.
        structure: What every example's completion must be; None: any text.

    Returns:
        The signed lessons in the order of the drafts, and counts. The same inputs give the same lessons, bit by bit.

    Raises:
        PrivacyError: screened drafts without records, or drafts of a formal mechanism with them.
    """
    if any((draft.mechanism == "screened") == (records is None) for draft in drafts):
        raise PrivacyError(
            "drafts are compared with their silo's records if, and only if, no formal mechanism wrote them"
        )
    candidates, replaced = _scrub(drafts, scrubber, screen, public_completions)
    dropped: Counter[str] = Counter()
    candidates = _drop_poor(candidates, screen, dropped, structure)
    if candidates and records is not None and screen.compare:
        corpus = Corpus(
            records,
            ngram=screen.ngram,
            scrubber=scrubber,
            public_completions=public_completions,
            embeddings=embeddings,
            scrubbed=scrubbed,
        )
        candidates = _drop_copies(candidates, corpus, screen, dropped)
    lessons = [_sign(candidate, silo, round, run_id, key) for candidate in candidates]
    return Released(LessonSet(lessons, run_id, _SEAL), dict(dropped), replaced)


def reviewed(
    lessons: LessonSet,
    decisions: Mapping[str, review.Decision],
    *,
    key: SiloKey,
    scrubber: Scrubber,
    public_completions: frozenset[str] = frozenset(),
    structure: Structure | None = None,
) -> LessonSet:
    """What reviewers leave of some lessons: rejected ones are gone, edited ones are as they were edited.

    What was released is all that a reviewer sees, so an edit is post-processing; personal data that they wrote into it
    is replaced all the same.

    Args:
        lessons: Released ones.
        decisions: Lesson id -> decision; those about other lessons are passed over.
        key: The run's, which signs edited lessons as `review.SILO`'s.
        scrubber: As for `release`.
        public_completions: As for `release`.
        structure: As for `release`; an example that was edited and lacks it is left out.

    Returns:
        The lessons in the same order, under the same ids.
    """
    kept = []
    for lesson in lessons:
        decision = decisions.get(lesson.id)
        if decision is None or decision.verdict in ("accept", "open"):
            kept.append(lesson)
        elif decision.verdict == "edit":
            assert decision.prompt is not None
            assert decision.completion is not None
            draft = Draft(
                lesson.id, lesson.kind, decision.prompt, decision.completion, lesson.prompt_version, lesson.mechanism
            )
            [edited], _ = _scrub([draft], scrubber, ScreenConfig(), public_completions)
            if _unfit(edited, structure):
                continue
            changes = {"silo": review.SILO, "prompt": edited.prompt, "completion": edited.completion, "signature": ""}
            unsigned = lesson.model_copy(update=changes)
            signature = key.sign(_payload(unsigned.model_dump(), lessons.run_id)).hex()
            kept.append(unsigned.model_copy(update={"signature": signature}))
    return LessonSet(kept, lessons.run_id, _SEAL)


def cleaned(
    drafts: Sequence[Draft],
    screen: ScreenConfig,
    scrubber: Scrubber,
    public_completions: frozenset[str],
    structure: Structure | None = None,
) -> list[Draft]:
    """What of some drafts the part of the screen lets through that looks at drafts alone, scrubbed and not released."""
    candidates, _ = _scrub(drafts, scrubber, screen, public_completions)
    kept = _drop_poor(candidates, screen, Counter(), structure)
    return [dataclasses.replace(one.draft, prompt=one.prompt, completion=one.completion) for one in kept]


def _clean(text: str) -> str:
    """Drop what is invisible or commands a model: format characters, lone surrogates, chat-template tokens."""
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cs"))
    return without_control_tokens(text).strip()


def _scrub(
    drafts: Sequence[Draft], scrubber: Scrubber, screen: ScreenConfig, public_completions: frozenset[str]
) -> tuple[list[_Candidate], dict[str, int]]:
    prompts = [_clean(draft.prompt) for draft in drafts]
    completions = [_clean(draft.completion) for draft in drafts]
    private = [i for i, completion in enumerate(completions) if completion not in public_completions]
    scrubbed = scrubber.scrub_many([*prompts, *(completions[i] for i in private)])
    released = dict(zip(private, scrubbed[len(prompts) :], strict=True))
    candidates = []
    for i, draft in enumerate(drafts):
        measured = [prompts[i]]
        if i in released and len(words(completions[i])) >= screen.min_words:
            measured.append(completions[i])
        completion = released[i].text if i in released else completions[i]
        candidates.append(_Candidate(draft, tuple(measured), scrubbed[i].text, completion))
    replaced: Counter[str] = Counter()
    for one in scrubbed:
        replaced.update(one.replaced)
    return candidates, dict(replaced)


def _unfit(one: _Candidate, structure: Structure | None) -> bool:
    return bool(structure and one.draft.kind == "example" and structure.read(one.completion) != one.completion)


def _drop_poor(
    candidates: list[_Candidate], screen: ScreenConfig, dropped: Counter[str], structure: Structure | None
) -> list[_Candidate]:
    """Drop drafts that are empty, too short, unfit, or like an earlier one."""
    long_enough = []
    for one in candidates:
        if not one.prompt or (one.draft.kind == "example" and not one.completion):
            dropped["empty"] += 1
        elif len(words(PLACEHOLDER.sub(" ", one.prompt))) < screen.min_words:
            dropped["too_short"] += 1
        elif _unfit(one, structure):
            dropped["unfit"] += 1
        else:
            long_enough.append(one)
    groups = near_duplicate_groups([one.prompt for one in long_enough], screen.max_jaccard)
    kept, seen = [], set()
    for one, group in zip(long_enough, groups, strict=True):
        if (one.draft.kind, group) in seen:
            dropped["duplicate_draft"] += 1
        else:
            seen.add((one.draft.kind, group))
            kept.append(one)
    return kept


def _drop_copies(
    candidates: list[_Candidate], corpus: Corpus, screen: ScreenConfig, dropped: Counter[str]
) -> list[_Candidate]:
    """Drop drafts any part of which is too near to a record; the slow measure is taken of the others only."""

    def reason(run: int, share: float, jaccard: float) -> str | None:
        if run > screen.max_common_run_tokens:
            return "common_run"
        if share > screen.max_ngram_share:
            return "ngram_overlap"
        return "near_duplicate" if jaccard >= screen.max_jaccard else None

    original = []
    figures = iter(corpus.copying([part for one in candidates for part in one.raw]))
    for one in candidates:
        worst = [max(column) for column in zip(*(next(figures) for _ in one.raw), strict=True)]
        why = reason(int(worst[0]), worst[1], worst[2])
        if why:
            dropped[why] += 1
        else:
            original.append(one)
    kept = []
    cosines = iter(corpus.cosines([part for one in original for part in one.raw]))
    for one in original:
        if max(next(cosines) for _ in one.raw) >= screen.max_cosine:
            dropped["semantic_neighbour"] += 1
        else:
            kept.append(one)
    return kept


def _sign(candidate: _Candidate, silo: str, round: int, run_id: str, key: SiloKey) -> Lesson:
    draft = candidate.draft
    content = digest([run_id, silo, round, draft.kind, candidate.prompt, candidate.completion])
    lesson = Lesson(
        id=f"{silo}-{round}-{content[:16]}",
        kind=draft.kind,
        silo=silo,
        round=round,
        prompt=candidate.prompt,
        completion=candidate.completion,
        mechanism=draft.mechanism,
        prompt_version=draft.prompt_version,
        signature="",
    )
    signature = key.sign(_payload(lesson.model_dump(), run_id)).hex()
    return lesson.model_copy(update={"signature": signature})
