"""What a release costs: wall, processor time, SSH executions and bytes, beside other tools in the same run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.fleet import ROOT, FleetError
from benchmarks.speed.builds import Build, Builder
from benchmarks.speed.figures import (
    CODE,
    COLD,
    DEPENDENCIES,
    IDLE_DEPLOY,
    IDLE_RELEASE,
    OURS,
    ROLLBACK,
    TOOLS,
    Measured,
    demands,
    document,
    lines,
    table,
    verdict,
)
from benchmarks.speed.lab import Lab
from benchmarks.speed.plot import page
from benchmarks.speed.tools import Tool, make_tools, step
from plugins.module_utils.bareforge_bundle import BundleError

HOSTS = 8
# What a round does with each tool, in this order: a rollback leaves the release before it to the next.
ROUND = (CODE, IDLE_RELEASE, ROLLBACK, DEPENDENCIES, IDLE_DEPLOY)
# Seconds a run may take, and a site until it answers with the build after it.
LONGEST = 1800.0
PATIENCE = 20.0
# Seconds of traffic before and after what is watched, requests a second on each host.
STEADY = 3.0
RATE = 10.0


@dataclass(frozen=True)
class Options:
    """What was asked for. hosts: numbers of hosts, largest first; repetitions: of each work on the fewest hosts."""

    hosts: tuple[int, ...]
    repetitions: int
    tools: tuple[str, ...]
    cold: bool
    json: Path | None
    plot: Path | None


def parse(arguments: Sequence[str]) -> Options:
    """The command line; ends the program where it is wrong."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark deploy_speed", description=(__doc__ or "").strip())
    parser.add_argument("--hosts", default="1,2,4,8", metavar="N,...", help=f"how many, up to {HOSTS} (1,2,4,8)")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="on the fewest hosts (default 3)")
    parser.add_argument("--tools", default=",".join(TOOLS), metavar="NAME,...", help=f"of: {', '.join(TOOLS)}")
    parser.add_argument("--no-cold", action="store_true", help="leave the deploy to a new host out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, and the machine")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write wall over number of hosts as HTML")
    given = parser.parse_args(arguments)
    try:
        hosts = sorted({int(number) for number in given.hosts.split(",")}, reverse=True)
    except ValueError:
        parser.error(f"--hosts is {given.hosts}; write numbers, such as 1,2")
    if not all(1 <= number <= HOSTS for number in hosts):
        parser.error(f"--hosts is {given.hosts}; each must be from 1 to {HOSTS}")
    if not 1 <= given.repetitions <= 4:
        parser.error(f"--repetitions is {given.repetitions}; it must be from 1 to 4")
    wanted = [name.strip() for name in given.tools.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in TOOLS]
    if unknown or not wanted:
        parser.error(f"--tools names {', '.join(unknown) or 'nothing'}; there are {', '.join(TOOLS)}")
    for file in (given.json, given.plot):
        if file and not file.absolute().parent.is_dir():
            parser.error(f"{file} is in no directory; make it first")
    tools = tuple(name for name in TOOLS if name in wanted)
    return Options(tuple(hosts), given.repetitions, tools, not given.no_cold, given.json, given.plot)


