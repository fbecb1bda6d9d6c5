"""Whether a run's folder is what its custody log says, and if not, what was changed and what came of it.

Reads only, and needs neither Prefect nor torch. See privacy/custody.py for the log and for what it can't prove.

Every file must be answered for by a statement, but for the log itself, `lock` while it is empty, the tracebacks in
vault/errors, and review.jsonl, to which people add between rounds. Released lessons and certificates are checked under
the silos' own keys besides, and certificates against the silos' ledgers, by their chain of hashes only: `tutelage audit
recompute` rebuilds what they claim.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.store import file_digest
from tutelage.privacy import custody, review
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.statements import FOUND, REPORT, RUN, Chain, Statement, Tags, pinned_key, read_chain

LOCK = "lock"
SILO_KEYS = "release/public_keys.json"
_LESSONS = re.compile(r"release/round-\d+/(lessons|silos/.+)\.jsonl")
_CERTIFICATE = re.compile(r"release/(round-\d+)/certificates/(.+)\.json")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was signed."""

    kind: str
    """`changed`, `missing`, `added`, `unchecked`: files. `log`, `head`: the log itself. `found`: stages whose making it
    didn't see. `stale`: a stage whose material was made anew. `signature`, `ledger`, `registry`: what was released."""
    where: str
    """A file, named from the run's folder, with the line where there is one."""
    problem: str
    stage: str | None = None
    """The stage that left it."""
    dependents: tuple[str, ...] = ()
    """Stages that came from it, directly or not, in the order of the log."""


@dataclass
class Checked:
    """What was found."""

    chain: Chain
    files: int = 0
    """How many are as they were signed."""
    bytes: int = 0
    """Their size."""
    findings: list[Finding] = field(default_factory=list)
    """Empty: everything holds."""
    notes: list[str] = field(default_factory=list)
    """What was not looked at, in sentences."""
    digests: dict[str, str] = field(default_factory=dict)
    """File -> sha256 (hex), of those that are as they were signed."""

    def stages(self) -> dict[str, Statement]:
        """Stage -> its last statement."""
        return {name: one for name, one in self.chain.latest().items() if name not in (RUN, REPORT)}


def check(root: Path, *, expect_head: str | None = None, released: bool = False) -> Checked:
    """Check a run's folder against its log.

    Args:
        root: The folder.
        expect_head: A head (hex) that was written down earlier: the log must have grown from it.
        released: Look at the log and release/ only, as they are passed on: without the vault's key.

    Raises:
        UserError: this is no run, nothing of it is finished, a process is working on it, or it can't be read.
    """
    if expect_head is not None and not _HEX.fullmatch(expect_head):
        raise UserError("this is no head of a log", key="--expect-head", remedy="64 hex digits, as verify shows them")
    if not any((root / name).exists() for name in (custody.LOG, custody.RECIPE, custody.KEY)):
        raise UserError("this is not a run folder", file=root, remedy="`tutelage list` shows the runs")
    try:
        with _unused(root):
            return _check(root, expect_head, released)
    except PermissionError as error:
        raise UserError(
            "cannot be read by this user", file=error.filename, remedy="be its owner; --released needs no vault"
        ) from None


def _check(root: Path, expect_head: str | None, released: bool) -> Checked:
    log = root / custody.LOG
    data = log.read_bytes() if log.is_file() and not log.is_symlink() else b""
    if not data and not released and not any((root / "stages").rglob("*.json")):
        raise UserError("no stage of this run is finished yet", file=root, remedy=f"tutelage resume {root}")
    findings: list[Finding] = []
    public_key, tags = _keys(root, data, released, findings)
    chain = read_chain(data, public_key)
    checked = Checked(chain, findings=findings)
    findings += _log_findings(chain, expect_head)
    _check_files(root, checked, tags, released)
    findings += _stale(chain)
    if SILO_KEYS in checked.digests:
        _check_released(root, checked)
    if not any(name.endswith("/publish_student") for name in chain.latest()):
        checked.notes.append("no round is finished: what a stage at work, or killed, has written is named as added")
    return checked


@contextlib.contextmanager
def _unused(root: Path) -> Iterator[None]:
    """Hold a run's lock, where there is one, against whoever would write. Nothing is made or changed."""
    path = root / LOCK
    if not path.is_file():
        yield
        return
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError("another process holds this run folder", file=root, remedy="wait for it, or stop it") from None
    finally:
        os.close(file)


