// The device's rate of fused multiply-adds: each invocation runs `rounds` rounds of 16 over eight vec4 and stores one
// sum, so that nothing can be left out.
//
// Each of the 32 values is multiplied with another one, so that a round needs the whole of the one before it. Chains
// that know nothing of each other a compiler may put one behind the other to save registers (LLVM does), and then
// the latency of a multiply-add is measured. All values tend to x = x^2 + 3/16, which is 1/4.
// A round is written out and the values have names: a loop costs some drivers more than what is in it (lavapipe blends
// every live value with a mask), and an array may be kept in memory.
// 2 * 4 * 8 * 16 * rounds floating-point operations per invocation.
// Reference: none; the result is held to the closed form by the host. Host: src/kernels/peak.rs.

struct Params {
    rounds: u32,
    // 3/16.
    addend: f32,
}

struct Eight {
    a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, e: vec4<f32>, f: vec4<f32>, g: vec4<f32>, h: vec4<f32>,
}

const WORKGROUP: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;

fn once(x: Eight, z: vec4<f32>) -> Eight {
    var y = x;
    y.a = fma(y.a, y.b.yzwx, z);
    y.b = fma(y.b, y.c.yzwx, z);
    y.c = fma(y.c, y.d.yzwx, z);
    y.d = fma(y.d, y.e.yzwx, z);
    y.e = fma(y.e, y.f.yzwx, z);
    y.f = fma(y.f, y.g.yzwx, z);
    y.g = fma(y.g, y.h.yzwx, z);
    y.h = fma(y.h, y.a.yzwx, z);
    return y;
}

fn four(x: Eight, z: vec4<f32>) -> Eight {
    return once(once(once(once(x, z), z), z), z);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group.x * WORKGROUP + lane;
    let z = vec4<f32>(params.addend);
    let start = vec4<f32>(0.0, 0.02, 0.04, 0.06) + 0.01 * f32(lane % 4u);
    var x = Eight(start, start + 0.1, start + 0.2, start + 0.3, start + 0.4, start + 0.1, start + 0.2, start + 0.3);
    for (var r = 0u; r < params.rounds; r++) {
        x = four(four(four(four(x, z), z), z), z);
    }
    let sum = x.a + x.b + x.c + x.d + x.e + x.f + x.g + x.h;
    if i < arrayLength(&result) {
        result[i] = sum.x + sum.y + sum.z + sum.w;
    }
}
