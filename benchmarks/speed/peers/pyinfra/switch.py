"""Lets the service serve a release that is installed, with pyinfra."""

from pyinfra import host
from pyinfra.operations import server

server.shell(
    name="Switch to the release",
    commands=[
        f"sh /usr/local/lib/peers/switch.sh {host.data.peer_name} {host.data.peer_build} {host.data.peer_port}",
    ],
)