# ---- the log ----------------------------------------------------------------------------------------------------


def _keys(root: Path, data: bytes, released: bool, findings: list[Finding]) -> tuple[str, Tags]:
    """The public key to go by, and the tags, if the vault's key is that one's.

    The key stands in three places. Two that agree are believed, else the vault is.
    """
    path, key = root / custody.KEY, None
    if not released and path.exists():
        try:
            key = SiloKey.load(path)
        except UserError as error:
            findings.append(Finding("changed", custody.KEY, error.problem, RUN))
    shown = root / custody.PUBLIC_KEY
    public = shown.read_text(errors="replace").strip() if shown.is_file() else ""
    places = [name for name in (key and key.public_hex, public, pinned_key(data)) if name and _HEX.fullmatch(name)]
    believed = Counter(places).most_common(1)[0][0] if places else "0" * 64  # of equals the first, the vault's
    if key and key.public_hex != believed:
        findings.append(Finding("changed", custody.KEY, "is not the key that signed the log", RUN))
        key = None
    return believed, Tags(None) if key is None else Tags.of(key)


def _log_findings(chain: Chain, expect_head: str | None) -> list[Finding]:
    found = []
    if not chain.lines:
        found.append(Finding("log", custody.LOG, "is gone, or was never begun"))
    elif not chain.statements:
        found.append(Finding("log", custody.LOG, "no line is signed by the run's key: it is another log"))
    else:
        for number, problem in chain.problems:
            statement = chain.lines[number - 1][0] if number <= len(chain.lines) else None
            where = f"{custody.LOG}, line {number}"
            found.append(Finding("log", where, problem, statement.name if statement else None))
    adopted = tuple(statement.name for statement in chain.latest().values() if statement.kind == FOUND)
    if adopted:
        problem = f"was begun when {len(adopted)} stages were complete: it didn't see them being made"
        found.append(Finding("found", custody.LOG, problem, dependents=adopted))
    if expect_head is not None and expect_head not in {line for _, line in chain.lines}:
        found.append(Finding("head", custody.LOG, f"does not hold the head {expect_head}: it was cut or made anew"))
    return found


def _stale(chain: Chain) -> list[Finding]:
    """Stages that came from another state of a stage than its last one."""
    latest, found = chain.latest(), []
    for name, statement in latest.items():
        for material, made in statement.materials:
            if material not in latest or latest[material].made != made:
                problem = f"came from another {material} than the one there is now"
                found.append(Finding("stale", name, problem, name, _dependents(latest, name)))
    return found


def _dependents(latest: Mapping[str, Statement], stage: str) -> tuple[str, ...]:
    if stage == RUN:  # the recipe: everything came from it
        return tuple(name for name in latest if name != RUN)
    users = defaultdict(list)
    for name, statement in latest.items():
        for material, _ in statement.materials:
            users[material].append(name)
    reached: set[str] = set()
    front = [stage]
    while front:
        front = [user for name in front for user in users[name] if user not in reached]
        reached |= set(front)
    return tuple(name for name in latest if name in reached)


# ---- files ------------------------------------------------------------------------------------------------------


def _check_files(root: Path, checked: Checked, tags: Tags, released: bool) -> None:
    chain, findings = checked.chain, checked.findings
    latest, answers = chain.latest(), chain.answers()
    present = _present(root, released)
    unchecked = []
    for name in sorted(present | answers.keys()):
        statement, path = answers.get(name), root / name
        plain = path.is_file() and not path.is_symlink()
        if released and not name.startswith("release/"):
            continue
        if statement is None:
            if name == LOCK and plain and not path.stat().st_size:
                continue
            if name == review.FILE and plain:
                checked.notes.append(f"not covered: {name}, where people decide; what a round heeded of it is")
                continue
            if name.startswith(custody.ERRORS):
                checked.notes.append(f"not covered: {name}, what happened when a stage failed")
            elif chain.problems or not chain.lines:
                unchecked.append(name)
            else:
                findings.append(Finding("added", name, "no statement names it"))
            continue
        found = file_digest(path) if plain else ""
        tag = tags.file(name, found)
        if plain and tag == statement.subjects[name]:
            checked.files += 1
            checked.bytes += path.stat().st_size
            checked.digests[name] = found
        elif plain and tag is None:
            unchecked.append(name)
        elif not any(one.where == name for one in findings):  # the key may have been named
            kind = "changed" if name in present else "missing"
            problem = ("is not as it was signed" if plain else "is no file any more") if name in present else "is gone"
            findings.append(Finding(kind, name, problem, statement.name, _dependents(latest, statement.name)))
    if unchecked:
        named = ", ".join(unchecked[:3]) + (", ..." if len(unchecked) > 3 else "")
        problem = "cannot be compared, since the log or its key is damaged"
        findings.append(Finding("unchecked", f"{len(unchecked)} files ({named})", problem))


