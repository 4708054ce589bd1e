#!/bin/sh
# switch NAME BUILD PORT: let the service serve a release, and wait until the site says so
set -eu
name=$1 build=$2 port=$3
if [ "$(readlink "/srv/$name/current")" = "releases/$build" ] && systemctl is-active --quiet "$name"; then exit; fi
ln -sfn "releases/$build" "/srv/$name/next"
mv -T "/srv/$name/next" "/srv/$name/current"
systemctl enable --quiet "$name"
systemctl reload-or-restart "$name"
exec python3 - "$port" "$build" <<'PYTHON'
import json, sys, time, urllib.request

url, build, deadline = f"http://127.0.0.1:{sys.argv[1]}/version", int(sys.argv[2]), time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        if json.load(urllib.request.urlopen(url, timeout=5))["build"] == build:
            sys.exit()
    except OSError:
        pass
    time.sleep(0.1)
sys.exit(f"{url} does not answer with build {build}")
PYTHON
