// Dropout (Srivastava et al. 2014), inverted: y = x * scale where an element is kept, 0 where it is dropped;
// with ADD that is added to y. scale = 1 / (1 - rate); an element is dropped where its word is below
// rate * 2^32.
//
//   x [r or 1, batch, width], y [r, batch, width], rows of both equally far apart
//
// One Philox block makes four neighbours' words: key = the replica's seed, counter = (the vec4's number in
// the batch, step, DROPOUT, layer). So the mask is a pure function of seed, step and layer, and the backward
// pass makes it again. Reference: verify::dropout. Host: src/kernels/dropout.rs, src/rng.rs.

struct Params {
    // Vec4 groups of one replica's batch.
    groups: u32,
    // Workgroups in a row of the grid: big batches are folded into y.
    width: u32,
    // Replica strides in vec4.
    x_replica: u32,
    y_replica: u32,
    replicas: u32,
    layer: u32,
    threshold: u32,
    scale: f32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

const ADD: bool = false;
// rng::stream::DROPOUT
const STREAM: u32 = 5u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

// --- philox: the same text wherever it stands
// The upper half of a 64-bit product.
fn upper(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let left = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let right = (a & 0xffffu) * (b >> 16u) + (left & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (left >> 16u) + (right >> 16u);
}

// Philox4x32-10 with the key (seed, 0).
fn philox(seed: u32, counter: vec4<u32>) -> vec4<u32> {
    var c = counter;
    var key = vec2<u32>(seed, 0u);
    for (var i = 0u; i < 10u; i += 1u) {
        let first = upper(0xD2511F53u, c.x) ^ c.w ^ key.y;
        let second = upper(0xCD9E8D57u, c.z) ^ c.y ^ key.x;
        c = vec4<u32>(second, 0xCD9E8D57u * c.z, first, 0xD2511F53u * c.x);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}
// --- end of philox

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = (group.y * params.width + group.x) * 64u + lane;
    if at >= params.groups {
        return;
    }
    let now = steps[slot.x * params.replicas + group.z];
    let words = philox(now.seed, vec4<u32>(at, now.step, STREAM, params.layer));
    let whole = x[group.z * params.x_replica + at];
    var kept = select(vec4<f32>(), whole * params.scale, words >= vec4<u32>(params.threshold));
    let to = group.z * params.y_replica + at;
    if ADD {
        kept += y[to];
    }
    y[to] = kept;
}
