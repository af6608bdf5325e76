#!/bin/sh
# Holds what limbeck reads and writes against other programs from PyPI. Needs python3 with venv or
# virtualenv, and the network on its first run; builds the binary unless LIMBECK names one.
set -eu
cd "$(dirname "$0")/../.."

venv=target/interop
stamp=$venv/requirements.txt
if ! cmp -s tests/interop/requirements.txt "$stamp"; then
    rm -rf "$venv"
    # Debian splits venv's pip off into a package of its own; virtualenv brings one.
    python3 -m venv "$venv" 2>/dev/null || python3 -m virtualenv --quiet "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/interop/requirements.txt
    cp tests/interop/requirements.txt "$stamp"
fi
if [ -z "${LIMBECK:-}" ]; then
    cargo build --quiet
    LIMBECK=target/debug/limbeck
fi
"$venv/bin/python" tests/interop/check.py "$LIMBECK"
"$venv/bin/python" tests/interop/frameworks.py "$LIMBECK" keras
