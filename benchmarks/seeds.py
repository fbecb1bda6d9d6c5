"""How far runs of one recipe differ: every method's accuracy by run, and over all runs together.

    python benchmarks/seeds.py runs/demo runs/demo-1 runs/demo-2

Reads finished runs' reports. The runs' test sets are drawn anew by their seeds and may share mails, so the pooled
interval (Wilson, as if all answers were independent) is somewhat too narrow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tutelage.flows import layout
from tutelage.flows.report.render import METHODS
from tutelage.flows.stage import open_run
from tutelage.privacy.stats import share_metric


def main(folders: list[str]) -> None:
    last = [layout.reports(open_run(Path(folder)))[-1] for folder in folders]
    found = [{metric.name: metric for metric in report.metrics} for report in last]
    print(f"| Accuracy, % | {' | '.join(Path(folder).name for folder in folders)} | together |")
    print("|---|" + "---|" * (len(folders) + 1))
    print(f"| lessons | {' | '.join(str(sum(one.lessons_per_class.values())) for one in last)} | |")
    everywhere = set.intersection(*(set(metrics) for metrics in found))
    for method, title in METHODS.items():
        if f"accuracy.{method}" not in everywhere:
            continue
        metrics = [metrics[f"accuracy.{method}"] for metrics in found]
        right = sum(round(metric.value * metric.n) for metric in metrics)
        pooled = share_metric(method, right, sum(metric.n for metric in metrics))
        cells = [f"{100 * metric.value:.1f}" for metric in metrics]
        interval = f"{100 * pooled.ci_low:.1f} to {100 * pooled.ci_high:.1f}"
        print(f"| {title} | {' | '.join(cells)} | {100 * pooled.value:.1f} ({interval}) |")


if __name__ == "__main__":
    main(sys.argv[1:])