class Benchmark:
    """One run against the lab of this benchmark."""

    def __init__(self, options: Options, lab: Lab, directory: Path) -> None:
        self.options = options
        self.lab = lab
        self.directory = directory
        self.measured: list[Measured] = []
        self.starts: dict[int, float] = {}
        self.wheel_bytes = 0
        self._began = time.monotonic()
        self._rounds = 0

    def say(self, text: str) -> None:
        """Tell progress on standard error."""
        print(f"[{time.monotonic() - self._began:.0f} s] {text}", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Measure everything. Raises FleetError, BundleError."""
        self.say(f"raising {len(self.lab.hosts)} hosts")
        self.lab.raise_hosts()
        builder = Builder(self.directory, self.lab.target())
        tools = make_tools(self.lab, self.directory, self.options.tools)
        first = builder.make()
        self.wheel_bytes = first.wheel_bytes
        for tool in tools:
            self.say(f"{tool.name}: first deploy to all hosts")
            self._measure(tool, COLD, self.lab.hosts, first)
        few = min(self.options.hosts)
        for number in self.options.hosts:
            hosts = self.lab.hosts[:number]
            for _ in range(self.options.repetitions if number == few else 1):
                self._round(tools, hosts, builder)
            watched = [tool for tool in tools if number == few or tool.name == OURS]
            if watched:
                self._round(watched, hosts, builder, watch=True)
            if OURS in self.options.tools:
                self.starts[number] = self.lab.start_seconds(hosts)
        if self.options.cold:
            self._cold(tools, builder.make())

    def _round(self, tools: Sequence[Tool], hosts: Sequence[str], builder: Builder, watch: bool = False) -> None:
        code, other = builder.make(), builder.make(other_lock=True)
        builds = {CODE: code, IDLE_RELEASE: code, DEPENDENCIES: other, IDLE_DEPLOY: other}
        self._rounds += 1
        turn = self._rounds % len(tools)
        for work in ROUND:
            # none of them is always the one that runs after the same other
            for tool in [*tools[turn:], *tools[:turn]]:
                build = builds[work] if work in builds else tool.served[-2]
                with self._watched(tool, hosts, watch) as seen:
                    result = self._measure(tool, work, hosts, build)
                requests, failed = seen
                self.measured.append(replace(result, watched=watch, requests=requests, failed=failed))

    def _cold(self, tools: Sequence[Tool], build: Build) -> None:
        host = self.lab.hosts[0]
        for tool in tools:
            self.say(f"a new {host}")
            self.lab.renew(host)
            self.measured.append(self._measure(tool, COLD, [host], build))

    @contextmanager
    def _watched(self, tool: Tool, hosts: Sequence[str], watch: bool) -> Iterator[list[int]]:
        """Requests to the tool's site meanwhile; gives requests and failed ones, filled in at the end."""
        seen = [0, 0]
        if not watch:
            yield seen
            return
        urls = tuple(self.lab.url(host, tool.port) for host in hosts)
        plan = {"urls": urls, "ca": "", "post": "/echo", "slow": None, "slow_post": None, "stream": None, "rate": RATE}
        with self.lab.fleet.witness(**plan) as witness:
            time.sleep(STEADY)
            yield seen
            time.sleep(STEADY)
        records = witness.result().records
        seen[:] = len(records), sum(bool(record.failure) for record in records)

    def _measure(self, tool: Tool, work: str, hosts: Sequence[str], build: Build) -> Measured:
        call = tool.call(step(work), hosts, build)
        idle = self.lab.count(hosts)
        before = self.lab.count(hosts)
        cost = self._timed(call.command, call.environment)
        # what one reading costs, which the second one includes
        used = self.lab.count(hosts) - before - (before - idle)
        for host in hosts:
            self.lab.await_build(host, tool.port, build.number, PATIENCE)
        if work in (COLD, CODE, DEPENDENCIES):
            tool.served.append(build)
        elif work == ROLLBACK:
            tool.served.pop()
        self.say(f"{work}, {tool.name}, hosts: {len(hosts)}: {cost['wall']:.1f} s")
        return Measured(
            tool.name, work, len(hosts), cost["wall"], cost["cpu"], used.cpu, used.executions, used.received
        )

    def _timed(self, command: list[str], environment: dict[str, str]) -> dict[str, float]:
        result = self.directory / "cost.json"
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.measured", str(result), *command],
            env={**self.lab.fleet.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=LONGEST,
        )
        if run.returncode:
            raise FleetError(f"{' '.join(command)} failed:\n{run.stdout[-6000:]}{run.stderr[-3000:]}")
        cost: dict[str, float] = json.loads(result.read_text())
        return cost


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    pyinfra = subprocess.run([ROOT / ".venv-pyinfra/bin/pyinfra", "--version"], capture_output=True, text=True)
    return {
        "cores": os.cpu_count(),
        "memory_mb": int(meminfo["MemTotal"].split()[0]) // 1024,
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "ansible-core": version("ansible-core"),
        "pyinfra": pyinfra.stdout.strip(),
    }


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    options = parse(arguments)
    # removes its hosts also when it is told to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lab = Lab(Path(os.environ["LAB_STATE"]), [f"app{number}" for number in range(1, max(options.hosts) + 1)])
    with tempfile.TemporaryDirectory(prefix="bareforge-speed-") as directory:
        benchmark = Benchmark(options, lab, Path(directory))
        failure = ""
        try:
            benchmark.run()
        except (FleetError, BundleError, OSError, ValueError, subprocess.SubprocessError) as error:
            failure = f"{type(error).__name__}: {str(error).strip()}"
        finally:
            benchmark.say("removing the hosts")
            try:
                lab.remove()
            except (FleetError, subprocess.SubprocessError) as error:
                failure = f"{failure} and the hosts could not be removed: {error}"
    found = lines(benchmark.measured)
    demanded = demands(found, benchmark.starts, benchmark.wheel_bytes)
    print(table(found), verdict(demanded), sep="\n\n")
    text = document(benchmark.measured, found, demanded, benchmark.starts, machine())
    if options.json:
        options.json.write_text(json.dumps(text, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(page(found, "What a release costs"))
    if failure:
        print(f"benchmark: broke off: {failure}", file=sys.stderr)
    return 0 if text["holds"] and not failure else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
