#!/bin/sh
# vulkan.sh: makes sure that a Vulkan driver is there that can start, and installs the software
# one (lavapipe) where none is. Says nothing where nothing is to be done.
set -eu

case $(uname -s) in
    Linux) ;;
    # Metal is a part of macOS and DX12 one of Windows.
    *) exit 0 ;;
esac

loader() {
    PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1' && return
    for dir in /usr/lib/*-linux-gnu /usr/lib64 /usr/lib /usr/local/lib; do
        [ -e "$dir/libvulkan.so.1" ] && return
    done
    return 1
}

# A manifest says that a driver is installed, not that its hardware is here: Mesa's package puts
# those for Intel and AMD on every machine.
can_start() {
    case $1 in
        */lvp_icd*|*swiftshader*) return 0 ;;
        */nvidia_icd*) [ -e /dev/nvidiactl ]; return ;;
        */dzn_icd*) [ -e /dev/dxg ]; return ;;
    esac
    for node in /dev/dri/renderD*; do
        [ -r "$node" ] && [ -w "$node" ] && return
    done
    return 1
}

driver() {
    # The user's own choice counts as it is.
    named=${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}
    if [ -n "$named" ]; then
        [ -e "${named%%:*}" ] && return
        echo "error: VK_DRIVER_FILES or VK_ICD_FILENAMES names ${named%%:*}, which does not exist" >&2
        exit 1
    fi
    for manifest in /usr/share/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json \
        /etc/vulkan/icd.d/*.json "${XDG_DATA_HOME:-${HOME:-}/.local/share}"/vulkan/icd.d/*.json; do
        [ -e "$manifest" ] && can_start "$manifest" && return
    done
    return 1
}

loader && driver && exit 0

for node in /dev/dri/renderD*; do
    [ -e "$node" ] || continue
    [ -r "$node" ] && [ -w "$node" ] && continue
    echo "note: this user may not open $node, so its GPU stays unused" >&2
    echo "hint: often solved by: sudo usermod -aG render $(id -un), and a new login" >&2
done
if command -v apt-get >/dev/null; then
    echo "no Vulkan driver can start here; the software one runs anywhere" >&2
    exec sh "$(dirname "$0")/apt.sh" 'a Vulkan driver' mesa-vulkan-drivers libvulkan1
fi
cat >&2 <<'END'
error: no Vulkan driver can start here
hint: install one; the software driver runs anywhere:
  Debian, Ubuntu:  apt-get install mesa-vulkan-drivers libvulkan1
  Fedora:          dnf install mesa-vulkan-drivers vulkan-loader
  Arch:            pacman -S vulkan-swrast vulkan-icd-loader
END
exit 1
