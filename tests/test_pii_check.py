"""The scanner's own test: it finds what is planted, counts what is missed, and says so for an entity nobody knows."""

from __future__ import annotations

import pytest

from tutelage.configs.errors import UserError
from tutelage.configs.schema import ScreenConfig
from tutelage.privacy import pii_check
from tutelage.privacy.scrub import Scrubber

ENTITIES = ScreenConfig().entities


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    scrubber = Scrubber(ENTITIES, ScreenConfig().pii_score)
    return {metric.name: metric.value for metric in pii_check.check(scrubber, ENTITIES, n=12, seed=1)}


def test_every_entity_is_planted_and_measured(found: dict[str, float]) -> None:
    for entity in ENTITIES:
        assert 0 <= found[f"pii.recall.{entity}"] <= 1
    assert 0 <= found["pii.clean_changed_share"] <= 1


def test_what_is_not_scrubbed_is_missed(found: dict[str, float]) -> None:
    """A scrubber for one entity alone: the others' recall falls to what it takes along by chance."""
    only = Scrubber(("IP_ADDRESS",), ScreenConfig().pii_score)
    alone = {metric.name: metric.value for metric in pii_check.check(only, ("IBAN_CODE", "IP_ADDRESS"), n=12, seed=1)}
    assert alone["pii.recall.IBAN_CODE"] == 0
    assert alone["pii.recall.IP_ADDRESS"] > 0.8
    assert found["pii.recall.IBAN_CODE"] > 0.4


def test_the_same_seed_plants_the_same() -> None:
    scrubber = Scrubber(("US_SSN",), ScreenConfig().pii_score)
    once, again, other = (pii_check.check(scrubber, ("US_SSN",), n=12, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert [metric.name for metric in once] == [metric.name for metric in other]


def test_an_entity_nobody_knows() -> None:
    with pytest.raises(UserError):
        pii_check.check(Scrubber(ENTITIES, 0.4), ("EMAIL",), n=2)
