"""Utility against ε: configs/strict_dp.yaml at ε = 0, 1, 4, 10 and ∞ over several seeds. Hours on two cores.

    python benchmarks/sweep.py [--seeds 0 1 2] [--out runs/sweep] [--write benchmarks/sweep]

One run a seed: ε = 4 is released, the others are its brackets and stay in its vault. Most attacks are left out, so its
gate refuses, which costs no student. A run that was stopped goes on.
What a finished one measured is kept in WRITE/seed-N.json, with the recipe's digest and the versions, and a seed that
has its file is not run again: seeds may be run on several days, and the table is of all that are there. Every seed has
ledgers of its own: the mails are public, and each row of the table is what one organisation would see that spends its
budget once. Writes a table (WRITE.md) and a plot (WRITE.png), and prints the table.

Right answers of all seeds are pooled for the Wilson intervals (the seeds' test sets differ). The ratio to ε = ∞ has
the interval of a ratio of two independent proportions (Katz et al. 1978), which is wide: both answer the same mails.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path

from tutelage.configs.records import RoundReport
from tutelage.configs.store import write_atomic
from tutelage.flows import layout
from tutelage.flows.report.figures import bracket_epsilon
from tutelage.flows.stage import open_run
from tutelage.privacy.stats import share_metric

BRACKETS = "[0, 1, 10, .inf]"


def main() -> None:
    """Run what is missing, then tabulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--write", type=Path, default=Path("benchmarks/sweep"))
    options = parser.parse_args()
    for seed in options.seeds:
        kept, folder = options.write / f"seed-{seed}.json", options.out / f"seed-{seed}" / "run"
        if kept.exists():
            continue
        settings = [f"seed={seed}", f"privacy.brackets={BRACKETS}", "attack.run=[]"]  # it asks for utility alone
        command = [str(Path(sys.executable).with_name("tutelage")), "run", "configs/strict_dp.yaml"]
        command += ["--run-dir", str(folder), *(part for one in settings for part in ("--set", one))]
        if subprocess.run(command, check=False).returncode not in (0, 3):  # 3: its gate refused, which is a result
            sys.exit(f"the run of seed {seed} failed; start this again to go on")
        # Figures marked internal are kept too: these mails are public.
        report = layout.reports(open_run(folder))[-1].model_copy(update={"roc": ()})
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, report.model_dump_json(indent=1) + "\n")
    found = {path.stem.removeprefix("seed-"): path for path in options.write.glob("seed-*.json")}
    reports = {int(seed): RoundReport.model_validate_json(path.read_text()) for seed, path in sorted(found.items())}
    points = {epsilon: counts(list(reports.values()), name) for epsilon, name in names(reports).items()}
    table = tabulate(points, reports)
    options.write.with_suffix(".md").write_text(table)
    draw(points, reports, options.write.with_suffix(".png"))
    print(table)


def names(reports: dict[int, RoundReport]) -> dict[float, str]:
    """ε -> the metric of its student, by ε."""
    first = next(iter(reports.values()))
    found = {first.certificates[0].epsilon_asked: "accuracy.student"}
    for metric in first.metrics:
        epsilon = bracket_epsilon(metric.name.removeprefix("accuracy."))
        if epsilon is not None and metric.name.startswith("accuracy."):
            found[epsilon] = metric.name
    return dict(sorted(found.items()))


def counts(reports: list[RoundReport], name: str) -> list[tuple[int, int]]:
    """(right, asked) of every seed."""
    metrics = [report.metric(name) for report in reports]
    return [(round(metric.value * metric.n), metric.n) for metric in metrics if metric is not None and metric.measured]


def tabulate(points: dict[float, list[tuple[int, int]]], reports: dict[int, RoundReport]) -> str:
    """The table as Markdown."""
    seeds = " | ".join(f"seed {seed}" for seed in reports)
    lines = ["# Utility against ε", "", "`python benchmarks/sweep.py`, a column a seed; [the plot](sweep.png).", ""]
    lines += [f"| ε | {seeds} | together (95% Wilson) | of ε = ∞ (95%) |", "|---|" + "---|" * (len(reports) + 2)]
    others = {
        title: counts(list(reports.values()), f"accuracy.{key}")
        for key, title in (("zero_shot", "zero-shot"), ("tfidf", "TF-IDF on the lessons of the asked ε"))
    }
    rows = {f"ε = {epsilon:g}".replace("inf", "∞"): found for epsilon, found in points.items()} | others
    whole = [sum(column) for column in zip(*points.get(math.inf, [(0, 0)]), strict=True)]
    for title, found in rows.items():
        right, asked = (sum(column) for column in zip(*found, strict=True))
        pooled = share_metric("pooled", right, asked)
        cells = " | ".join(f"{100 * k / n:.1f}" for k, n in found)
        together = f"{100 * pooled.value:.1f} ({100 * pooled.ci_low:.1f} to {100 * pooled.ci_high:.1f})"
        lines.append(f"| {title} | {cells} | {together} | {share_of(right, asked, *whole)} |")
    lessons = ", ".join(str(sum(report.lessons_per_class.values())) for report in reports.values())
    certificate = next(iter(reports.values())).certificates[0]
    lines += [
        "",
        f"Accuracy in %, on {', '.join(str(n) for _, n in next(iter(points.values())))} balanced test mails. Lessons "
        f"learned from: {lessons}. δ = {certificate.delta:.3g} or less, unit: {certificate.unit}, adjacency: "
        f"{certificate.adjacency}.",
        "",
    ]
    return "\n".join(lines)


def share_of(right: int, asked: int, other_right: int, other_asked: int) -> str:
    """A ratio of two proportions with its interval."""
    if not right or not other_right:
        return "-"
    ratio = right / asked / (other_right / other_asked)
    spread = 1.96 * math.sqrt(1 / right - 1 / asked + 1 / other_right - 1 / other_asked)
    return f"{100 * ratio:.0f}% ({100 * ratio * math.exp(-spread):.0f} to {100 * ratio * math.exp(spread):.0f})"


def draw(points: dict[float, list[tuple[int, int]]], reports: dict[int, RoundReport], path: Path) -> None:
    """Pooled accuracy with its interval at every ε, the seeds as small dots, zero-shot as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for at, found in enumerate(points.values()):
        right, asked = (sum(column) for column in zip(*found, strict=True))
        pooled = share_metric("pooled", right, asked)
        low, high = 100 * (pooled.value - pooled.ci_low), 100 * (pooled.ci_high - pooled.value)
        axes.errorbar(at, 100 * pooled.value, [[low], [high]], fmt="o", color="#1f5fa8", capsize=4, zorder=3)
        axes.scatter([at + 0.12] * len(found), [100 * k / n for k, n in found], s=14, color="#999999", zorder=2)
    zero = counts(list(reports.values()), "accuracy.zero_shot")
    level = 100 * sum(k for k, _ in zero) / sum(n for _, n in zero)
    axes.axhline(level, color="#999999", linestyle="--", linewidth=1)
    axes.annotate(
        "zero-shot",
        (0.99, level),
        xycoords=("axes fraction", "data"),
        fontsize=8,
        color="#666666",
        va="bottom",
        ha="right",
    )
    axes.set_xticks(range(len(points)), [f"{epsilon:g}".replace("inf", "∞") for epsilon in points])
    axes.set_xlabel("ε of the run, per record, replace-by-null")
    axes.set_ylabel("accuracy of the student, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee", zorder=0)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
