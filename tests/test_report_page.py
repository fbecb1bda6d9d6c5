"""The report page: what is shown, what is escaped, what never crashes, and that everyone can read it."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import report_fixture as fixture
from bs4 import BeautifulSoup
from report_page import REPORTS, Balance, soup, table, words
from rich.console import Console

from tutelage.configs.records import GateDecision, Override, RoundReport, RuleOutcome
from tutelage.configs.schema import GateConfig, GateRule, ScreenConfig
from tutelage.flows.report.names import EPSILON
from tutelage.flows.report.render import figure, print_summary, render_html, render_json
from tutelage.flows.report.spending import Costs
from tutelage.privacy.gate import decide
from tutelage.students.publish import public_report


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS.keys())
def test_page_is_well_formed_and_self_contained(reports: list[RoundReport]) -> None:
    text = render_html(reports, fixture.TIMINGS)
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "<script" not in text
    names = [name for name, _ in balance.attributes]
    assert not {"src", "srcset", "style"} & set(names)
    assert not [name for name in names if name.startswith("on")]
    ids = [value for name, value in balance.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value for name, value in balance.attributes if name in ("href", "aria-labelledby")}
    assert {link.removeprefix("#") for link in links if link} <= set(ids)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS.keys())
def test_page_is_accessible(reports: list[RoundReport]) -> None:
    page = soup(reports, fixture.TIMINGS)
    assert page.html is not None
    assert page.html["lang"] == "en"
    assert len(page.find_all("h1")) == 1
    levels = [int(heading.name[1]) for heading in page.find_all(["h1", "h2", "h3", "h4", "h5", "h6"])]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for one in page.find_all("table"):
        assert one.caption is not None
        assert one.caption.get_text(strip=True)
        assert one.find_all("th", scope=True)
    for drawing in page.find_all("svg"):
        hidden = [d for d in (drawing, *drawing.parents) if d.get("aria-hidden") == "true"]
        assert hidden or drawing.get("aria-label") or drawing.find_parent("svg", attrs={"aria-label": True})


def test_what_reviewers_decided_is_counted() -> None:
    report = REPORTS["rounds"][-1]
    assert "people had reviewed" not in soup([report], fixture.TIMINGS).get_text()
    reviewed = report.model_copy(update={"reviewed": {"reject": 2, "edit": 1}})
    assert "reviewed earlier ones: 1 edited, 2 rejected." in soup([reviewed], fixture.TIMINGS).get_text()
    assert "preference" not in soup([reviewed], fixture.TIMINGS).get_text()
    tuned = reviewed.model_copy(update={"preference_pairs": 1})
    assert "preference optimisation on 1 pair of a chosen and" in soup([tuned], fixture.TIMINGS).get_text()


def test_what_several_teachers_cost_is_shown_and_nothing_where_there_is_one() -> None:
    report = REPORTS["rounds"][-1]
    assert "What the teachers cost" not in soup([report], fixture.TIMINGS).get_text()
    routed = report.model_copy(update={"spending": tuple(fixture.spending(k) for k in range(4))})
    text = soup([routed], fixture.TIMINGS).get_text(" ", strip=True)
    for shown in (
        "In all silos 10.4 of 12 USD.",
        "0.002 USD in the cascade and 0.008 by the dearest teacher alone: 25% of it",
        "0.400 (0.200 to 0.600)",
        "+0.050 (-0.100 to +0.200)",
        "0.612",
    ):
        assert shown in text, shown
    bare = fixture.spending(0, budget=None, route="label", thresholds=(), score=None, cost_expected=None)
    text = soup([report.model_copy(update={"spending": (bare,)})], fixture.TIMINGS).get_text(" ", strip=True)
    assert "2.6 USD, without a budget" in text
    assert "not measured" in text
    assert Costs((bare,)).line == "Teachers: 2.6 USD, without a budget; drafts by small 90%, large 10%"


def test_sections_come_in_the_order_an_auditor_reads_them() -> None:
    headings = [h.get_text(strip=True) for h in soup(REPORTS["rounds"], fixture.TIMINGS).find_all("h2")]
    assert headings == [
        "What this protects and what it does not",
        "ε: what is claimed, what was measured",
        "What the attacks found",
        "From drafts to lessons",
        "How well the student learned",
        "Training",
        "The gate",
        "Rounds",
        "Timings",
        "Provenance",
        "What this report does not show",
    ]


@pytest.mark.parametrize("name", ["one", "formal", "attacked"])
def test_every_metric_is_shown_with_interval_and_n(name: str) -> None:
    made = REPORTS[name][0]
    report = made.model_copy(update={"metrics": (*made.metrics, fixture.around("speed.texts", 12.5, 1.25, 31))})
    text = words(soup([report]))
    for metric in report.metrics:
        shown = figure(report, metric.name)
        assert shown.text in text, metric.name
        assert (shown.value is None) == math.isnan(metric.value), metric.name
        if metric.name not in EPSILON:  # bounds: with their sign, and no interval
            assert shown.interval in text, metric.name
    assert "Speed.texts 12.5 11.25 to 13.75 · 95% bootstrap (1000) · n = 31" in text


def test_chart_puts_dots_and_lines_where_the_figures_say() -> None:
    page = soup([fixture.report()])
    found = next(one for one in page.find_all("table", class_="dots") if words(one.caption) == "Accuracy by method")
    rows = {row.th.get_text(strip=True): row for row in found.tbody.find_all("tr")}
    assert rows["Zero-shot"].circle["cx"] == "55.0%"
    assert rows["Taught student"].circle["cx"] == "80.83%"
    for row in rows.values():
        assert row.find("line", class_="zero")["x1"] == "55.0%"
        assert row.find("line", class_="upper")["x1"] == "93.33%"


@pytest.mark.parametrize("name", ["bare", "refused"])
def test_what_is_missing_is_said_to_be_not_measured(name: str) -> None:
    text = words(soup(REPORTS[name]))
    assert "not measured" in text
    assert "nan" not in text.lower().split()


def test_refused_round_gives_the_failing_rules_in_plain_words() -> None:
    banner = soup(REPORTS["refused"]).find(class_="verdict")
    assert banner is not None
    text = words(banner)
    assert text.startswith("REFUSED Round 1: 2 of 9 gate rules failed.")
    assert "Accuracy of the taught student (lower end of its interval) must be at least 60.0%. It is 55.3%." in text
    assert "Canary secrets ranked first must be at most 25.0%. It was not measured." in text
    assert "longest run" not in text.lower()


def test_every_draft_is_in_the_bars_and_in_the_table() -> None:
    page = soup([fixture.report()])
    bar = page.find("caption", string="Drafts by fate, per silo").parent.tbody.tr
    released, aside, dropped, malformed = (float(part["width"].rstrip("%")) for part in bar.find_all("rect"))
    silo = fixture.silo(0)
    assert released == pytest.approx(100 * silo.released / silo.drafts, abs=0.01)
    assert aside == pytest.approx(100 * (21 + 52) / silo.drafts, abs=0.01)
    assert dropped == pytest.approx(100 * (6 + 4 + 2) / silo.drafts, abs=0.01)
    assert malformed == pytest.approx(100 * silo.malformed / silo.drafts, abs=0.01)
    table = page.find("caption", string="Screening by silo, counts").parent
    rows = {row.th.get_text(): [int(td.get_text()) for td in row.find_all("td")] for row in table.tbody.find_all("tr")}
    assert rows["Drafts"] == [512, 128, 128, 128, 128]
    assert rows["Not kept"] == [208, 52, 52, 52, 52]
    assert rows["Dropped: common run"] == [30, 6, 7, 8, 9]
    assert rows["Released"] == [122, 32, 31, 30, 29]


def test_no_rule_at_all_is_refused_in_words() -> None:
    assert "no gate rule was applied" in words(soup(REPORTS["bare"]))


def test_text_from_models_and_users_is_escaped() -> None:
    evil = "</blockquote><script>alert(1)</script><img src=x onerror=alert(1)> & {{ 7 * 7 }}"
    outcome = RuleOutcome(rule=evil, observed=None, threshold=0.5, passed=False, reason=evil)
    silo = fixture.silo(0).model_copy(update={"silo": evil, "dropped": {evil: 1}, "replaced": {evil: 2}})
    report = fixture.report(
        run_id=evil, recipe_name=evil, protection=evil, instruction=evil, silos=(silo,),
        lessons_per_class={evil: 3}, topics_next={evil: 1.0}, lessons_digest=evil,
        metrics=(fixture.around(f"recall.student.{evil}", 0.5, 0.1, 4), fixture.around(evil, 0.5, 0.1, 4)),
        decision=GateDecision(passed=False, outcomes=(outcome,)),
    )  # fmt: skip
    text = render_html([report], {evil: 1.0})
    page = BeautifulSoup(text, "html.parser")
    assert not page.find_all(["script", "img"])
    assert page.blockquote is not None
    assert page.blockquote.get_text() == evil
    balance = Balance()
    balance.feed(text)
    assert not [name for name, _ in balance.attributes if name.startswith("on")]


def test_internal_figures_are_marked() -> None:
    page = soup([fixture.report()])
    marked = {tag.find_parent(["dt", "th"]).get_text(" ", strip=True) for tag in page.select("dt .tag, th .tag")}
    assert "Longest run shared with a record internal" in marked
    assert "Student on originals (upper line) internal" in marked
    assert len(marked) == 5


def test_same_reports_same_bytes_in_any_order() -> None:
    reports = REPORTS["rounds"]
    assert render_html(reports, fixture.TIMINGS) == render_html(reports[::-1], fixture.TIMINGS)
    assert render_json(reports, {}) == render_json(reports[::-1], {})


METHOD_KEYS = {"zero_shot", "few_shot", "instruction", "student", "originals", "tfidf"}


def test_generation_tasks_are_compared_by_their_own_scores() -> None:
    scores = [
        fixture.around(f"{family}.{method}", 0.4, 0.1, 50)
        for family in ("exact_match", "rouge_l")
        for method in METHOD_KEYS
    ]
    report = fixture.report(metrics=tuple(scores))
    text = words(soup([report]))
    assert "Exact match by method" in text
    assert "ROUGE-L" in text
    assert "Macro F1" not in text
    console = Console(width=80, file=StringIO(), record=True)
    print_summary([report], Path("report.html"), console)
    assert "Exact match" in console.export_text()


def test_an_override_stands_in_the_verdict() -> None:
    banner = soup(REPORTS["overridden"]).find(class_="verdict")
    said = words(banner)
    assert said.startswith("REFUSED Round 1: 2 of 9 gate rules failed. The gate held the student back.")
    assert "must not be published" not in said
    assert "PUBLISHED ALL THE SAME by Ada Example, against the gate, who gives this reason:" in said
    assert banner.blockquote.get_text() == fixture.OVERRIDE.reason
    evil = "<script>alert(1)</script> & a reason that is long enough"
    report = fixture.refused().model_copy(update={"override": Override(by="<b>Eve</b>", reason=evil)})
    page = soup([report])
    assert not page.find_all("script")
    assert page.find(class_="verdict").blockquote.get_text() == evil
    assert "ALL THE SAME" not in words(soup(REPORTS["refused"]))


def test_the_head_of_the_page_has_the_few_figures_that_matter() -> None:
    tiles = [words(tile) for tile in soup(REPORTS["attacked"]).select(".glance > div")]
    assert tiles[0] == "Accuracy of the student 80.8% 72.9 to 86.9%; zero-shot 55.0%"
    assert tiles[1] == "ε claimed ≤ 4.00 per record, δ = 1.07e-04"
    assert re.fullmatch(r"ε measured ≥ [\d.]+ on the lessons; at most [\d.]+ could show", tiles[2])
    assert re.fullmatch(r"Strongest attack AUC 0\.\d{3} Word pairs on the lessons; .* 0\.5 is guessing", tiles[3])
    screened = [words(tile) for tile in soup(REPORTS["one"]).select(".glance > div")]
    assert screened[1:] == [
        "ε claimed no bound lessons were screened only",
        "ε measured not measured",
        "Canary secrets found at once 0.0% by chance 1.6%",
    ]


def test_provenance_has_versions_seed_and_digests() -> None:
    page = soup(REPORTS["attacked"])
    report = REPORTS["attacked"][0]
    facts = dict(table(page, "What this report is about"))
    assert facts["Recipe digest"] == report.recipe_digest
    assert facts["Adapter digest"] == report.adapter_digest
    assert facts["Seed"].startswith("17, ")
    assert table(page, "Versions of what the figures depend on") == [
        ["python", "3.11.9"], ["torch", "2.13.0"], ["transformers", "5.20.1"], ["tutelage", "0.1.0"],
    ]  # fmt: skip
    assert "tutelage audit verify RUN" in words(page)
    bare = soup(REPORTS["one"])
    assert dict(table(bare, "What this report is about"))["Seed"] == "not recorded"
    assert "Versions of packages were not recorded." in words(bare)


def test_the_scanner_and_contamination_are_shown_with_intervals() -> None:
    page = soup(REPORTS["attacked"])
    rows = {row[0]: row[1:] for row in table(page, "The scanner on planted personal data, by kind")}
    recall = figure(REPORTS["attacked"][0], "pii.recall.EMAIL_ADDRESS")
    assert rows["EMAIL ADDRESS"][0] == f"{recall.text} {recall.interval} · n = 200"
    assert rows["EMAIL ADDRESS, obfuscated"] == ["44.4% 36.5 to 52.4% · n = 160", "–"]
    assert set(rows) == {name.replace("_", " ") for name in ScreenConfig().entities} | {
        "EMAIL ADDRESS, obfuscated", "PERSON, bare",
    }  # fmt: skip
    assert "Clean texts that the scanner changed 4.5%" in words(page)
    assert "Test texts seen in the lessons 0.0% 0.0 to 3.1%" in words(page)
    assert "Test texts seen in the silos' records internal 2.5%" in words(page)
    bare = words(soup(REPORTS["one"]))
    assert "What share of personal data the scanner finds was not measured." in bare
    assert "Test texts seen in the lessons not measured" in bare


def test_what_was_taken_out_is_not_called_unmeasured() -> None:
    gate = GateConfig(rules=(GateRule(metric="overlap.longest_run_max", op="<=", value=3),))
    whole = REPORTS["attacked"][0]
    whole = whole.model_copy(update={"decision": decide(whole.metrics, gate, lessons=96, defended=True)})
    page = soup([public_report(whole)])
    assert (
        "Longest run shared with a record must be at most 3 words. Its figure is internal and not in this version."
        in (words(page.find(class_="verdict")))
    )
    assert table(page, "Gate rules")[-1][1] == "not in this version"
    rows = {row[0]: row[1] for row in table(page, "Scores by method")}
    assert rows["Student on originals (upper line)"] == "not in this version"
    assert "Test texts seen in the silos' records not in this version" in words(page)
    assert "not measured" not in rows.values()
    # of a report that has internal figures, what is missing was not measured
    kept = tuple(metric for metric in whole.metrics if "originals" not in metric.name)
    rows = {row[0]: row[1] for row in table(soup([whole.model_copy(update={"metrics": kept})]), "Scores by method")}
    assert rows["Student on originals (upper line)"] == "not measured"


def _luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_keep_the_contrast_of_wcag_aa(theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render_html(REPORTS["none"], {}), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[theme]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted(_luminance(colours[name]) for name in (one, other))
        return (high + 0.05) / (low + 0.05)

    text = {
        "page": ("ink", "soft", "main", "warm", "ok", "bad"), "panel": ("ink", "soft", "main", "warm", "bad"),
        "ok-panel": ("ink", "ok"), "bad-panel": ("ink", "bad", "soft"),
    }  # fmt: skip
    marks = {"page": ("main", "other", "warm", "third"), "zone": ("main", "warm"), "track": ("main", "bad", "warm")}
    for ground, inks in text.items():
        for ink in inks:
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    for ground, inks in marks.items():
        for ink in inks:
            assert contrast(ink, ground) >= 3, (ink, ground)


def _chromium(page: Path, *flags: str) -> str:
    command: list[Any] = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}", *flags, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("name", ["rounds", "attacked"])
def test_browser_shows_the_page(tmp_path: Path, name: str) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html(REPORTS[name], fixture.TIMINGS), encoding="utf-8")
    dom = BeautifulSoup(_chromium(page, "--dump-dom"), "html.parser")
    shown = soup(REPORTS[name], fixture.TIMINGS)
    assert [h.get_text() for h in dom.find_all("h2")] == [h.get_text() for h in shown.find_all("h2")]

    import matplotlib.image

    for scheme, bright in (("0", False), ("1", True)):  # dark, light
        picture = tmp_path / f"{scheme}.png"
        scheme_flag = f"--blink-settings=preferredColorScheme={scheme}"
        _chromium(page, f"--screenshot={picture}", "--window-size=1100,2600", scheme_flag)
        pixels = matplotlib.image.imread(picture)[..., :3]
        assert pixels.std() > 0.05  # a blank page has none
        assert (pixels.mean() > 0.5) == bright


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("name", ["attacked", "overridden", "public", "formal_rounds"])
def test_no_page_scrolls_sideways(tmp_path: Path, name: str) -> None:
    # the page allows no script, so one outside looks into frames of it
    frame, page = tmp_path / "frame.html", html.escape(render_html(REPORTS[name], fixture.TIMINGS))
    widths = (320, 390, 1000)
    frames = "".join(f'<iframe style="width: {width}px; border: 0" srcdoc="{page}"></iframe>' for width in widths)
    frame.write_text(
        f"""<!DOCTYPE html>{frames}<output></output><script>onload = () => {{
          const pages = [...document.querySelectorAll("iframe")].map((frame) => frame.contentDocument);
          for (const page of pages) for (const folded of page.querySelectorAll("details")) folded.open = true;
          const found = pages.map((page) => page.documentElement.scrollWidth);
          document.querySelector("output").textContent = found.join(" ");
        }}</script>""",
        encoding="utf-8",
    )
    dom = BeautifulSoup(_chromium(frame, "--dump-dom"), "html.parser")
    for found, width in zip(dom.output.get_text().split(), widths, strict=True):
        assert 0 < int(found) <= width
