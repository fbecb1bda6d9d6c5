"""The inspector: what it shows is what was released, what it keeps is what was decided, and nobody else gets in."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from small_release import SECRET, TEXTS, small_release

from tutelage.configs.errors import PrivacyError, UserError
from tutelage.configs.records import Lesson
from tutelage.flows.inspector.app import Inspector, make_app
from tutelage.flows.inspector.index import Filters, Index
from tutelage.flows.inspector.measures import Computing, Measures, diversity_of
from tutelage.flows.inspector.released import read_released
from tutelage.privacy import review
from tutelage.privacy.pii import PLACEHOLDER
from tutelage.privacy.similarity import words

HOST = "127.0.0.1:8000"


class Site:
    """A run, and a browser that knows its address."""

    def __init__(self, root: Path) -> None:
        self.root, self.lessons = root, small_release(root)
        self.inspector = Inspector(read_released(root), root / review.FILE, "ann")
        app = make_app(self.inspector, ["127.0.0.1", "localhost"])
        self.client = TestClient(app, base_url=f"http://{HOST}", follow_redirects=False)
        self.at = f"/{self.inspector.token}"

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(self.at + path, headers=headers)

    def decide(self, lesson: str, query: str = "", **form: str) -> Any:
        return self.client.post(f"{self.at}/decide/{lesson}{query}", data=form)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "run")


# ---- what is shown ----------------------------------------------------------------------------------------------


def test_every_page_answers_and_escapes(site: Site) -> None:
    listed = site.get("/?round=1").text
    for _, text in TEXTS:
        shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;")
        assert shown.replace("'", "&#39;") in listed
    for path in ("/overview", "/report", "/style.css", "/keys.js", f"/example/{site.lessons[0].id}"):
        assert site.get(path).status_code == 200, path
    assert "<script>alert" not in listed
    assert "the report" in site.get("/report").text


def test_a_release_alone_is_enough(site: Site, tmp_path: Path) -> None:
    """Passed on, there is neither a vault nor run.json; the report says which run it is."""
    alone = tmp_path / "passed-on"
    shutil.copytree(site.root / "release", alone / "release")
    with pytest.raises(UserError, match="which run"):
        read_released(alone)
    shutil.copy(site.root / "run.json", alone)
    assert read_released(alone).lessons == tuple(site.lessons)


def test_a_forged_lesson_is_not_shown(site: Site) -> None:
    path = site.root / "release" / "round-1" / "silos" / "north.jsonl"
    path.write_text(path.read_text().replace("Friday", "Monday"))
    with pytest.raises(PrivacyError, match="signature"):
        read_released(site.root)


@pytest.mark.parametrize(
    "name", ["report.html", "round-1/silos/north.jsonl", "public_keys.json", "round-2/report.json"]
)
def test_a_link_out_of_release_is_not_followed(site: Site, name: str) -> None:
    path = site.root / "release" / name
    path.unlink(missing_ok=True)
    path.symlink_to(site.root / "vault" / "silos" / "north" / "records.jsonl")
    with pytest.raises(PrivacyError, match="link"):
        read_released(site.root)


def test_nothing_released_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no release"):
        read_released(tmp_path)
    (tmp_path / "release").mkdir()
    with pytest.raises(UserError, match="no round"):
        read_released(tmp_path)


FILTERS = st.builds(
    Filters,
    q=st.sampled_from(["", "the", "mon", "RATES low", 'pay "now', "a* OR b", "<PERSON>", "nowhere", "  "]),
    silo=st.sampled_from([None, "north", "south", "west"]),
    round=st.sampled_from([None, 1, 2, 3]),
    label=st.sampled_from([None, "ham", "spam"]),
    kind=st.sampled_from([None, "example", "instruction"]),
    decision=st.sampled_from([None, "open", "accept", "reject"]),
    replaced=st.sampled_from([None, "PERSON", "URL", "PHONE_NUMBER", "PHONE"]),
    learned=st.sampled_from([None, True, False]),
    words_min=st.sampled_from([None, 0, 15]),
    words_max=st.sampled_from([None, 16, 100]),
    sort=st.sampled_from(["release", "shortest", "longest", "fit"]),
)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, list[Lesson], dict[str, str]]:
    root = tmp_path_factory.mktemp("indexed")
    lessons = small_release(root)
    decided = {lessons[0].id: "accept", lessons[3].id: "reject", lessons[5].id: "reject"}
    index = Index(lessons, frozenset({"ham", "spam"}), frozenset(one.id for one in lessons[:6]), {})
    for lesson, verdict in decided.items():
        index.decide(lesson, verdict)
    return index, lessons, decided


@given(filters=FILTERS, offset=st.integers(0, 20), limit=st.integers(1, 20))
def test_filters_leave_what_they_say(
    indexed: tuple[Index, list[Lesson], dict[str, str]], filters: Filters, offset: int, limit: int
) -> None:
    index, lessons, decided = indexed
    learned = {one.id for one in lessons[:6]}

    def fits(one: Lesson) -> bool:
        tokens = [token for token in re.findall(r"\w+", f"{one.prompt} {one.completion}".casefold())]
        asked = [term for part in filters.q.casefold().replace('"', " ").split() for term in re.findall(r"\w+", part)]
        count = len(words(one.prompt))
        return (
            all(any(token.startswith(term) for token in tokens) for term in asked)
            and filters.silo in (None, one.silo)
            and filters.round in (None, one.round)
            and filters.label in (None, one.completion if one.kind == "example" else "")
            and filters.kind in (None, one.kind)
            and filters.decision in (None, decided.get(one.id, "open"))
            and (filters.replaced is None or f"<{filters.replaced}>" in PLACEHOLDER.findall(one.prompt))
            and filters.learned in (None, one.id in learned)
            and (filters.words_min or 0) <= count <= (filters.words_max or 1000)
        )

    expected = [one for one in lessons if fits(one)]
    if filters.sort in ("shortest", "longest"):
        expected.sort(key=lambda one: len(words(one.prompt)), reverse=filters.sort == "longest")
    assert index.count(filters) == len(expected)
    assert [one.id for one in index.page(filters, offset, limit)] == [
        one.id for one in expected[offset : offset + limit]
    ]


def test_fields_left_empty_ask_for_nothing(site: Site) -> None:
    page = site.get(
        "/?q=mon&silo=&label=spam&round=&kind=&decision=&replaced=&learned=&twins=&words_min=&fit_max=&sort="
    )
    assert page.status_code == 200
    assert "6 of 18 texts" in page.text


def test_what_can_be_filtered_by_is_counted(site: Site) -> None:
    facets = site.inspector.index.facets()
    assert facets["silo"] == [("north", 9), ("south", 9)]
    assert facets["label"] == [("ham", 8), ("spam", 8)]
    assert dict(facets["replaced"]) == {"PERSON": 4, "PHONE_NUMBER": 4, "URL": 2}


@pytest.mark.parametrize("query", ["round=one", "sort=random", "words_min=-1", "colour=red", f"q={'x' * 201}"])
def test_an_address_that_asks_for_nonsense_is_told_so(site: Site, query: str) -> None:
    answer = site.get(f"/?{query}")
    assert answer.status_code == 400
    assert query.split("=")[0] in answer.text


# ---- what is decided --------------------------------------------------------------------------------------------


def test_a_review_goes_through_the_open_texts_and_is_kept(site: Site) -> None:
    """As a person with the keyboard does: each decision leads to the next text that is still open."""
    row = re.search(r'href="([^"]+)" data-row', site.get("/?decision=open&kind=example").text)
    assert row
    address, order = row[1].replace("&amp;", "&"), []
    for verdict in ("accept", "reject", "accept", "reject"):
        page = site.client.get(address).text
        action = re.search(r'action="([^"]+)" class="decide"', page)
        place = re.search(r'name="place" value="(\d+)"', page)
        assert action
        assert place
        order.append(action[1].partition("?")[0].rpartition("/")[2])
        answer = site.client.post(action[1].replace("&amp;", "&"), data={"verdict": verdict, "place": place[1]})
        assert answer.status_code == 303
        address = answer.headers["location"]
    assert order == [one.id for one in site.lessons if one.kind == "example"][:4]
    assert review.counts(review.read(site.root / review.FILE)) == {"accept": 2, "reject": 2}
    again = Inspector(read_released(site.root), site.root / review.FILE, "bob")
    assert again.index.count(Filters(decision="reject")) == 2


def test_an_edit_keeps_the_text_and_the_label(site: Site) -> None:
    lesson = site.lessons[0].id
    assert (
        site.decide(lesson, verdict="edit", prompt="New words.\r\nAnd more.\r\n", completion="spam").status_code == 303
    )
    kept = review.read(site.root / review.FILE)[lesson]
    assert (kept.prompt, kept.completion, kept.by) == ("New words.\nAnd more.", "spam", "ann")
    assert "New words." in site.get(f"/example/{lesson}").text
    site.decide(lesson, verdict="open")
    assert review.read(site.root / review.FILE) == {}
    page = site.get(f"/example/{lesson}").text
    assert "New words." not in page
    assert "Decided by" not in page


@pytest.mark.parametrize(
    "form",
    [
        {"verdict": "edit"},
        {"verdict": "edit", "prompt": "  ", "completion": "ham"},
        {"verdict": "edit", "prompt": "text", "completion": "eggs"},
        {"verdict": "edit", "prompt": "x" * 20_001, "completion": "ham"},
        {"verdict": "maybe"},
        {},
    ],
)
def test_a_decision_that_makes_no_sense_is_not_kept(site: Site, form: dict[str, str]) -> None:
    assert site.decide(site.lessons[0].id, **form).status_code == 400
    assert not (site.root / review.FILE).exists()


def test_an_edited_answer_keeps_the_structure_that_the_task_asks_for(tmp_path: Path) -> None:
    root = tmp_path / "run"
    small_release(root)
    written = json.loads((root / "run.json").read_text())
    call = {"json_schema": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}}
    written["recipe"]["task"] = {"kind": "generation", "completion": call}
    (root / "run.json").write_text(json.dumps(written))
    inspector = Inspector(read_released(root), root / review.FILE, "ann")
    client = TestClient(make_app(inspector, ["127.0.0.1"]), base_url=f"http://{HOST}", follow_redirects=False)
    lesson, at = inspector.released.lessons[0].id, f"/{inspector.token}/decide"
    answer = client.post(f"{at}/{lesson}", data={"verdict": "edit", "prompt": "ask", "completion": '{"too": "x"}'})
    assert (answer.status_code, "task.completion" in answer.text) == (400, True)
    assert not (root / review.FILE).exists()
    client.post(f"{at}/{lesson}", data={"verdict": "edit", "prompt": "ask", "completion": '{ "to": "x" }'})
    assert review.read(root / review.FILE)[lesson].completion == '{"to":"x"}'


def test_no_decision_about_what_was_never_released(site: Site) -> None:
    assert site.decide("somebody-else", verdict="accept").status_code == 404
    assert not (site.root / review.FILE).exists()


# ---- who gets in ------------------------------------------------------------------------------------------------


def test_without_the_secret_there_is_nothing(site: Site) -> None:
    for path in ("/", "/overview", "/report", "/style.css", f"/x{site.at[1:]}/", f"/{site.at[1:-1]}/", "//", "/vault"):
        answer = site.client.get(path)
        assert (answer.status_code, "small" in answer.text) == (404, False), path
    assert site.client.post("/decide/x", data={"verdict": "accept"}).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "elsewhere.example"},
        {"host": "elsewhere.example:8000"},
    ],
)
def test_other_sites_are_refused_even_if_they_know_the_secret(site: Site, headers: dict[str, str]) -> None:
    lesson = site.lessons[0].id
    for answer in (
        site.client.get(f"{site.at}/", headers=headers),
        site.client.post(f"{site.at}/decide/{lesson}", data={"verdict": "accept"}, headers=headers),
    ):
        assert answer.status_code in (400, 403)
        assert "small" not in answer.text
    assert not (site.root / review.FILE).exists()


def test_its_own_forms_are_not_refused(site: Site) -> None:
    own = {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
    lesson = site.lessons[0].id
    answer = site.client.post(f"{site.at}/decide/{lesson}", data={"verdict": "accept"}, headers=own)
    assert answer.status_code == 303


def test_pages_take_nothing_from_elsewhere_and_sit_in_no_frame(site: Site) -> None:
    for path in ("/", "/overview", "/report", "/nowhere"):
        headers = site.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
    assert not re.findall(r'(?:src|href|action)="(?!/|data:,|#)[^"]*"', site.get("/").text + site.get("/overview").text)


TRICKS = [
    "/../vault/silos/north/records.jsonl", "/%2e%2e/vault/silos/north/records.jsonl", "/..%2fvault/silos/north/key.pem",
    "/%2e%2e%2f%2e%2e%2fvault%2fsilos%2fnorth%2frecords.jsonl", "/style.css/../../vault/silos/north/records.jsonl",
    "/report/..%5c..%5cvault", "/report/../../run.json", "//vault/silos/north/records.jsonl", "/vault/", "/release/",
    "/example/..%2f..%2fvault%2fsilos%2fnorth%2frecords.jsonl", "/example/%00", "/at/0/../../../vault",
    "/%c0%ae%c0%ae/", "/static/../vault", "/file:///etc/passwd", "/?q=../vault", "/example/records", "/./report/.",
    "/report%00.html",
]  # fmt: skip


def test_no_address_reaches_the_vault_and_ctrl_c_is_clean(tmp_path: Path) -> None:
    """The command itself, a real server, and requests as no browser would send them."""
    root = tmp_path / "run"
    small_release(root)
    command = [sys.executable, "-m", "tutelage.flows.cli", "inspect", str(root), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        found = re.search(r"http://127\.0\.0\.1:(\d+)(/\S+)/", lines[-1])
        assert found, lines
        port, at = int(found[1]), found[2]
        assert b"texts" in _raw(port, f"{at}/")
        for trick in TRICKS:
            for path in (at + trick, trick, f"{at}/..{trick}", f"http://127.0.0.1:{port}{at}{trick}"):
                answer = _raw(port, path)
                assert SECRET.encode() not in answer, path
                assert b"PRIVATE KEY" not in answer, path
                assert not answer.startswith(b"HTTP/1.1 5"), path
        opened = {one.laddr.ip for one in psutil.Process(process.pid).net_connections() if one.status == "LISTEN"}
        assert opened == {"127.0.0.1"}
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert said == ""
    finally:
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def _raw(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return answer


# ---- what is computed of all texts ------------------------------------------------------------------------------


def test_neighbours_duplicates_and_fit_come_from_another_process(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    measures = site.inspector.measures
    assert "Not computed yet" in site.get("/overview").text
    Computing(measures, site.inspector.measured).thread.join()
    assert measures.progress == ""
    assert measures.embeddings is not None
    # every text stands in both rounds: its nearest is its twin, and the two payments nearly repeat each other
    place = next(i for i, one in enumerate(site.lessons) if one.prompt.startswith("Lower") and one.round == 1)
    nearest = [site.lessons[i].prompt for i, _ in measures.neighbours(place, 3)]
    assert all(one.startswith("Lower") for one in nearest)
    page = site.get(f"/example/{site.lessons[place].id}").text
    assert "4 near-duplicates" in page
    assert "1.00" in page
    assert site.inspector.index.count(Filters(twins=True, label="spam")) == 8
    worst = site.inspector.index.page(Filters(sort="fit", kind="example"), 0, 100)
    fits = [one.fit for one in worst]
    assert None not in fits
    assert fits == sorted(fits, key=lambda fit: fit or 0)
    assert 'class="map"' in site.get("/overview").text
    again = Measures(site.lessons)
    Computing(again, lambda: None).thread.join()  # from the cache
    assert np.array_equal(again.embeddings, measures.embeddings)


def test_fit_is_the_cosine_to_its_own_less_that_to_the_nearest_other() -> None:
    draw = np.random.default_rng(3)
    vectors = draw.standard_normal((7, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = ["a", "a", "b", "b", "b", "", "c"]
    measures = Measures([], embeddings=vectors)
    fit = measures.fit(labels)
    assert fit is not None

    def cosine(vector: np.ndarray, others: list[int]) -> float:
        middle = vectors[others].sum(axis=0)
        return float(vector @ middle / np.linalg.norm(middle))

    groups = {name: [i for i, label in enumerate(labels) if label == name] for name in "abc"}
    for i, label in enumerate(labels):
        if label in ("", "c"):  # no label; no other text of its label
            assert np.isnan(fit[i])
            continue
        own = cosine(vectors[i], [j for j in groups[label] if j != i])
        other = max(cosine(vectors[i], groups[name]) for name in groups if name != label)
        assert fit[i] == pytest.approx(own - other, abs=1e-5)
    assert measures.fit(["a"] * 7) is None
    assert Measures([]).fit([]) is None


def test_diversity_by_hand() -> None:
    found = diversity_of(["one two three", "one two four"])
    assert (found["texts"], found["words"], found["sample"]) == (2, 6, 2)
    assert found["distinct_1"] == pytest.approx(4 / 6)
    assert found["distinct_2"] == pytest.approx(3 / 4)
    assert found["distinct_3"] == 1
    assert diversity_of(["the same old words again"] * 5)["self_bleu"] == pytest.approx(1)
    assert diversity_of(["alone"])["self_bleu"] is None
    assert diversity_of([])["distinct_1"] is None
