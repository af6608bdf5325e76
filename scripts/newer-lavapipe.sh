#!/bin/sh
# newer-lavapipe.sh DIR: on Debian 12, puts the lavapipe of its backports into DIR, beside the system's, and prints the
# path of its manifest. Elsewhere the system's is as new: then it prints nothing.
set -eu

dir=$1
manifest=$dir/lvp_icd.json
[ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ] || exit 0
if [ ! -e "$manifest" ]; then
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    dir=$(cd "$dir" && pwd)
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$key] http://deb.debian.org/debian bookworm-backports main" >"$dir/sources.list"
    # Lists of its own: the system's stay as they are.
    apt() {
        apt-get -qq -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" \
            -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o APT::Sandbox::User=root "$@" >&2
    }
    apt update
    (cd "$dir" && apt download mesa-vulkan-drivers/bookworm-backports)
    dpkg-deb -x "$dir"/mesa-vulkan-drivers_*.deb "$dir/root"
    library=$(find "$dir/root" -name libvulkan_lvp.so)
    sed "s#\"library_path\": *\"[^\"]*\"#\"library_path\": \"$library\"#" \
        "$dir"/root/usr/share/vulkan/icd.d/lvp_icd*.json >"$manifest.part"
    mv "$manifest.part" "$manifest"
fi
echo "$manifest"
