"""Initialise and unseal the lab's OpenBao: openbao.py ADDRESS STATE_DIRECTORY.

Keeps the unseal key and the root token in STATE_DIRECTORY (0600): the lab's Vault holds nothing of worth, and must come
back by itself after a restart. A real Vault is initialised by its owners.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import hvac
import requests


def wait_for(client: hvac.Client, seconds: float) -> None:
    """Return once the server answers at all; raise SystemExit with the last reason after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.sys.is_initialized()
        except (requests.RequestException, hvac.exceptions.VaultError) as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"OpenBao does not answer at {client.url}: {error}") from None
            time.sleep(0.3)
        else:
            return


def keep(path: Path, content: str) -> None:
    """Write a file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(content)


def main(address: str, state: Path) -> None:
    """Bring the server to initialised and unsealed; print what was done."""
    session = requests.Session()
    session.trust_env = False
    session.verify = str(state / "ca.pem")
    # a machine that is busy writing its images takes more than ten seconds to put the first keys on disk
    client = hvac.Client(url=address, token="", session=session, timeout=120)
    wait_for(client, 60)
    key = state / "vault-unseal-key"
    if not client.sys.is_initialized():
        answer = client.sys.initialize(secret_shares=1, secret_threshold=1)
        keep(key, answer["keys"][0])
        # the last: where it is missing, infra.yml begins anew
        keep(state / "vault-token", answer["root_token"])
        print("initialised")
    if client.sys.is_sealed():
        if not key.exists():
            raise SystemExit(f"{key} is gone, nobody can unseal this Vault; in the lab: scripts/demo down")
        client.sys.submit_unseal_key(key.read_text())
        print("unsealed")
    deadline = time.monotonic() + 60
    while not client.sys.read_leader_status()["is_self"]:
        if time.monotonic() > deadline:
            raise SystemExit("OpenBao did not become active within 60 s")
        time.sleep(0.3)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
