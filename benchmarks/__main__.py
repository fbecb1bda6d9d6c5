"""Measure how fast tutelage is and write docs/performance.md.

    python -m benchmarks [NAME ...] [--full]      # all of them

Each runs in a process of its own. One that is named alone replaces its own lines of the table. `vllm` needs what
`make vllm` builds, `train` the extra `bench` (`pip install -e '.[bench]'`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from benchmarks import suite
from benchmarks.suite import Figure
from tutelage.configs.errors import UserError

BENCHMARKS = ("decode", "vllm", "private", "train", "score", "run", "start", "rows")


def main() -> int:
    """Run them one after the other; 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--full", action="store_true", help="with what takes long: a million rows")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    failed = []
    for name in options.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        try:
            figures = _alone(name, options.full)
        except UserError as error:
            print(f"  left out: {error}" + (f"\n  try: {error.remedy}" if error.remedy else ""), flush=True)
            failed.append(name)
            continue
        except Exception:  # the others are measured all the same
            traceback.print_exc()
            failed.append(name)
            continue
        suite.keep(name, figures, time.monotonic() - started, options.full)
        suite.write_page(suite.table(suite.load(), BENCHMARKS))
        for one in figures:
            print("  " + "   ".join(cell for cell in one.row() if cell), flush=True)
    if failed:
        print(f"not measured: {', '.join(failed)}; their lines are as they were", flush=True)
    return 1 if failed else 0


def _alone(name: str, full: bool) -> list[Figure]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(suite.measured, name, full).result()


if __name__ == "__main__":
    sys.exit(main())
