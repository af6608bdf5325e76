// The device's rate of fused multiply-adds: each invocation runs STREAMS independent vec4 chains for
// `rounds` rounds and stores one sum, so that nothing can be left out.
//
// x = x * y + z tends to z / (1 - y) and stays finite. UNROLL rounds stand in a row, since a loop
// costs some drivers more than what is in it (lavapipe blends every live value with a mask).
// 2 * 4 * STREAMS * UNROLL * rounds floating-point operations per invocation.
// Reference: none; the result is held to the closed form by the host. Host: src/kernels/peak.rs.

struct Params {
    rounds: u32,
    factor: f32,
    addend: f32,
}

// Eight chains of four: enough to hide the latency of an FMA everywhere tried.
const STREAMS: u32 = 8u;
const UNROLL: u32 = 16u;
const WORKGROUP: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group.x * WORKGROUP + lane;
    var x: array<vec4<f32>, STREAMS>;
    for (var s = 0u; s < STREAMS; s++) {
        x[s] = vec4<f32>(f32(s + lane % 4u));
    }
    let y = vec4<f32>(params.factor);
    let z = vec4<f32>(params.addend);
    for (var r = 0u; r < params.rounds; r++) {
        for (var u = 0u; u < UNROLL; u++) {
            for (var s = 0u; s < STREAMS; s++) {
                x[s] = fma(x[s], y, z);
            }
        }
    }
    var sum = vec4<f32>();
    for (var s = 0u; s < STREAMS; s++) {
        sum += x[s];
    }
    if i < arrayLength(&result) {
        result[i] = sum.x + sum.y + sum.z + sum.w;
    }
}
