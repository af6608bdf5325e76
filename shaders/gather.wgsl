// x[r, i, j] = source[order[r, row_start + i], j] * gain[j] + shift[j], four features at a time.
//
//   source  [n, d] stored as bytes (U8: four to a word) or as f32, rows padded with zeros
//   order   [r, n] the epoch's row numbers, one list per replica or one for all (stride 0)
//   x       [r, batch, d]; rows past the step's `rows` (a short last batch) become zero
//
// The source may be a chunk of the whole set: rows outside [chunk_start, chunk_start + chunk_rows)
// belong to another dispatch and are left alone. Padding columns have gain = shift = 0.
// One invocation makes one vec4. Reference: the test's plain loop. Host: src/kernels/gather.rs.

struct Params {
    batch: u32,
    // Vec4 groups in a row of x, and words from one row of the source to the next.
    groups: u32,
    source_stride: u32,
    order_replica: u32,
    x_replica: u32,
    replicas: u32,
    chunk_start: u32,
    chunk_rows: u32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

const U8: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> source: array<u32>;
@group(0) @binding(5) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> shift: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let replica = group.z;
    let at = group.x * 64u + lane;
    let row = at / params.groups;
    let column = at % params.groups;
    if row >= params.batch {
        return;
    }
    let to = replica * (params.x_replica / 4u) + at;
    let first = slot.x * params.replicas + replica;
    if row >= steps[first].rows {
        x[to] = vec4<f32>();
        return;
    }
    let item = order[replica * params.order_replica + steps[first].row_start + row] - params.chunk_start;
    if item >= params.chunk_rows {
        return;
    }
    var value: vec4<f32>;
    if U8 {
        let word = source[item * params.source_stride + column];
        value = vec4<f32>(vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u) & vec4<u32>(255u));
    } else {
        let word = item * params.source_stride + 4u * column;
        value = bitcast<vec4<f32>>(vec4<u32>(source[word], source[word + 1u], source[word + 2u], source[word + 3u]));
    }
    x[to] = value * gain[column] + shift[column];
}
