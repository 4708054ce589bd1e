#!/bin/sh
# install NAME BUILD BUNDLE: a release with an environment of its own from a bundle (a file, or - for standard input)
set -eu
name=$1 build=$2 bundle=$3
root=/srv/$name release=/srv/$name/releases/$build
rm -rf "$release"
mkdir -p "$release"
tar --extract --no-same-owner --file "$bundle" --directory "$release"
python3 -m venv "$release/venv"
pip() { "$release/venv/bin/pip" --disable-pip-version-check install --quiet --no-index --no-deps "$@"; }
pip --require-hashes --find-links "$release/wheels" -r "$release/lock.txt"
pip "$release"/*.whl
rm -rf "$release/wheels"
runuser -u "$name" -- "$release/venv/bin/python" -c 'import speed_app'
touch "$release/complete"
# the newest three stay
find "$root/releases" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' | sort -rn | tail -n +4 | cut -d' ' -f2- | xargs -r rm -rf
