// The device's copy bandwidth: copy[i] = source[i], ROUNDS vec4 to an invocation.
//
// 32 bytes moved per vec4. A workgroup copies one contiguous piece, neighbouring invocations
// neighbouring vec4.
// Reference: the host compares the bytes. Host: src/kernels/peak.rs.

struct Params {
    // Vec4 groups in the buffers.
    groups: u32,
}

const ROUNDS: u32 = 16u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> copy: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var r = 0u; r < ROUNDS; r++) {
        let i = (group.x * ROUNDS + r) * 64u + lane;
        if i >= params.groups {
            return;
        }
        copy[i] = source[i];
    }
}
