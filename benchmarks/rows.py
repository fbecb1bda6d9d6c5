"""How time and memory grow with a silo's rows: 1,000, 10,000 and 100,000 of them, with --full 1,000,000.

Short rows that a Markov chain of the mails' words makes up, so that common phrases are as common as in real text; ham
or spam each; every twentieth is a near-copy of the one before. Each number of rows has a process of its own, which does
what a run does with every row of a silo:

    load        read and check the file (privacy/sources.py)
    deal        near-duplicates, test set, non-members, silos (privacy/partition.py)
    vault       write the silo's records, and read them back
    references  the classifier of typical drafts, and the draw of every prompt's references (teachers/examples.py)
    overlap     what 100 drafts copy of all records (privacy/overlap.py)

Two things that a screened run does besides are models at work on one row at a time, so they are timed on 200 rows: the
scrubber, and the embeddings. The exponent b of time ~ rows^b, and what memory 1,000 rows more take, are those between
the two largest numbers of rows.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.suite import Figure, figure, say
from tutelage.configs.jsonl import write_jsonl
from tutelage.configs.models import fetch_mail
from tutelage.configs.schema import ClassificationTask, DataConfig, ScreenConfig, TeachConfig
from tutelage.privacy.mail import load_mails
from tutelage.privacy.overlap import Corpus
from tutelage.privacy.partition import partition
from tutelage.privacy.pii import Scrubber
from tutelage.privacy.similarity import embed
from tutelage.privacy.sources import load_records
from tutelage.privacy.vault import read_records, write_records
from tutelage.teachers import examples

SIZES = (1_000, 10_000, 100_000)
FULL = (*SIZES, 1_000_000)
ALONE = 200
TASK = ClassificationTask(description="Sort.", labels={"ham": "wanted", "spam": "unwanted"})


def measure(full: bool) -> list[Figure]:
    """A process for each number of rows."""
    sizes, found = FULL if full else SIZES, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for size in sizes:
            say(f"{size:,} rows")
            write_jsonl(path, made_up(size))
            command = [sys.executable, "-m", "benchmarks.rows", str(path), str(size)]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[size] = json.loads(told.splitlines()[-1])
    last, before = found[sizes[-1]], found[sizes[-2]]
    figures = []
    for step in last["seconds"]:
        took, grown = last["seconds"][step], last["seconds"][step] / before["seconds"][step]
        exponent = math.log(grown, sizes[-1] / sizes[-2])
        figures.append(figure(f"{step}: exponent of time in rows", [exponent], at_most=1.15))
        figures.append(figure(f"{step}: {sizes[-1]:,} rows", [took], " s"))
    for size in sizes:
        figures.append(figure(f"peak memory, {size:,} rows", [found[size]["mib"]], " MiB"))
    grown = (last["mib"] - before["mib"]) / (sizes[-1] - sizes[-2]) * 1000
    figures.append(figure("memory for 1,000 more rows (flat would be 0)", [grown], " MiB", at_most=0.1))
    rates = found[sizes[0]]["alone"]
    return [*figures, *(figure(f"{name}, in a screened run", [rate], " rows/s") for name, rate in rates.items())]


def main(path: Path, rows: int) -> None:
    """Do all steps with the rows of a file; the last line printed is what they took."""
    import scipy.sparse.csgraph  # noqa: F401  importing is no step
    import sklearn.feature_extraction.text
    import sklearn.linear_model  # noqa: F401

    seconds: dict[str, float] = {}
    data = DataConfig.model_validate(
        {"records": {"source": "files", "path": str(path)}, "silos": 1, "test_records": 100, "nonmember_records": 100}
    )
    vault = path.parent / "vault"
    with _timed("load", seconds):
        loaded = load_records(data, TASK, fetch_mail, vault / "spool.jsonl")
    with _timed("deal", seconds):
        [(_, records)] = partition(loaded, data, TASK, 0, 1).silos.items()
    del loaded
    with _timed("vault", seconds):
        written = read_records(write_records(vault / "records.jsonl", records))
        assert sum(1 for _ in written) == len(records)
    del records
    with _timed("references", seconds):
        examples.typicality(written, TASK)
        examples._slots(written, TASK, TeachConfig(), {}, "silo", 1, random.Random(0))
    drafts = [record.text + " and more" for record in written[:100]]
    with _timed("overlap", seconds):
        Corpus(written, public_completions=frozenset(TASK.labels)).copying(drafts)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    alone: dict[str, float] = {}
    if rows == SIZES[0]:
        texts = [record.text for record in written[:ALONE]]
        screen = ScreenConfig()
        scrubber = Scrubber(screen.entities, screen.pii_score)
        for name, work in {"scrubber": scrubber.scrub_many, "embeddings": embed}.items():
            work(texts[:8])
            with _timed(name, alone):
                work(texts)
    rates = {name: ALONE / took for name, took in alone.items()}
    print(json.dumps({"seconds": seconds, "mib": mib, "alone": rates}))


def made_up(rows: int) -> Iterator[dict[str, Any]]:
    """Rows of 6 to 20 words."""
    draw, text, label = random.Random(0), "", "ham"
    following: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in TASK.labels}
    for mail in load_mails(fetch_mail(), 10_000):
        for word, after in itertools.pairwise(mail.text.split()):
            following[mail.completion][word].append(after)
    starts = {name: list(words) for name, words in following.items()}
    for number in range(rows):
        if number % 20 == 19:
            text += " again"
        else:
            label = ("ham", "spam")[number % 2]
            words = [draw.choice(starts[label])]
            for _ in range(draw.randint(5, 19)):
                words.append(draw.choice(following[label].get(words[-1]) or starts[label]))
            text = " ".join(words)
        yield {"text": text, "label": label}


class _timed:
    """Note how long a block took, and tell."""

    def __init__(self, name: str, seconds: dict[str, float]) -> None:
        self.name, self.seconds = name, seconds

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = passed = time.perf_counter() - self.started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"    {self.name} {passed:.2f} s, peak {peak:,.0f} MiB", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
