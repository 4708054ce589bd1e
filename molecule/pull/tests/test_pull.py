"""A host that has converged by itself; then the store turns bad, piece by piece."""

import json

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://app1"]

ASK = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1/version', timeout=30).read().decode())"
PULL = "/usr/bin/python3 -I /usr/local/lib/bareforge/bareforge_pull.py"
STATUS = "/run/bareforge-pull/status.json"
EDIT = """
import base64, json, pathlib
[file] = pathlib.Path('/srv/store/hello').glob('python*.json')
envelope = json.loads(file.read_text())
manifest = json.loads(base64.b64decode(envelope['manifest']))
%s
envelope['manifest'] = base64.b64encode(json.dumps(manifest).encode()).decode()
file.write_text(json.dumps(envelope))
"""


@pytest.fixture(autouse=True)
def as_root(host: Host):
    with host.sudo():
        yield


@pytest.fixture
def store(host: Host):
    """The store, put back as it was at the end."""
    host.check_output("rm -rf /srv/kept && cp -a /srv/store /srv/kept")
    yield "/srv/store/hello"
    host.check_output("rm -rf /srv/store && mv /srv/kept /srv/store")


def edit(host: Host, statements: str) -> None:
    host.check_output("/usr/bin/python3 -c %s", EDIT % statements)


def refusal(host: Host) -> str:
    """Pull, which has to be refused; what serves serves on. Returns the message."""
    done = host.run(PULL)
    assert done.rc == 1, done.stdout
    assert json.loads(host.check_output("/usr/bin/python3 -c %s", ASK)) == {"build": 0}
    said = json.loads(host.check_output(f"cat {STATUS}"))
    assert said["state"] == "failed"
    message = done.stderr.strip().splitlines()[-1]
    assert message == f"bareforge-pull: {said['message']}"
    return said["message"]


def test_it_serves(host: Host) -> None:
    assert json.loads(host.check_output("/usr/bin/python3 -c %s", ASK)) == {"build": 0}
    for unit in ("hello.socket", "hello", "nginx", "bareforge-pull"):
        assert host.service(unit).is_enabled, unit
        assert host.service(unit).is_running, unit


def test_it_says_that_it_is_ready_and_what_it_serves(host: Host) -> None:
    said = json.loads(host.check_output(f"cat {STATUS}"))
    serving = json.loads(host.check_output("bareforge status hello"))
    assert said["state"] == "ready"
    assert said["release"] == serving["release"]
    assert [worker["release"] for worker in serving["workers"]] == [said["release"]] * 2


def test_its_inventory_is_the_one_that_was_published(host: Host) -> None:
    assert "HELLO_GREETING" in host.check_output("cat /etc/hello/active/environment")
    assert "hello from the inventory" in host.check_output("cat /etc/hello/active/environment")
    assert "asg-1" in host.check_output("cat /etc/nginx/sites-available/hello.conf")


def test_nothing_was_built_and_no_index_asked(host: Host) -> None:
    assert not host.file("/usr/bin/git").exists
    assert host.run("test -e /root/.cache/bareforge").rc == 1
    made = host.check_output("ls /var/lib/bareforge-pull/home/.cache/bareforge").split()
    assert [name for name in made if name.startswith("wheel-")] == []


def test_pulling_again_changes_nothing(host: Host) -> None:
    before = json.loads(host.check_output("bareforge status hello"))
    done = host.run(PULL)
    assert done.rc == 0, done.stdout[-3000:] + done.stderr
    assert "changed=0" in done.stdout
    after = json.loads(host.check_output("bareforge status hello"))
    assert after["serving"] == before["serving"]
    assert [worker["pid"] for worker in after["workers"]] == [worker["pid"] for worker in before["workers"]]


def test_verify_only_says_what_there_is(host: Host) -> None:
    assert "release 0.1.0-" in host.check_output(f"{PULL} --verify")


def test_a_manifest_that_somebody_changed_is_refused(host: Host, store: str) -> None:
    edit(host, "manifest['sequence'] += 1")
    assert refusal(host) == (
        "the manifest in the store is not signed by a key of this host's configuration; publish it with the right "
        "key, or see who else can write to the store"
    )


def test_a_manifest_that_somebody_else_signed_is_refused(host: Host, store: str) -> None:
    host.check_output("rm -f /run/other /run/other.pub && ssh-keygen -q -t ed25519 -N '' -f /run/other")
    edit(
        host,
        "import subprocess; text = json.dumps(manifest).encode(); envelope['signature'] = subprocess.run("
        "['ssh-keygen', '-Y', 'sign', '-f', '/run/other', '-n', 'bareforge'], input=text, capture_output=True, "
        "check=True).stdout.decode()",
    )
    assert "is not signed by a key of this host's configuration" in refusal(host)


def test_a_damaged_blob_is_refused(host: Host, store: str) -> None:
    # what the host has it does not fetch again
    host.check_output("rm -rf /var/lib/bareforge-pull/blobs")
    [layer, *_] = host.check_output(f"ls -S {store}/blobs").split()
    host.check_output(f"truncate --size=-1 {store}/blobs/{layer}")
    message = refusal(host)
    assert message.startswith("layer-")
    assert message.endswith(".tar in the store is damaged (SHA-256 differs); publish the bundle again")


def test_a_blob_that_is_missing_is_refused(host: Host, store: str) -> None:
    host.check_output(f"rm -rf /var/lib/bareforge-pull/blobs {store}/blobs/*")
    assert refusal(host).endswith("of its own manifest; publish the bundle again")


def test_a_store_without_a_bundle_for_this_python_is_refused(host: Host, store: str) -> None:
    host.check_output(f"rm {store}/python*.json")
    message = refusal(host)
    assert message.startswith("the store has no bundle of hello for python3.")
    assert "ansible-playbook playbooks/publish.yml --extra-vars" in message


def test_an_older_bundle_is_refused(host: Host, store: str) -> None:
    state = "/var/lib/bareforge-pull/state.json"
    kept = json.loads(host.check_output(f"cat {state}"))
    host.check_output(f"echo '{json.dumps({**kept, 'sequence': kept['sequence'] + 10})}' > {state}")
    try:
        assert "is older than the one this host had" in refusal(host)
    finally:
        host.check_output(f"echo '{json.dumps(kept)}' > {state}")


def test_after_all_of_this_it_converges_again(host: Host) -> None:
    done = host.run("systemctl restart bareforge-pull")
    assert done.rc == 0, host.check_output("journalctl --output=cat -n 50 -u bareforge-pull")
    assert json.loads(host.check_output(f"cat {STATUS}"))["state"] == "ready"
