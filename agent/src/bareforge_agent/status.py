"""What the agent says of itself to everybody on the host: nothing in it is secret.

In a directory of its own, since that of the secrets is for their readers only: `status.json` for the application's
probes, `metrics.prom` for a collector (Prometheus's text format, as node_exporter's textfile collector takes it).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bareforge_agent import files

METRICS = {
    "well": ("gauge", "Whether every setting is current (1) or something is the matter (0)."),
    "settings": ("gauge", "Settings that are declared."),
    "logins_total": ("counter", "Logins to Vault since the agent was started."),
    "token_end_timestamp_seconds": ("gauge", "When the token ends unless it is renewed."),
    "lease_end_timestamp_seconds": ("gauge", "When a lease ends unless it is renewed, by path."),
}


@dataclass(frozen=True)
class Status:
    """`text` is what systemctl shows; ends are seconds since the epoch, those of leases by path in Vault."""

    well: bool
    text: str
    settings: int
    logins: int
    token_end: float
    lease_ends: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> str:
        """The text of `metrics.prom`. A token that does not end has no line."""
        values = {
            "well": {"": float(self.well)},
            "settings": {"": float(self.settings)},
            "logins_total": {"": float(self.logins)},
            "token_end_timestamp_seconds": {"": self.token_end} if self.token_end else {},
            "lease_end_timestamp_seconds": {
                f"{{path={json.dumps(path)}}}": end for path, end in sorted(self.lease_ends.items())
            },
        }
        lines: list[str] = []
        for name, (kind, help_text) in METRICS.items():
            lines += [f"# HELP bareforge_agent_{name} {help_text}", f"# TYPE bareforge_agent_{name} {kind}"]
            lines += [f"bareforge_agent_{name}{labels} {value:.0f}" for labels, value in values[name].items()]
        return "\n".join(lines) + "\n"


def publish(directory: Path, status: Status) -> None:
    """Write both files, for everybody."""
    files.publish(directory, {"status.json": files.to_json(asdict(status)) + "\n", "metrics.prom": status.metrics()})
