#!/bin/sh
# test-barriers.sh TEST...: runs test programs on SwiftShader under Vulkan's validation layer. The layer holds every call to
# the specification, and what a command reads and writes to the barriers before it: one that is missing does not show
# on a software driver, which has a dispatch done before it begins the next. Not on lavapipe, for the layer does not
# take an image over a tensor's memory (src/gpu/image.rs) for the same memory.
set -eu
cd "$(dirname "$0")/.."

if [ "$(uname -s)" != Linux ]; then
    echo "error: the validation layer that this takes is Linux's" >&2
    exit 1
fi
# Chromium's, for the one that Debian 12 packs looks at no dispatch.
layer=/usr/lib/chromium/libVkLayer_khronos_validation.so
driver=/usr/lib/chromium/vk_swiftshader_icd.json
sh scripts/apt.sh "$layer" chromium-common
dir=$PWD/target/test-barriers
mkdir -p "$dir"
cat >"$dir/VkLayer_khronos_validation.json" <<END
{
    "file_format_version": "1.2.0",
    "layer": {
        "name": "VK_LAYER_KHRONOS_validation",
        "type": "GLOBAL",
        "library_path": "$layer",
        "api_version": "1.3.0",
        "implementation_version": "1",
        "description": "Khronos Validation Layer"
    }
}
END
# 10684 is naga's: it writes down where the members of a struct lie for private variables too (gfx-rs/wgpu#7696).
cat >"$dir/vk_layer_settings.txt" <<END
khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.report_flags = error
khronos_validation.enable_message_limit = false
khronos_validation.message_id_filter = VUID-StandaloneSpirv-None-10684
khronos_validation.validate_sync = true
khronos_validation.syncval_full_validation = true
khronos_validation.syncval_shader_accesses_heuristic = true
END

# validated LOG CARGO-TEST-ARGUMENT...
validated() {
    log=$dir/$1.log
    shift
    env -u WGPU_ADAPTER_NAME -u VK_ICD_FILENAMES -u VK_ADD_DRIVER_FILES WGPU_BACKEND=vulkan VK_DRIVER_FILES="$driver" \
        VK_LAYER_PATH="$dir" VK_LAYER_SETTINGS_PATH="$dir/vk_layer_settings.txt" VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation \
        LIMBECK_TEST_ADAPTER=SwiftShader LIMBECK_TEST_LANES=4 \
        cargo test "$@" </dev/null >"$log" 2>&1 || {
        cat "$log"
        exit 1
    }
}
# What the layer says against us, a line each, but for two things that it cannot know: that what would touch `nothing` lies
# under a constant that does not hold, and that parts of `report` that are written side by side lie between each other where there
# are several students and share no element though their ranges overlap (src/gpu/plan_tests.rs holds the barriers to the elements).
complaints() {
    awk '/^Validation / {
        what = $4
        getline
        if (!/\[nothing\]/ && !(what == "SYNC-HAZARD-WRITE-AFTER-WRITE" && /\[report\]/)) print "    " what " " $0
    }' "$log"
}

validated planted --lib -- --ignored planted
if ! complaints | grep -q SYNC-HAZARD-READ-AFTER-WRITE; then
    echo "error: the validation layer does not see that a barrier is missing; see $log" >&2
    exit 1
fi
failed=0
for test in "$@"; do
    started=$(date +%s)
    validated "$test" --test "$test"
    passed=$(awk '/^test result:/ { p += $4 } END { print p + 0 }' "$log")
    count=$(complaints | wc -l)
    echo "$test: $passed passed, $count complaints of the validation layer, $(($(date +%s) - started)) s"
    if [ "$count" != 0 ]; then
        failed=1
        complaints | sort | uniq -c | sort -rn | head -20
        echo "    see $log"
    fi
done
exit $failed
