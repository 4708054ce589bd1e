"""Is a request lost? All that is done to a release, and all that can happen to it, under load in the lab.

`scripts/benchmark zero_loss --help`. The exit code is 0 only if all that is demanded holds. benchmarks/README.md says
what each section proves.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import command, cutover, faults, injections, power, stock, sweep
from benchmarks.figures import too_few


def sections(plot: Path | None) -> Mapping[str, command.Section]:
    """The sections by name, in their order. The sweeps come last: they bring releases of their own."""
    return {
        "release": lambda session: cutover.release(session, plot),
        "unkept": cutover.unkept,
        "reload": cutover.reload,
        "recycle": cutover.recycle,
        "nginx": cutover.nginx,
        "playbooks": cutover.playbooks,
        "broken": faults.broken,
        "kill": faults.kill,
        "injected": injections.injected,
        "power": power.power,
        "stock": stock.stock,
        "sweep": sweep.sweep,
        "naive": sweep.naive,
    }


BENCHMARK = command.Benchmark(
    name="zero_loss",
    purpose=(__doc__ or "").partition("\n")[0],
    # more would not fit into the hour for which a witness watches
    repetitions=(20, 60),
    sections=sections,
    plotted="release",
    every="kill at each Nth task boundary (default 1)",
    missing=too_few,
)

if __name__ == "__main__":
    sys.exit(command.main(BENCHMARK, sys.argv[1:]))
