"""A folder of ledgers: the same units never get a second budget, under whatever name and in whatever company."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
from forked import ending
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.privacy import accounting
from tutelage.privacy.ledger import BudgetError, Ledger
from tutelage.privacy.ledgers import Ledgers, SiloLedger
from tutelage.privacy.vault import PrivateRecord, source_digest

BUDGET = 4.0
TENTH = dp.ZCDpEvent(accounting.max_rho(BUDGET, 1e-6) / 10)
TEXTS = ("the meeting is on friday", "where does the train stop", "you have won a prize", "click now", "thanks")
OWNERS = ("anna", "boris", "clara", "dmitri", "zoe")


def records(texts: Iterable[str], prefix: str = "r") -> list[PrivateRecord]:
    return [PrivateRecord(f"{prefix}{i}", text, "ham") for i, text in enumerate(texts)]


def silo(folder: Path, texts: Sequence[str], owners: Sequence[str] | None = None, **terms: Any) -> SiloLedger:
    """The ledger of a silo of these texts; with owners, these are the units."""
    rows = records(texts)
    owner_of = owners and {row.id: owner for row, owner in zip(rows, owners, strict=True)}
    unit, units = ("owner", len(set(owners))) if owners else ("record", len(texts))
    asked: dict[str, Any] = {"unit": unit, "units": units, "delta": 1e-6, "budget": BUDGET} | terms
    return Ledgers(folder / "ledgers").open(rows, owner_of=owner_of, **asked)


def spend(ledger: Ledger, times: int = 1) -> None:
    for _ in range(times):
        ledger.reserve(TENTH, line=len(ledger.entries()))


def tenths(count: int) -> float:
    return accounting.epsilon([TENTH] * count, 1e-6)


def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in ledger.entries()]


# ---- one silo -------------------------------------------------------------------------------------------------------


def test_the_same_records_are_the_same_silo_in_any_order_and_by_any_name(tmp_path: Path) -> None:
    first = silo(tmp_path, TEXTS)
    reserved = first.reserve(TENTH, 3, run="r")
    reserved.claim(TENTH, [1])
    again = Ledgers(tmp_path / "ledgers").open(
        records(TEXTS[::-1], "other"), unit="record", units=5, delta=1e-6, budget=BUDGET
    )
    assert again.path == first.path
    tags = first.path.with_suffix(".tags").read_text().split()
    assert tags == sorted(set(tags)), "their order tells nothing of the records'"
    assert again.terms.silo == again.path.stem
    assert again.reserve(TENTH, 3, run="r").unused == [0, 2]
    spend(again, 9)
    with pytest.raises(BudgetError):
        spend(silo(tmp_path, TEXTS[2:] + TEXTS[:2]))
    assert [one.path for one in Ledgers(tmp_path / "ledgers").all()] == [first.path]


def test_other_text_is_another_record_and_another_label_is_not(tmp_path: Path) -> None:
    folder, terms = Ledgers(tmp_path), {"unit": "record", "units": 2, "delta": 1e-6, "budget": BUDGET}
    silos = [
        [PrivateRecord("a", "x", "ham"), PrivateRecord("b", "y", "ham")],
        [PrivateRecord("a", "x", "ham"), PrivateRecord("b", "y", "spam")],
        [PrivateRecord("a", "x", "ham"), PrivateRecord("b", "Y", "ham")],
        [PrivateRecord("a", "\ud800", "ham"), PrivateRecord("b", "\udfff", "")],  # halves of characters
    ]
    paths = [folder.open(one, **terms).path for one in silos]  # type: ignore[arg-type]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 3


def test_terms_are_fixed(tmp_path: Path) -> None:
    path = silo(tmp_path, TEXTS).path
    for change in ({"budget": 9.0}, {"delta": 1e-7}, {"units": 6}, {"unit": "owner"}):
        with pytest.raises(UserError, match=next(iter(change))):
            silo(tmp_path, TEXTS, **change)
    assert silo(tmp_path, TEXTS).path == path


def test_begun_and_cut_short_at_any_byte(tmp_path: Path) -> None:
    ledger = silo(tmp_path, TEXTS)
    data = ledger.path.read_bytes()
    for length in range(0, len(data), 5):
        ledger.path.write_bytes(data[:length])
        silo(tmp_path, TEXTS[1:])
        assert silo(tmp_path, TEXTS).entries()
        assert ledger.path.read_bytes() == data
    for path in (ledger.path, ledger._next):  # dead before the first byte
        path.unlink()
    spend(silo(tmp_path, TEXTS[1:]))
    other = silo(tmp_path, TEXTS)
    assert other.path == ledger.path
    spend(other)
    assert other.spent() == tenths(2)


# ---- silos that share units -----------------------------------------------------------------------------------------


def test_a_record_added_gives_no_fresh_budget(tmp_path: Path) -> None:
    small = silo(tmp_path, TEXTS[:4])
    spend(small, 6)
    large = silo(tmp_path, TEXTS)
    assert large.path != small.path
    spend(large, 3)
    assert (kinds(large), large.spent()) == (["terms", "charge", *["reserve"] * 3], tenths(9))
    with pytest.raises(BudgetError):
        large.reserve(dp.SelfComposedDpEvent(TENTH, 2), run="too much")
    spend(large)
    for one in (large, silo(tmp_path, TEXTS[1:]), silo(tmp_path, TEXTS[:1])):
        with pytest.raises(BudgetError):
            spend(one)


def test_a_record_added_charges_the_silo_without_it_too(tmp_path: Path) -> None:
    small, large = silo(tmp_path, TEXTS[:4]), silo(tmp_path, TEXTS)
    spend(small)
    spend(large, 8)
    with pytest.raises(BudgetError):
        small.reserve(dp.SelfComposedDpEvent(TENTH, 2), run="too much")
    spend(small)
    assert small.spent() == tenths(10)
    with pytest.raises(BudgetError):
        spend(large)


def test_nothing_is_charged_twice(tmp_path: Path) -> None:
    small, large = silo(tmp_path, TEXTS[:4]), silo(tmp_path, TEXTS)
    for count in range(1, 6):
        spend(small)
        assert small.spent() == tenths(2 * count - 1)
        small.reserve(TENTH, line=1)  # granted before: charges nothing that is not new
        spend(large)
        assert large.spent() == tenths(2 * count)
    for one in (small, large):
        with pytest.raises(BudgetError):
            spend(one)
        charged = [len(entry.fields["events"]) for entry in one.entries() if entry.kind == "charge"]
        assert (sum(charged), one.spent()) == (5, tenths(10))


def test_a_charge_is_no_ones_budget_but_the_silos_own(tmp_path: Path) -> None:
    """A chain: the ends share nothing, and what one spends is not passed on through the middle."""
    left, middle, right = (silo(tmp_path, TEXTS[i : i + 2]) for i in range(3))
    spend(left, 5)
    spend(middle)
    spend(right, 4)
    assert (middle.spent(), right.spent()) == (tenths(10), tenths(5))
    with pytest.raises(BudgetError):
        spend(middle)
    spend(right, 5)
    assert right.spent() == tenths(10)


def test_silos_that_share_nothing_do_not_charge_each_other(tmp_path: Path) -> None:
    here, there = silo(tmp_path, TEXTS[:2]), silo(tmp_path, TEXTS[2:])
    spend(here, 10)
    spend(there, 10)
    assert kinds(here) == kinds(there) == ["terms", *["reserve"] * 10]


def test_what_was_granted_is_found_again_after_others_used_up_the_rest(tmp_path: Path) -> None:
    small, large = silo(tmp_path, TEXTS[:4]), silo(tmp_path, TEXTS)
    small.reserve(TENTH, 2, run="r").claim(TENTH, [0])
    spend(large, 9)
    found = silo(tmp_path, TEXTS[:4]).reserve(TENTH, 2, run="r")
    assert found.unused == [1]
    found.claim(TENTH, [1])
    assert small.spent() == tenths(10)
    with pytest.raises(BudgetError):
        spend(small)


def test_what_another_silo_was_reserving_when_it_died_is_charged(tmp_path: Path) -> None:
    small, large = silo(tmp_path, TEXTS[:4]), silo(tmp_path, TEXTS)
    spend(small, 2)
    data, last = small.path.read_bytes(), small._next.read_bytes()
    small.path.write_bytes(data[: -len(last) // 2])
    spend(large)
    assert large.spent() == tenths(3)
    assert small.path.read_bytes() == data


def test_beside_a_damaged_ledger_nothing_more_is_spent(tmp_path: Path) -> None:
    small, large, apart = silo(tmp_path, TEXTS[:2]), silo(tmp_path, TEXTS[:3]), silo(tmp_path, TEXTS[3:])
    spend(small)
    small.path.write_bytes(small.path.read_bytes()[:-40] + b"\n")
    with pytest.raises(PrivacyError, match="edited or cut short"):
        spend(large)
    assert kinds(large) == ["terms"]
    spend(apart)


SILOS = ((0, 1), (1, 2), (2, 3), (0, 1, 2, 3), (4,))


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 4])), max_size=14))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_record_is_ever_spent_more_on_than_the_budget(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int]]
) -> None:
    """Whatever silos it is in; and nothing is refused that fits into the budgets of all who share with the silo."""
    folder = tmp_path_factory.mktemp("folder")
    own = [0] * len(SILOS)
    for number, (at, share) in enumerate(asked):
        ledger = silo(folder, [TEXTS[i] for i in SILOS[at]])
        theirs = sum(spent for others, spent in zip(SILOS, own, strict=True) if set(others) & set(SILOS[at]))
        event = dp.SelfComposedDpEvent(TENTH, share)
        if theirs + share <= 10:
            ledger.reserve(event, number=number)
            own[at] += share
            assert ledger.spent() == pytest.approx(tenths(theirs + share))
        else:
            with pytest.raises(BudgetError):
                ledger.reserve(event, number=number)
    for record in range(5):
        assert sum(spent for members, spent in zip(SILOS, own, strict=True) if record in members) <= 10


# ---- owners ---------------------------------------------------------------------------------------------------------


def test_an_owner_is_charged_for_whatever_records(tmp_path: Path) -> None:
    first = silo(tmp_path, TEXTS[:2], ["anna", "boris"])
    spend(first, 7)
    later, others = silo(tmp_path, TEXTS[2:4], ["anna", "clara"]), silo(tmp_path, TEXTS[2:4], ["clara", "dmitri"])
    spend(later, 3)
    assert later.spent() == tenths(10)
    with pytest.raises(BudgetError):
        spend(later)
    # the same records, and clara: what was spent on them counts whoever they are said to be of
    spend(others, 7)
    assert others.spent() == tenths(10)
    strangers = silo(tmp_path, TEXTS[4:], ["eve"])
    spend(strangers, 10)


def test_an_owner_whose_record_was_edited_is_the_same(tmp_path: Path) -> None:
    spend(silo(tmp_path, TEXTS[:1], ["anna"]), 6)
    edited = silo(tmp_path, [f"{TEXTS[0]}!"], ["anna"])
    spend(edited)
    assert edited.spent() == tenths(7)


def test_a_record_is_known_again_where_owners_are_not_the_unit(tmp_path: Path) -> None:
    spend(silo(tmp_path, TEXTS[:2], ["anna", "boris"]), 6)
    with pytest.raises(UserError, match="accounted for by owner"):
        spend(silo(tmp_path, TEXTS[1:3]))


def test_an_owner_is_not_a_record_of_that_text(tmp_path: Path) -> None:
    spend(silo(tmp_path, TEXTS[:1], ["click now"]), 10)
    spend(silo(tmp_path, ["click now"]), 10)


# ---- what the folder holds ------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def busy(folder: Path) -> Path:
    """A folder in which everything has happened that writes a file."""
    for owners in (None, OWNERS):
        ledger = silo(folder, TEXTS if owners is None else [f"{text}, again" for text in TEXTS], owners)
        reserved = ledger.reserve(TENTH, 2, run="r", step="teach")
        reserved.claim(TENTH, [1])
        reserved.settle(texts=2)
        ledger.internal(run="r", what="audit")
    return folder / "ledgers"


def test_no_file_holds_text_or_names_or_ids_of_records(tmp_path: Path) -> None:
    found = contents(busy(tmp_path))
    assert {"key", "lock"} < {path.name for path in found}
    assert sorted({path.suffix for path in found}) == ["", ".jsonl", ".lock", ".next", ".tags"]
    words = {word for text in TEXTS for word in text.split() if len(word) > 3}
    ids = {f'"{row.id}"' for row in records(TEXTS)}
    for path, data in found.items():
        if path.name == "key":
            continue  # 32 random bytes
        for secret in {*words, *OWNERS, *ids, "ham"}:
            assert secret.encode() not in data, f"{secret!r} in {path.name}"
            assert secret not in path.name


def test_a_tag_tells_nothing_without_the_key(tmp_path: Path) -> None:
    """Not a bare digest, which whoever guesses a record could recognise; and another folder's are other tags."""
    tags = [set(path.read_text().split()) for name in "ab" for path in busy(tmp_path / name).glob("*.tags")]
    assert [len(one) for one in tags] in ([5, 10, 5, 10], [5, 10, 10, 5], [10, 5, 5, 10], [10, 5, 10, 5])
    here, there = tags[0] | tags[1], tags[2] | tags[3]
    assert not here & there
    for named in [f"record\0{source_digest(text)}" for text in TEXTS] + [*TEXTS, "owner\0anna", "anna"]:
        guess = hashlib.sha256(named.encode()).hexdigest()
        assert not any(guess.startswith(tag) or tag in guess for tag in here)


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = busy(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    for path, data in contents(folder).items():
        if data:  # a lock is empty
            assert path.stat().st_mode & 0o777 == 0o600, path.name


def test_without_the_key_nothing_is_opened(tmp_path: Path) -> None:
    spend(silo(tmp_path, TEXTS), 10)
    before = contents(tmp_path)
    (tmp_path / "ledgers" / "key").unlink()
    for texts in (TEXTS, TEXTS[:2]):
        with pytest.raises(PrivacyError, match="key"):
            silo(tmp_path, texts)
    assert not (tmp_path / "ledgers" / "key").exists(), "no new key: it would make all silos new"
    (tmp_path / "ledgers" / "key").write_bytes(before[tmp_path / "ledgers" / "key"])
    with pytest.raises(BudgetError):
        spend(silo(tmp_path, TEXTS))


def test_without_a_ledgers_tags_no_other_spends(tmp_path: Path) -> None:
    small = silo(tmp_path, TEXTS[:2])
    spend(small, 10)
    large = silo(tmp_path, TEXTS)
    small.path.with_suffix(".tags").unlink()
    with pytest.raises(PrivacyError, match="tags"):
        spend(large)
    assert kinds(large) == ["terms"]
    silo(tmp_path, TEXTS[:2])  # whoever has the records makes them anew
    with pytest.raises(BudgetError):
        spend(large)


def test_without_its_own_tags_a_ledger_spends_nothing(tmp_path: Path) -> None:
    ledger = silo(tmp_path, TEXTS)
    ledger.path.with_suffix(".tags").unlink()
    with pytest.raises(PrivacyError, match="tags"):
        spend(ledger)
    assert kinds(ledger) == ["terms"]


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ledgers"):
        Ledgers(tmp_path / "nowhere").all()
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "ledgers").write_text("")
    with pytest.raises(UserError, match="cannot be a folder") as caught:
        silo(tmp_path, TEXTS)
    assert caught.value.key == "privacy.ledgers"


