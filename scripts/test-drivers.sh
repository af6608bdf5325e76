#!/bin/sh
# test-drivers.sh [--brief]: the whole test suite on every software Vulkan driver: lavapipe with subgroups
# of 4, 8 and (where the CPU has AVX-512) 16 lanes, on Debian 12 also the newer lavapipe of its backports,
# and SwiftShader. One line per driver.
# With --brief, which follows `make test`, the driver that those tests had is left out, and the others run the tests of kernels
# and gradients: lavapipe with the most lanes and SwiftShader all of them but those of drawn cases, lavapipe with fewer and the
# newer one, which takes long to compile, the gradients alone.
set -eu
cd "$(dirname "$0")/.."

if [ "$(uname -s)" != Linux ]; then
    echo "error: the software drivers that this installs are Linux's" >&2
    exit 1
fi
lavapipe=/usr/share/vulkan/icd.d/lvp_icd.$(uname -m).json
swiftshader=/usr/lib/chromium/vk_swiftshader_icd.json
sh scripts/apt.sh "$lavapipe" mesa-vulkan-drivers libvulkan1
sh scripts/apt.sh "$swiftshader" chromium-common

# All that a driver can change the outcome of: not tests/translation.rs, which needs none.
suite='--lib --bins'
for file in tests/*.rs tests/*/main.rs; do
    name=${file#tests/} name=${name%/main.rs} name=${name%.rs}
    case $name in
        translation | chromium) ;;
        *) suite="$suite --test $name" ;;
    esac
done
# Built once; then the same binaries run under every driver.
# shellcheck disable=SC2086 # words, here and below
cargo test --quiet --no-run $suite
logs=target/test-drivers
mkdir -p "$logs"
tested=
[ "${1:-}" != --brief ] || tested=$(cargo test --test driver -- --nocapture </dev/null 2>/dev/null | sed -n 's/^adapter: //p')
all_passed=0
all_failed=0

# on LABEL ADAPTER LANES MANIFEST WIDTH CARGO-TEST-ARGUMENT...
on() {
    label=$1 adapter=$2 lanes=$3 manifest=$4 width=$5
    shift 5
    log=$logs/$label.log
    started=$(date +%s)
    status=0
    # The driver that was asked for must be the one that answers; only then do its tests mean anything.
    if under --test driver -- --nocapture; then
        found=$(sed -n 's/^adapter: //p' "$log")
        if [ "$found" = "$tested" ]; then
            echo "$label: $found: left out, make test had it"
            return
        fi
        under --no-fail-fast "$@" || status=$?
    else
        found='could not be started'
        status=1
    fi
    # shellcheck disable=SC2046 # two words
    set -- $(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")
    passed=$1 failed=$2
    # A test binary that died has failed, whatever it had counted.
    [ "$status" = 0 ] || [ "$failed" != 0 ] || failed=1
    all_passed=$((all_passed + passed)) all_failed=$((all_failed + failed))
    echo "$label: $found: $passed passed, $failed failed, $(($(date +%s) - started)) s"
    if [ "$failed" != 0 ]; then
        grep -E '^test .* FAILED$|panicked at|signal:' "$log" | sort -u | sed 's/^/    /'
        echo "    see $log"
    fi
}

# What the user may have set for other runs must not choose the driver here.
# Mesa's shader cache takes no notice of the vector width and would hand one width's code to another: each has its own.
under() {
    env -u WGPU_ADAPTER_NAME -u VK_ICD_FILENAMES -u VK_ADD_DRIVER_FILES \
        WGPU_BACKEND=vulkan VK_DRIVER_FILES="$manifest" LP_NATIVE_VECTOR_WIDTH="$width" \
        MESA_SHADER_CACHE_DIR="$PWD/$logs/cache-$label" \
        LIMBECK_TEST_ADAPTER="$adapter" LIMBECK_TEST_LANES="$lanes" \
        cargo test "$@" </dev/null >"$log" 2>&1
}

most=$suite few=$suite
if [ "${1:-}" = --brief ]; then
    most='--lib --test kernels --test gradients --test non_finite' few='--test gradients'
fi
on lavapipe-8 llvmpipe 8 "$lavapipe" 256 $most
if grep -q avx512f /proc/cpuinfo; then
    on lavapipe-16 llvmpipe 16 "$lavapipe" 512 $most
    on lavapipe-4 llvmpipe 4 "$lavapipe" 128 $few
else
    echo 'lavapipe-16: left out, this CPU has no AVX-512'
    on lavapipe-4 llvmpipe 4 "$lavapipe" 128 $most
fi
newer=$(sh scripts/newer-lavapipe.sh "$PWD/target/newer-lavapipe") || newer=
if [ -n "$newer" ]; then
    on newer-lavapipe llvmpipe 8 "$newer" 256 $few
else
    echo "newer-lavapipe: left out, the system's is as new or Debian's backports cannot be reached"
fi
on swiftshader SwiftShader 4 "$swiftshader" 128 $most

echo "$all_passed passed, $all_failed failed"
[ "$all_failed" = 0 ]
