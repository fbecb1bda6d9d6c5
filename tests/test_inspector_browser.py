"""The inspector in a real browser: keys, filters, reload, a phone, the dark."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from small_release import small_release

from tutelage.flows.inspector.app import Inspector, make_app
from tutelage.flows.inspector.measures import Computing
from tutelage.flows.inspector.released import read_released
from tutelage.privacy import review

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def served(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Inspector, str]]:
    """A run, and the address of its pages."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))  # the same texts every time
    root = tmp_path / "run"
    small_release(root)
    inspector = Inspector(read_released(root), root / review.FILE, "ann")
    computing = Computing(inspector.measures, inspector.measured)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(make_app(inspector, ["127.0.0.1"]), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        computing.thread.join()
        yield inspector, f"http://127.0.0.1:{listening.getsockname()[1]}/{inspector.token}/"
        server.should_exit = True
        thread.join()


def watched(page: Page) -> list[str]:
    """What the browser complains about, as it comes."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


def test_a_review_with_the_keyboard(browser: Browser, served: tuple[Inspector, str], tmp_path: Path) -> None:
    inspector, address = served
    page = browser.new_page()
    said = watched(page)
    page.goto(address)
    assert page.locator("[data-row]").count() == 18
    page.keyboard.press("/")
    page.keyboard.type("mon")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=mon**")
    assert page.locator("[data-row]").count() == 8
    page.goto(f"{address}?label=spam&round=1")
    assert page.locator(".count").inner_text() == "4 of 18 texts"
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/at/0/**")
    page.keyboard.press("a")
    page.wait_for_url("**/at/1/**")
    page.keyboard.press("r")
    page.wait_for_url("**/at/2/**")
    page.keyboard.press("e")
    page.keyboard.press("Control+A")
    page.keyboard.type("An offer, edited. a r j k")  # letters are letters in a field
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/at/3/**")
    page.reload()
    page.keyboard.press("k")
    page.wait_for_url("**/at/2/**")
    assert "An offer, edited. a r j k" in page.locator("article").inner_text()
    page.keyboard.press("k")
    page.wait_for_url("**/at/1/**")
    page.keyboard.press("u")
    page.wait_for_selector(".badge.open")
    kept = review.read(inspector.path)
    spam = [one.id for one in inspector.released.lessons if one.completion == "spam" and one.round == 1]
    assert {lesson: one.verdict for lesson, one in kept.items()} == {spam[0]: "accept", spam[2]: "edit"}
    page.keyboard.press("l")
    page.wait_for_selector("li.accept")
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.screenshot(path=tmp_path / "keys.png")
    assert said == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_every_page_fits_and_can_be_read(
    browser: Browser, served: tuple[Inspector, str], width: int, scheme: str
) -> None:
    inspector, address = served
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    said = watched(page)
    for path in ("", "overview", f"example/{inspector.released.lessons[0].id}", "report", "example/nothing"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.goto(address)
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    light = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (light[0] > light[1]) == (scheme == "dark")
    assert [one for one in said if "404" not in one] == []
    page.close()


def test_without_scripts_every_decision_can_be_made(browser: Browser, served: tuple[Inspector, str]) -> None:
    inspector, address = served
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address)
    page.locator("[data-row]").first.click()
    page.get_by_role("button", name="Reject").click()
    page.wait_for_url("**/at/1/**")
    assert [one.verdict for one in review.read(inspector.path).values()] == ["reject"]


def test_another_site_can_neither_read_nor_decide(
    browser: Browser, served: tuple[Inspector, str], tmp_path: Path
) -> None:
    """A page of another origin, in the same browser, which has even got hold of the address."""
    inspector, address = served
    lesson = inspector.released.lessons[0].id
    (tmp_path / "evil.html").write_text(
        f'<form method="post" action="{address}decide/{lesson}"><button name="verdict" value="reject">x</button></form>'
        f'<iframe src="{address}"></iframe><a href="{address}">y</a>'
    )
    page = browser.new_page()
    page.goto(f"file://{tmp_path / 'evil.html'}")
    time.sleep(0.5)
    assert "small" not in (page.frames[1].locator("body").inner_text() if len(page.frames) > 1 else "")
    page.get_by_role("button").click()
    page.wait_for_load_state()
    assert "refused" in page.content()
    assert not inspector.path.exists()
    page.close()
