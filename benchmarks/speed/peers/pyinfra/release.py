"""A release from the bundle, beside what serves, with pyinfra; switch.py follows."""

from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.operations import files, server

NAME, BUILD = host.data.peer_name, host.data.peer_build
BUNDLE = f"/srv/{NAME}/bundle.tar"

if not host.get_fact(File, path=f"/srv/{NAME}/releases/{BUILD}/complete"):
    files.put(name="Copy the bundle", src=f"{host.data.peer_directory}/bundle.tar", dest=BUNDLE)
    server.shell(
        name="Install the release",
        commands=[f"sh /usr/local/lib/peers/install.sh {NAME} {BUILD} {BUNDLE}", f"rm {BUNDLE}"],
    )