def _present(root: Path, released: bool) -> set[str]:
    """Everything below the folder but folders and the log."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    found = set()
    for folder, folders, names in os.walk(root / "release" if released else root, onerror=fail):
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        found |= {(Path(folder) / name).relative_to(root).as_posix() for name in [*names, *linked]}
    return found - {custody.LOG}


# ---- what silos signed ------------------------------------------------------------------------------------------


def _check_released(root: Path, checked: Checked) -> None:
    """Lessons and certificates; files that changed have been named already."""
    run_id, answers = checked.chain.statements[0].run_id, checked.chain.answers()
    keys: dict[str, str] = json.loads((root / SILO_KEYS).read_text())
    keys[review.SILO] = pinned_key((root / custody.LOG).read_bytes()) or ""
    lessons = filter(_LESSONS.fullmatch, checked.digests)
    certificates = [match for match in map(_CERTIFICATE.fullmatch, checked.digests) if match]
    ledgers = _ledgers(root) if certificates and custody.RECIPE in checked.digests else None
    if certificates and ledgers is None:
        checked.notes.append("not checked: the silos' ledgers, which are not here")
    problems = [(name, "signature", problem) for name in lessons for problem in _lessons(root / name, run_id, keys)]
    for match in certificates:
        released = checked.digests.get(f"release/{match[1]}/silos/{match[2]}.jsonl")
        problems += [(match[0], *one) for one in _certificate(root, match, run_id, keys, released, ledgers)]
    latest = checked.chain.latest()
    for name, kind, problem in problems:
        stage = answers[name].name
        checked.findings.append(Finding(kind, name, problem, stage, _dependents(latest, stage)))


def _lessons(path: Path, run_id: str, keys: Mapping[str, str]) -> Iterator[str]:
    from tutelage.privacy.release import LessonSet

    try:
        LessonSet.load(path, run_id, keys)
    except (PrivacyError, UserError) as error:
        yield str(error).removeprefix(str(path)).lstrip(",: ")


def _certificate(
    root: Path,
    match: re.Match[str],
    run_id: str,
    keys: Mapping[str, str],
    released: str | None,
    ledgers: Path | None,
) -> Iterator[tuple[str, str]]:
    """What is wrong with a certificate: kind and problem. `released`: sha256 (hex) of the lessons it is about."""
    from tutelage.privacy import certificate

    path = root / match[0]
    try:
        claim = certificate.load(path, keys)
    except PrivacyError as error:
        yield "signature", str(error).removeprefix(str(path)).lstrip(",: ")
        return
    if (claim.run_id, f"round-{claim.round}", claim.silo) != (run_id, match[1], match[2]):
        yield "signature", "is another run's, round's or silo's"
    if claim.lessons_digest != released:
        yield "signature", "is not about the lessons that are there"
    ledger = ledgers / f"{claim.ledger}.jsonl" if ledgers else None
    if ledger and claim.ledger_head not in _ledger_lines(ledger):
        yield "ledger", f"the ledger {ledger.name} is gone, or was changed before the line that this was made at"


def _ledgers(root: Path) -> Path | None:
    """Where the run's ledgers lie, if they are here (flows/layout.py says the same, behind the heavier libraries)."""
    named = json.loads((root / custody.RECIPE).read_text())["recipe"]["privacy"].get("ledgers")
    folder = Path(named) if named else root.resolve().parent / "ledgers"
    return folder if folder.is_dir() else None


def _ledger_lines(path: Path) -> Collection[str]:
    """sha256 (hex) of a ledger's lines, as far as each names the one before it."""
    found = ["0" * 64]
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            if json.loads(line)["previous"] != found[-1]:
                break
        except (ValueError, KeyError, TypeError):
            break
        found.append(sha256(line).hexdigest())
    return found
