"""What a host needs before its first release, with pyinfra; release.py follows."""

from pyinfra import host
from pyinfra.operations import apt, files, server, systemd

NAME = host.data.peer_name
DIRECTORY = host.data.peer_directory

apt.packages(
    name="Install packages", packages=["nginx", "python3-venv"], no_recommends=True, update=True, cache_time=86400
)
server.group(name="Create the group", group=NAME, system=True)
server.user(  # noqa: S604 (the shell of a user, not a command)
    name="Create the user",
    user=NAME,
    group=NAME,
    home=f"/srv/{NAME}",
    shell="/usr/sbin/nologin",
    system=True,
    ensure_home=False,
)
for directory in (f"/srv/{NAME}/releases", f"/etc/{NAME}", "/usr/local/lib/peers"):
    files.directory(name=f"Create {directory}", path=directory, user="root", group="root", mode="755")
for script in ("install.sh", "switch.sh"):
    files.put(
        name=f"Install {script}", src=f"{DIRECTORY}/host/{script}", dest=f"/usr/local/lib/peers/{script}", mode="755"
    )
files.put(name="Write gunicorn.conf.py", src=f"{DIRECTORY}/host/peer.gunicorn.py", dest=f"/etc/{NAME}/gunicorn.conf.py")
unit = files.put(
    name="Write the unit", src=f"{DIRECTORY}/host/peer.service", dest=f"/etc/systemd/system/{NAME}.service"
)
systemd.daemon_reload(name="Read the unit", _if=unit.did_change)
site = files.put(name="Write the site", src=f"{DIRECTORY}/host/peer.site", dest=f"/etc/nginx/conf.d/{NAME}.conf")
server.shell(
    name="Check and reload nginx", commands=["nginx -q -t", "systemctl reload-or-restart nginx"], _if=site.did_change
)
