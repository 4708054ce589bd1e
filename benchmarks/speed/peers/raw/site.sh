#!/bin/sh
# site NAME: what a host needs before its first release; changes only what differs
set -eu
name=$1
cd "$(dirname "$0")"
if ! dpkg-query --show nginx python3-venv >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends nginx python3-venv >/dev/null
fi
id "$name" >/dev/null 2>&1 || useradd --system --user-group --home-dir "/srv/$name" --no-create-home --shell /usr/sbin/nologin "$name"
mkdir -p "/srv/$name/releases" "/etc/$name" /usr/local/lib/peers

put() { # FILE PATH: says whether it has changed
    cmp -s "$1" "$2" && return 1
    cp "$1" "$2.new"
    mv "$2.new" "$2"
}

put install.sh /usr/local/lib/peers/install.sh || true
put switch.sh /usr/local/lib/peers/switch.sh || true
put peer.gunicorn.py "/etc/$name/gunicorn.conf.py" || true
if put peer.service "/etc/systemd/system/$name.service"; then systemctl daemon-reload; fi
if put peer.site "/etc/nginx/conf.d/$name.conf"; then nginx -q -t && systemctl reload-or-restart nginx; fi
