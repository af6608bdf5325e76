// The device's rate of fused multiply-adds: each invocation runs eight independent vec4 chains for
// `rounds` rounds of 16 and stores one sum, so that nothing can be left out.
//
// x = x * y + z tends to z / (1 - y) and stays finite. A round is written out and the chains have names:
// a loop costs some drivers more than what is in it (lavapipe blends every live value with a mask, which
// halves the rate where it does not unroll), and an array may be kept in memory.
// 2 * 4 * 8 * 16 * rounds floating-point operations per invocation.
// Reference: none; the result is held to the closed form by the host. Host: src/kernels/peak.rs.

struct Params {
    rounds: u32,
    factor: f32,
    addend: f32,
}

const WORKGROUP: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;

fn four(x: vec4<f32>, y: vec4<f32>, z: vec4<f32>) -> vec4<f32> {
    return fma(fma(fma(fma(x, y, z), y, z), y, z), y, z);
}

fn sixteen(x: vec4<f32>, y: vec4<f32>, z: vec4<f32>) -> vec4<f32> {
    return four(four(four(four(x, y, z), y, z), y, z), y, z);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group.x * WORKGROUP + lane;
    let y = vec4<f32>(params.factor);
    let z = vec4<f32>(params.addend);
    var a = vec4<f32>(f32(lane % 4u));
    var b = a + 1.0;
    var c = a + 2.0;
    var d = a + 3.0;
    var e = a + 4.0;
    var f = a + 5.0;
    var g = a + 6.0;
    var h = a + 7.0;
    for (var r = 0u; r < params.rounds; r++) {
        a = sixteen(a, y, z);
        b = sixteen(b, y, z);
        c = sixteen(c, y, z);
        d = sixteen(d, y, z);
        e = sixteen(e, y, z);
        f = sixteen(f, y, z);
        g = sixteen(g, y, z);
        h = sixteen(h, y, z);
    }
    let sum = a + b + c + d + e + f + g + h;
    if i < arrayLength(&result) {
        result[i] = sum.x + sum.y + sum.z + sum.w;
    }
}
