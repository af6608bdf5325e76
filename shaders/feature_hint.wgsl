// A hint (FitNets, Romero et al. 2015): the teacher's hidden layer h as a target of the student's, through
// a linear regression r of it.
//
//   loss of a row = 1/width sum_j (r_j - h_j)^2;   d = 2 weight (r - h) / (rows width)
//
//   a = r [r, batch, width], b = h [r or 1, batch, width], d as a,
//   stats [r, slots * batch, 8]: the row's loss, and in the fifth place 1 where something is not finite
//
// One workgroup per row, sums over its lanes in a fixed order. Rows past the step's `rows` give zeros.
// Reference: reference::features::hint. Host: src/kernels/feature.rs.

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

var<workgroup> sums: array<f32, 64>;

fn row_sum(x: f32, lane: u32) -> f32 {
    sums[lane] = x;
    workgroupBarrier();
    for (var reach = 32u; reach > 0u; reach /= 2u) {
        if lane < reach { sums[lane] += sums[lane + reach]; }
        workgroupBarrier();
    }
    return sums[0];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let replica = group.z;
    let now = steps[slot.x * params.replicas + replica];
    let rows = now.rows;
    let width = select(0u, params.width, row < rows);
    let a_at = replica * params.a_replica + row * params.a_stride;
    let b_at = replica * params.b_replica + row * params.b_stride;
    let d_at = replica * params.d_replica + row * params.d_stride;
    let scale = 2.0 * params.weight / f32(max(rows, 1u) * params.width);
    var total = 0.0;
    for (var j = lane; j < width; j += 64u) {
        let gap = a[a_at + j] - b[b_at + j];
        total += gap * gap;
        d[d_at + j] = scale * gap;
    }
    for (var j = width + lane; j < params.d_stride; j += 64u) { d[d_at + j] = 0.0; }
    let loss = row_sum(total, lane) / f32(params.width);
    if lane == 0u {
        let to = (replica * params.stats_replica + (slot.x * params.batch + row) * 8u) / 4u;
        let bad = (bitcast<u32>(loss) & 0x7f800000u) == 0x7f800000u;
        stats[to] = vec4<f32>(loss, 0.0, 0.0, 0.0);
        stats[to + 1u] = vec4<f32>(select(0.0, 1.0, bad), 0.0, 0.0, 0.0);
    }
}
