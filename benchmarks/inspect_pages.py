"""How long the inspector's pages take, with 100,000 released texts; goal: each under 200 ms.

    python benchmarks/inspect_pages.py                  # a few minutes, 1 GiB
    python benchmarks/inspect_pages.py --texts 10000

Texts are sentences of the public mails, put together at random and signed, so that words are spread as in real ones.
What is computed of all texts in the background (neighbours, duplicates, diversity) is made up for that, and timed apart
on 1,000 of them.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from fastapi.testclient import TestClient

from tutelage.configs.jsonl import write_jsonl
from tutelage.configs.models import fetch_mail
from tutelage.configs.records import Lesson
from tutelage.configs.store import canonical_json, write_atomic
from tutelage.flows.inspector.app import Inspector, make_app
from tutelage.flows.inspector.measures import Computing, Measures, plane
from tutelage.flows.inspector.released import read_released
from tutelage.privacy.keys import SiloKey
from tutelage.privacy.mail import load_mails
from tutelage.privacy.release import _payload
from tutelage.privacy.similarity import EMBEDDING_DIM

SILOS, ROUNDS = 4, 2


def main() -> None:
    """Make a release, open it, ask for every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20, help="how often each page is asked for")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_release(root, chosen.texts)
        started = time.monotonic()
        inspector = Inspector(read_released(root), root / "review.jsonl", "benchmark")
        print(
            f"{chosen.texts:,} texts read, their signatures checked and indexed in {time.monotonic() - started:.1f} s"
        )
        pretend(inspector)
        client = TestClient(make_app(inspector, ["testserver"]), follow_redirects=False)
        at = f"/{inspector.token}"
        lesson = inspector.released.lessons[chosen.texts // 2].id
        pages = {
            "all texts": f"{at}/",
            "the last page of them": f"{at}/from/{chosen.texts - 50}",
            "search for one word": f"{at}/?q=please",
            "search, filters, order": f"{at}/?q=the&silo=silo-1&label=spam&round=1&words_min=10&sort=longest",
            "worst fit first": f"{at}/?sort=fit",
            "a text with its neighbours": f"{at}/at/{chosen.texts // 2}/{lesson}",
            "the whole set": f"{at}/overview",
        }
        print(f"{'page':<28} {'median':>8} {'worst':>8}")
        for name, address in pages.items():
            times = [_asked(client, address) for _ in range(chosen.rounds)]
            print(f"{name:<28} {1000 * median(times):>5.0f} ms {1000 * max(times):>5.0f} ms")
        times = [_decided(client, f"{at}/decide/{lesson}") for _ in range(chosen.rounds)]
        print(f"{'a decision, on the disk':<28} {1000 * median(times):>5.0f} ms {1000 * max(times):>5.0f} ms")
        background(inspector, min(chosen.texts, 1000))


def pretend(inspector: Inspector) -> None:
    """Embeddings and groups of near-duplicates as if they had been computed: pages take as long with any."""
    draw, measures, count = np.random.default_rng(0), inspector.measures, len(inspector.released.lessons)
    vectors = draw.standard_normal((count, EMBEDDING_DIM)).astype(np.float32)
    measures.embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    measures.twins = draw.integers(0, count, count)
    measures.points, measures.spread = plane(measures.embeddings)
    inspector.measured()


def background(inspector: Inspector, texts: int) -> None:
    """Time what is computed of all texts on some of them."""
    few = Measures(random.Random(0).sample(inspector.released.lessons, texts))
    started = time.monotonic()
    Computing(few, lambda: None).thread.join()
    seconds = time.monotonic() - started
    print(f"neighbours, duplicates and diversity of {texts:,} texts, in the background: {seconds:.0f} s")


def make_release(root: Path, texts: int) -> None:
    """A release/ as a run leaves it, without reports."""
    draw = random.Random(0)
    sentences: dict[str, list[str]] = {"ham": [], "spam": []}
    for mail in load_mails(fetch_mail(), 400):
        sentences[mail.completion] += [line for line in mail.text.split(". ") if 20 < len(line) < 160]
    run_id, keys = "benchmark-0", {}
    for silo in range(SILOS):
        name = f"silo-{silo}"
        key = SiloKey.create(root / "vault" / name / "key.pem")
        keys[name] = key.public_hex
        for round in range(1, ROUNDS + 1):
            rows = []
            for number in range(texts // SILOS // ROUNDS):
                label = ("ham", "spam")[number % 2]
                prompt = ". ".join(draw.choices(sentences[label], k=draw.randint(1, 4)))
                lesson = Lesson(
                    id=f"{name}-{round}-{number:016x}", kind="example", silo=name, round=round, prompt=prompt,
                    completion=label, mechanism="screened", prompt_version="1", signature="",
                )  # fmt: skip
                signature = key.sign(_payload(lesson.model_dump(), run_id)).hex()
                rows.append({**lesson.model_dump(), "signature": signature})
            write_jsonl(root / "release" / f"round-{round}" / "silos" / f"{name}.jsonl", rows)
    write_atomic(root / "release" / "public_keys.json", canonical_json(keys))
    described = {"run_id": run_id, "recipe": {"name": "benchmark", "task": {"labels": {"ham": "", "spam": ""}}}}
    write_atomic(root / "run.json", canonical_json(described))


def _asked(client: TestClient, address: str) -> float:
    started = time.monotonic()
    assert client.get(address).status_code == 200
    return time.monotonic() - started


def _decided(client: TestClient, address: str) -> float:
    started = time.monotonic()
    assert client.post(address, data={"verdict": "accept"}).status_code == 303
    return time.monotonic() - started


if __name__ == "__main__":
    main()
