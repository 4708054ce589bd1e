"""What tests that run inside a Molecule scenario know of its lab."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
INVENTORY = STATE / "inventory"
URL = f"https://localhost:{os.environ.get('LAB_HTTPS_PORT', '8453')}"
TRUST = ssl.create_default_context(cafile=str(STATE / "ca.pem"))
ENVIRONMENT = {
    **os.environ,
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "LAB_STATE": str(STATE),
    "VAULT_ADDR": f"https://127.0.0.1:{os.environ.get('LAB_VAULT_PORT', '18210')}",
    "VAULT_CACERT": str(STATE / "ca.pem"),
    "VAULT_TOKEN_FILE": str(STATE / "vault-token"),
    # the output is compared: no colours, no folding
    "ANSIBLE_FORCE_COLOR": "0",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
}


def ask(path: str, method: str = "GET", body: bytes | None = None) -> bytes:
    """The body of an answer through the load balancer; raises HTTPError for anything but 2xx."""
    request = urllib.request.Request(URL + path, data=body, method=method)
    if body is not None:
        request.add_header("Content-Type", "application/json")
    # a proxy of the environment does not reach this machine's own loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=TRUST))
    with opener.open(request, timeout=30) as response:
        answer: bytes = response.read()
    return answer


def play(playbook: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of this project against the scenario's hosts; returns with whatever status it ended."""
    command = ["ansible-playbook", "-i", str(INVENTORY), str(ROOT / "playbooks" / playbook), *arguments]
    return subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, cwd=ROOT)


def findings(run: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """What a run of audit.yml has found, by host; without the machine's own swap, which its containers show too."""
    decoder = json.JSONDecoder()
    found: dict[str, list[str]] = {"app1": [], "app2": []}
    for failure in re.finditer(r"^fatal: \[(\w+)\]: FAILED! => (?=\{)", run.stdout, re.M):
        result, _ = decoder.raw_decode(run.stdout, failure.end())
        assert "; ".join(result["findings"]) in result["msg"]
        found[failure[1]] = [sentence for sentence in result["findings"] if not sentence.startswith("swap on ")]
    assert (run.returncode == 0) == ("fatal: [" not in run.stdout), run.stdout
    return found