def test_all_are_found(tmp_path: Path) -> None:
    opened = [silo(tmp_path, TEXTS[i : i + 2]) for i in range(4)]
    found = Ledgers(tmp_path / "ledgers").all()
    assert [one.path for one in found] == sorted(one.path for one in opened)
    assert {one.terms.silo for one in found} == {one.path.stem for one in opened}
    middle = Ledgers(tmp_path / "ledgers").overlapping(opened[1])
    assert {one.path for one in middle} == {opened[0].path, opened[2].path}


# ---- several processes ----------------------------------------------------------------------------------------------


def _spender(folder: Path, texts: Sequence[str], started: Any, granted: Any) -> None:
    """Opens the silo anew each time, as runs do, and uses what it was granted."""
    started.wait()
    for i in range(12):
        ledger = silo(folder, texts)
        try:
            reserved = ledger.reserve(TENTH, 2, silo=len(texts), i=i)
        except BudgetError:
            break
        for part in (0, 1):
            reserved.claim(TENTH, [part])
        reserved.settle(i=i)
        granted.put(len(texts))


@pytest.mark.timeout(120)  # a deadlock is a failure
@pytest.mark.parametrize("sizes", [(4, 5), (3, 4, 5)])
def test_several_at_once_on_overlapping_silos_never_pass_the_budget(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """From an empty folder: the key, too, is made once."""
    context = multiprocessing.get_context("fork")
    started, granted = context.Barrier(len(sizes)), context.SimpleQueue()
    workers = [
        context.Process(target=ending(_spender), args=(tmp_path, TEXTS[:size], started, granted), daemon=True)
        for size in sizes
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * len(sizes)
    given_to = []
    while not granted.empty():
        given_to.append(granted.get())
    assert len(given_to) == 10, "all of the budget, and no more"
    ledgers = [silo(tmp_path, TEXTS[:size]) for size in sizes]
    assert len(Ledgers(tmp_path / "ledgers").all()) == len(sizes)
    assert [kinds(ledger).count("reserve") for ledger in ledgers] == [given_to.count(size) for size in sizes]
    for ledger in ledgers:
        with pytest.raises(BudgetError):
            spend(ledger)
        assert ledger.spent() == pytest.approx(tenths(10))


def _interrupted(folder: Path, texts: Sequence[str]) -> None:
    ledger = silo(folder, texts)
    with ledger._folder.locked():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_holding_the_folder_holds_nobody_up(tmp_path: Path) -> None:
    dying = multiprocessing.get_context("fork").Process(target=_interrupted, args=(tmp_path, TEXTS))
    dying.start()
    dying.join(60)
    assert dying.exitcode == -signal.SIGKILL
    spend(silo(tmp_path, TEXTS))


# ---- what must not give a fresh budget ------------------------------------------------------------------------------


def test_the_same_records_cut_or_labelled_otherwise_are_charged(tmp_path: Path) -> None:
    """Another `data.max_chars` or label column is another recipe, and no other records."""
    ledgers = Ledgers(tmp_path / "ledgers")
    terms: dict[str, Any] = {"unit": "record", "units": len(TEXTS), "delta": 1e-6, "budget": BUDGET}
    whole = [PrivateRecord(f"r{i}", text, "ham") for i, text in enumerate(TEXTS)]
    other = [PrivateRecord(f"x{i}", one.text[:9], "spam", one.source) for i, one in enumerate(whole)]
    spend(ledgers.open(whole, **terms), 10)
    with pytest.raises(BudgetError):
        spend(ledgers.open(other, **terms))


def test_units_that_have_a_budget_get_no_larger_one(tmp_path: Path) -> None:
    spend(silo(tmp_path, TEXTS), 3)
    larger = silo(tmp_path, [*TEXTS, "one more"], budget=2 * BUDGET)
    with pytest.raises(UserError, match="some of these units have a budget of 4") as caught:
        spend(larger)
    assert (caught.value.key, caught.value.remedy) == ("privacy.budget", "set it to 4")
    smaller = silo(tmp_path, [*TEXTS, "another one"], budget=0.75 * BUDGET)
    spend(smaller)


def test_a_smaller_budget_that_was_never_used_binds_nobody_else(tmp_path: Path) -> None:
    first = silo(tmp_path, TEXTS)
    granted = first.reserve(TENTH, 3, run="r")
    small = silo(tmp_path, [*TEXTS, "one more"], budget=2.0)
    spend(first)
    with pytest.raises(BudgetError):
        spend(small, 9)
    assert first.reserve(TENTH, 3, run="r").number == granted.number, "what was granted can be resumed"


def test_what_was_accounted_for_by_record_is_not_by_owner(tmp_path: Path) -> None:
    """Of how many of the owner's records, the ledger does not know."""
    spend(silo(tmp_path, TEXTS))
    with pytest.raises(UserError, match="accounted for by record") as caught:
        spend(silo(tmp_path, TEXTS, OWNERS))
    assert (caught.value.key, caught.value.remedy) == ("privacy.unit", "set it to record")


@pytest.mark.parametrize("spoil", ["key", "tags"])
@pytest.mark.parametrize("content", [b"", b"0123456789abcdef0123456789abcdef"])
def test_an_emptied_or_exchanged_file_gives_no_fresh_budget(tmp_path: Path, spoil: str, content: bytes) -> None:
    first = silo(tmp_path, TEXTS)
    spend(first, 10)
    path = first.path.with_name("key") if spoil == "key" else first.path.with_suffix(".tags")
    path.write_bytes(content)
    with pytest.raises(PrivacyError):
        spend(silo(tmp_path, [*TEXTS, "one more"]))


def test_a_record_that_is_there_twice_makes_another_silo(tmp_path: Path) -> None:
    once, twice = silo(tmp_path, TEXTS), silo(tmp_path, [*TEXTS, TEXTS[0]])
    assert once.path != twice.path
    spend(once, 10)
    assert twice.left() == pytest.approx(0, abs=0.01), "charged before it is asked"
