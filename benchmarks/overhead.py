"""What being there costs: time added to a chat call, an agent step and a stream chunk, sync and async.

    python benchmarks/overhead.py [--rounds N] [--quick] [--check]

Each variant runs in processes of its own (the official tracer patches LangChain for good), interleaved, a fresh one
each round, against a model that answers at once. Printed are microseconds: the fastest and the median over all rounds,
and the added time as a ratio to what the official tracer adds. runcap meters, caps (dollars, steps) and writes spans
into a null exporter, from a MemoryLedger: `runcap` as a callback, `guarded model` by guard_model. The official tracer
only writes spans. `a span alone` is the least any tracer can add: one span of the SDK, and nothing known, priced or
capped. `+ metrics` records them as well, on both sides into the SDK with one reader. It collects between the batches,
as readers do on threads of their own; `collected` is the whole of it. runcap leaves most of the work to the reader.

`--check` exits with 1 where runcap adds more than 0.6 (sync) or 0.4 (async) of what the official tracer adds to a chat
call, 0.7 or 0.4 where both have metrics, or where its added time grows with the history.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable

from overhead_workloads import (
    COLLECTED,
    HISTORIES,
    METERED,
    VARIANTS,
    WITH_METRICS,
    WORKLOADS,
    measure,
    measure_histories,
    workloads_of,
)

GOALS = {"chat call, sync": 0.6, "chat call, async": 0.4}
GOALS_WITH_METRICS = {"chat call, sync": 0.7, "chat call, async": 0.4}
GROWTH = 1.5
Figures = dict[str, dict[str, list[float]]]


def child(variant: str, batches: int) -> dict[str, list[float]]:
    """One process's batches, by workload."""
    command = [sys.executable, __file__, "--child", variant, "--batches", str(batches)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this very file
    figures: dict[str, list[float]] = json.loads(done.stdout)
    return figures


def gather(rounds: int, batches: int) -> Figures:
    """All rounds of all variants, interleaved."""
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        every = VARIANTS + WITH_METRICS
        order = every if number % 2 == 0 else every[::-1]
        for variant in order:
            for workload, times in child(variant, batches).items():
                figures[workload][variant] += times
    return figures


def added(times: dict[str, list[float]], variant: str, of: str) -> float:
    """Microseconds a variant adds to a bare call."""
    pick = min if of == "min" else statistics.median
    return pick(times[variant]) - pick(times["none"])


def show(figures: Figures) -> list[str]:
    """Print the table; what misses its goal."""
    print(f"{'us':<24}" + "".join(f"{name:>20}" for name in VARIANTS) + f"{'runcap / official':>24}")
    missed = []
    for workload in WORKLOADS:
        times = figures[workload]
        cells = [f"{min(times[name]):.1f} / {statistics.median(times[name]):.1f}" for name in VARIANTS]
        ratios = [added(times, "runcap", of) / added(times, "official", of) for of in ("min", "median")]
        guarded = added(times, "guarded model", "median") / added(times, "official", "median")
        shown = f"{ratios[0]:.2f} / {ratios[1]:.2f} / {guarded:.2f}"
        print(f"{workload:<24}" + "".join(f"{cell:>20}" for cell in cells) + f"{shown:>24}")
        if ratios[1] > GOALS.get(workload, float("inf")):
            missed.append(f"{workload}: {ratios[1]:.2f} of the official tracer's, goal {GOALS[workload]}")
    print("each cell: fastest / median of all batches; the ratios: of the times added to `none`, likewise, and")
    print("the median of the guarded model")
    return missed


def show_with_metrics(figures: Figures) -> list[str]:
    """Print what is added with metrics, and the part of it that the metrics are; what misses its goal."""
    plain = ("runcap", "official")
    print(f"\n{'us added, medians':<34}" + "".join(f"{name:>20}" for name in WITH_METRICS) + f"{'ratio':>8}")
    missed = []
    for workload in (one + suffix for one in METERED for suffix in ("", COLLECTED)):
        bare = workload.removesuffix(COLLECTED)
        none = statistics.median(figures[bare]["none"])
        added = [statistics.median(figures[workload][name]) - none for name in WITH_METRICS]
        before = [statistics.median(figures[bare][name]) - none for name in plain]
        cells = [f"{now:.1f} ({now - was:+.1f})" for now, was in zip(added, before, strict=True)]
        ratio = added[0] / added[1]
        print(f"{workload:<34}" + "".join(f"{cell:>20}" for cell in cells) + f"{ratio:>8.2f}")
        if ratio > GOALS_WITH_METRICS.get(workload, float("inf")):
            missed.append(
                f"{workload}, with metrics: {ratio:.2f} of the official tracer's, goal {GOALS_WITH_METRICS[workload]}"
            )
    print("in brackets: against the same without metrics")
    return missed


def show_histories(rows: Iterable[tuple[int, dict[str, float], float]]) -> list[str]:
    """Print what is added to the second and later calls of histories of growing length; what grows beyond reason.

    LangChain's own passes over thousands of messages empty the processor's caches, so that whatever runs after them is
    slower: the span alone shows by how much.
    """
    print(f"\n{'us a call, medians':<24}{'none':>12}{'+ a span':>12}{'+ runcap':>12}{'walk alone':>12}")
    added: dict[str, list[float]] = {"a span alone": [], "runcap": []}
    for length, medians, walk in rows:
        for name, figures in added.items():
            figures.append(medians[name] - medians["none"])
        cells = (medians["none"], *(figures[-1] for figures in added.values()), walk)
        print(f"{f'{length:,} messages':<24}" + "".join(f"{cell:>12.1f}" for cell in cells))
    span, runcap = (figures[-1] / figures[0] for figures in added.values())
    print(f"added at {HISTORIES[-1]:,} over added at {HISTORIES[0]}: a span alone {span:.2f}, runcap {runcap:.2f}")
    grows = runcap > max(GROWTH, span)
    return [f"runcap's added time grows {runcap:.2f} times with the history"] if grows else []


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes a variant")
    parser.add_argument("--batches", type=int, default=7, help="timed batches a process and workload")
    parser.add_argument("--quick", action="store_true", help="one round of three batches: does it run")
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    parser.add_argument("--child", choices=VARIANTS + WITH_METRICS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        told: dict[str, list[float]] = {}
        for name in workloads_of(options.child):
            told |= measure(options.child, name, options.batches)
        print(json.dumps(told))
        return
    rounds, batches = (1, 3) if options.quick else (options.rounds, options.batches)
    figures = gather(rounds, batches)
    missed = show(figures) + show_with_metrics(figures)
    missed += show_histories(measure_histories(batches))
    if options.check and missed:
        raise SystemExit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
