"""What stands beside: the same events on a stock gunicorn unit of the same host, with the same interpreter and load."""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults import describe, judge, kill_master
from benchmarks.figures import Row, Tally, Window, make_row
from benchmarks.fleet import FleetError
from benchmarks.session import PAUSE, STEADY, Session, counted
from witness.load import Result

HOST = "app1"
PORT = 8090
FILES = Path(__file__).with_name("baseline")
REPETITIONS = 3
# Seconds until somebody has noticed that the release is broken and has put the file before back.
OUTAGE = 8.0
# Seconds a start may take.
PATIENCE = 30.0
DIRECTORY = "/srv/stock"
APPLICATION = f"{DIRECTORY}/stock.py"
BROKEN = 'raise ImportError("stock: broken")\n'
# The signal is only sent: the new workers take about as long as this.
HUP = "systemctl reload stock && sleep 2"
# What a HUP to a broken file has made of the unit is forgotten.
REPAIR = "systemctl reset-failed stock; systemctl restart stock"


def write(session: Session, path: str, text: str) -> None:
    """Write a file on the host, readable by all."""
    # encoded, as it passes through two shells
    content = base64.b64encode(text.encode()).decode()
    session.fleet.ssh(HOST, f"echo {content} | base64 --decode > {path} && chmod 0644 {path}")


def address(session: Session) -> str:
    """The base URL of the stock site."""
    return f"http://{session.fleet.reach(HOST)['private_address']}:{PORT}"


def await_answer(session: Session) -> None:
    """Return once the stock site answers three times in a row. Raises FleetError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE
    good, said = 0, ""
    while good < 3:
        try:
            with opener.open(f"{address(session)}/health", timeout=5):
                good += 1
        except (urllib.error.URLError, OSError) as error:
            good, said = 0, str(error)
        if time.monotonic() >= deadline:
            raise FleetError(f"the stock unit does not answer ({said}); see: journalctl -u stock on {HOST}")
        time.sleep(0.2)


@contextmanager
def installed(session: Session, files: Mapping[str, str]) -> Iterator[None]:
    """The stock unit and its site on the host, until the end of the block. files: in its directory, name to text."""
    name = session.fleet.name
    try:
        session.fleet.ssh(HOST, "mkdir -p /srv/stock")
        for file, text in files.items():
            write(session, f"{DIRECTORY}/{file}", text)
        write(session, "/etc/systemd/system/stock.service", (FILES / "stock.service").read_text().replace("NAME", name))
        write(session, "/etc/nginx/conf.d/stock.conf", (FILES / "stock.conf").read_text())
        session.fleet.ssh(HOST, "systemctl daemon-reload && systemctl start stock")
        session.fleet.ssh(HOST, "nginx -q -t && systemctl reload nginx")
        await_answer(session)
        yield
    finally:
        session.fleet.ssh(HOST, "systemctl stop stock; systemctl reset-failed stock", check=False)
        session.fleet.ssh(HOST, "rm -rf /etc/systemd/system/stock.service /etc/nginx/conf.d/stock.conf /srv/stock")
        session.fleet.ssh(HOST, "systemctl daemon-reload && nginx -q -t && systemctl reload nginx")


def stock(session: Session) -> list[Row]:
    """restart, HUP, HUP to a broken file and kill -9 of the master, each with its failures; nothing is demanded."""
    application = (FILES / "stock_app.py").read_text()

    def break_and_repair() -> None:
        write(session, APPLICATION, BROKEN)
        session.fleet.ssh(HOST, "systemctl reload stock", check=False)
        time.sleep(OUTAGE)
        write(session, APPLICATION, application)
        session.fleet.ssh(HOST, REPAIR)

    events: list[tuple[str, int, Callable[[], object]]] = [
        ("stock: systemctl restart", REPETITIONS, lambda: session.fleet.ssh(HOST, "systemctl restart stock")),
        ("stock: HUP", REPETITIONS, lambda: session.fleet.ssh(HOST, HUP)),
        ("stock: HUP, broken release", 1, break_and_repair),
    ]
    with installed(session, {"stock.py": application}):
        rows = [_events(session, name, min(count, session.repetitions), work) for name, count, work in events]
        rows[-1].note = f"the file before put back after {OUTAGE:g} s"
        return [*rows, _kill(session)]


def login_per_worker(session: Session, identity: str, seal: Callable[[], object], unseal: Callable[[], object]) -> Row:
    """HUP of a stock unit whose workers log in to Vault when they start, while it is sealed; nothing is demanded.

    identity: JSON with address, role_id and secret_id.
    """
    name = "stock, workers log in: HUP"
    files = {
        "base.py": (FILES / "stock_app.py").read_text(),
        "stock.py": (FILES / "login_app.py").read_text(),
        "vault.json": identity,
    }

    def reload() -> None:
        seal()
        try:
            session.fleet.ssh(HOST, "systemctl reload stock", check=False)
            time.sleep(OUTAGE)
        finally:
            unseal()
        session.fleet.ssh(HOST, REPAIR)

    with installed(session, files):
        windows: list[Window] = []
        session.say(name)
        result = _watched(session, windows, name, 1, reload)
    note = f"Vault sealed for {OUTAGE:g} s"
    return make_row(name, 1, counted(result, windows, name, Tally()), ours=False, note=note)


def _events(session: Session, name: str, repetitions: int, work: Callable[[], object]) -> Row:
    windows: list[Window] = []
    session.say(f"{name}, repetitions: {repetitions}")
    result = _watched(session, windows, name, repetitions, work)
    return make_row(name, repetitions, counted(result, windows, name, Tally()), ours=False)


def _watched(
    session: Session, windows: list[Window], name: str, repetitions: int, work: Callable[[], object]
) -> Result:
    """Carry an event out under a witness of the stock site; each has ended when the site answers again."""
    with session.watch(HOST, urls=(address(session),), ca="") as witness:
        time.sleep(STEADY)
        for _ in range(repetitions):
            with session.window(witness, windows, name):
                work()
                await_answer(session)
            time.sleep(PAUSE)
    return witness.result()


def _kill(session: Session) -> Row:
    name = "stock: kill -9 of the master"
    session.say(name)
    windows: list[Window] = []
    moments: list[float] = []
    result = _watched(session, windows, name, 1, lambda: moments.append(kill_master(session, HOST, "stock")))
    note = describe([judge(result, moments[0], windows[0].end)])
    return make_row(name, 1, counted(result, windows, name, Tally()), ours=False, note=note)
