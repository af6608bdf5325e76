#!/bin/sh
# apt.sh WANTED PACKAGE...: installs Debian packages, or says how. Does nothing where WANTED, a
# command or a file, is there already.
set -eu

wanted=$1
shift
if [ -e "$wanted" ] || command -v "$wanted" >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "error: $wanted is missing" >&2
    echo "hint: these are Debian's names, look for this system's own: $*" >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "error: $wanted is missing, and only root can install it" >&2
        echo "hint: as root, apt-get install --no-install-recommends $*" >&2
        exit 1
    fi
    as_root=sudo
fi

apt() {
    # The lock: another apt may be at work, on a fresh machine even one that nobody started.
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null >/dev/null
}
echo "installing $* (apt-get)" >&2
# A fresh container has no package lists, and old lists name files that are gone: hence a second try.
apt install -y --no-install-recommends "$@" 2>/dev/null || {
    apt update
    apt install -y --no-install-recommends "$@"
}
