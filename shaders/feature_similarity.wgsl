// Similarity preserving (Tung and Mori 2019): which rows of a batch the teacher holds to be alike, the
// student shall too. From the Gram matrices a = X X' of the student's hidden layer and b of the teacher's:
//
//   G = the rows of a (of b), each divided by its norm;   u = G_a - G_b
//   loss of a row = 1/rows sum_j u_j^2;   d = 2 weight / rows^2 (u - G_a <u, G_a>) / |a's row|
//
//   a [r, batch, batch], b [r or 1, batch, batch], d as a: with respect to a; the features' own gradient
//   is (d + d') X; stats as in shaders/feature_hint.wgsl
//
// One workgroup per row, sums over its lanes in a fixed order. A row of norm 0 has no direction and no
// gradient. Rows and columns past the step's `rows` give zeros.
// Reference: reference::features::similarity. Host: src/kernels/feature.rs.

struct Params {
    batch: u32, width: u32,
    // Row strides in floats.
    a_stride: u32, b_stride: u32, d_stride: u32,
    // Replica strides in floats.
    a_replica: u32, b_replica: u32, d_replica: u32, stats_replica: u32,
    replicas: u32,
    weight: f32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> a: array<f32>;
@group(0) @binding(4) var<storage, read> b: array<f32>;
@group(0) @binding(5) var<storage, read_write> d: array<f32>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec4<f32>>;

var<workgroup> sums: array<vec2<f32>, 64>;

fn row_sum(x: vec2<f32>, lane: u32) -> vec2<f32> {
    sums[lane] = x;
    workgroupBarrier();
    for (var reach = 32u; reach > 0u; reach /= 2u) {
        if lane < reach { sums[lane] += sums[lane + reach]; }
        workgroupBarrier();
    }
    let total = sums[0];
    workgroupBarrier();
    return total;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let replica = group.z;
    let now = steps[slot.x * params.replicas + replica];
    let rows = now.rows;
    let width = select(0u, min(rows, params.width), row < rows);
    let a_at = replica * params.a_replica + row * params.a_stride;
    let b_at = replica * params.b_replica + row * params.b_stride;
    let d_at = replica * params.d_replica + row * params.d_stride;
    var squares = vec2<f32>();
    for (var j = lane; j < width; j += 64u) {
        let pair = vec2<f32>(a[a_at + j], b[b_at + j]);
        squares += pair * pair;
    }
    let norms = sqrt(row_sum(squares, lane));
    let over = select(vec2<f32>(), 1.0 / norms, norms > vec2<f32>());
    // |u|^2 and <u, G_a>.
    var both = vec2<f32>();
    for (var j = lane; j < width; j += 64u) {
        let g = a[a_at + j] * over.x;
        let u = g - b[b_at + j] * over.y;
        both += vec2<f32>(u * u, u * g);
    }
    both = row_sum(both, lane);
    let n = f32(max(rows, 1u));
    let scale = 2.0 * params.weight / (n * n);
    for (var j = lane; j < width; j += 64u) {
        let g = a[a_at + j] * over.x;
        let u = g - b[b_at + j] * over.y;
        d[d_at + j] = scale * (u - g * both.y) * over.x;
    }
    for (var j = width + lane; j < params.d_stride; j += 64u) { d[d_at + j] = 0.0; }
    if lane == 0u {
        let loss = both.x / n;
        let to = (replica * params.stats_replica + (slot.x * params.batch + row) * 8u) / 4u;
        // A norm that is not finite has made its row zeros.
        let bad = (bitcast<vec3<u32>>(vec3<f32>(loss, norms)) & vec3<u32>(0x7f800000u)) == vec3<u32>(0x7f800000u);
        stats[to] = vec4<f32>(loss, 0.0, 0.0, 0.0);
        stats[to + 1u] = vec4<f32>(select(0.0, 1.0, any(bad)), 0.0, 0.0, 0.0);
    }
}
