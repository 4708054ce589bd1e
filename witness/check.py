"""The history checker: did every answer come from a release that was allowed to answer then? Pure."""

from collections.abc import Iterable, Mapping

from witness.records import Event, Record

MAXIMUM_SENTENCES = 20


def check(
    records: Iterable[Record],
    old: str,
    new: str,
    commits: Mapping[str, float],
    reverts: Mapping[str, float] | None = None,
) -> list[str]:
    """Return what is wrong with the answers, at most 20 sentences and one that counts the rest; empty: nothing.

    Every answer must be 2xx and carry one of the two releases. `commits` tells, by host, when (seconds since the start)
    a host had committed the new release: what is due later must be answered by `new`; from `reverts` on, when a host
    began to go back, by either. Hosts are those of the release header. Requests without an answer are failures, counted
    elsewhere; but a run or a committed host without any answer is wrong here, as nothing was checked.
    """
    back = reverts or {}
    wrong: list[str] = []
    hosts: set[str] = set()
    answers = 0
    for record in records:
        if record.status is None:
            continue
        answers += 1
        hosts.add(record.host or "")
        host = record.host or ""
        committed = commits.get(host)
        if not 200 <= record.status < 300:
            reason = f"answered with status {record.status}"
        elif record.release not in (old, new):
            reason = f"answered by {record.release or 'no release'}, expected {old} or {new}"
        elif record.release != new and committed is not None and record.at > committed:
            if committed <= back.get(host, -1) < record.at:
                continue
            reason = f"answered by {record.release} although {host} had committed {new} at {committed:.3f} s"
        else:
            continue
        wrong.append(f"{record.stream} at {record.at:.3f} s to {record.target}: {reason}")
    if not answers:
        wrong.append("no request was answered, nothing could be checked")
    else:
        seen = ", ".join(sorted(hosts - {""})) or "no host"
        wrong += [
            f"{host} committed but answered no request; answers came from {seen}"
            for host in commits
            if host not in hosts
        ]
    more = len(wrong) - MAXIMUM_SENTENCES
    return [*wrong[:MAXIMUM_SENTENCES], f"and {more} more"] if more > 0 else wrong


def turns(events: Iterable[Event]) -> tuple[dict[str, float], dict[str, float]]:
    """Return commits and reverts, by host, of the events named `commit HOST` and `revert HOST`; the last one counts."""
    found: dict[str, dict[str, float]] = {"commit": {}, "revert": {}}
    for event in events:
        kind, _, host = event.name.partition(" ")
        if kind in found and host:
            found[kind][host.strip()] = event.at
    return found["commit"], found["revert"]
