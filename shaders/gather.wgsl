// x[r, i, j] = source[order[r, row_start + i], j] * gain[j] + shift[j], four features at a time.
//
//   source  [n, d] stored as bytes (U8: four to a word) or as f32, rows padded with zeros
//   order   [r, n] the epoch's row numbers, one list per replica or one for all (stride 0)
//   x       [r, batch, d]; rows past the step's `rows` (a short last batch) become zero
//
// The source may be a chunk of the whole set: rows outside [chunk_start, chunk_start + chunk_rows)
// belong to another dispatch and are left alone. Padding columns have gain = shift = 0.
// With JITTER a row is an image whose pixels move by up to `reach` places each way: word 0 of a Philox block
// says how far in x, word 1 in y; key = the replica's seed, counter = (row of the batch, step, JITTER, 0).
// What moves in from outside is the stored zero, before gain and shift.
// One invocation makes one vec4. Reference: verify::gather. Host: src/kernels/gather.rs, src/rng.rs.

struct Params {
    batch: u32,
    // Vec4 groups in a row of x, and words from one row of the source to the next, a multiple of 4.
    groups: u32,
    source_stride: u32,
    order_replica: u32,
    x_replica: u32,
    replicas: u32,
    chunk_start: u32,
    chunk_rows: u32,
    // Of an image, channels last.
    height: u32,
    width: u32,
    channels: u32,
    reach: u32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

const U8: bool = false;
const JITTER: bool = false;
// rng::stream::JITTER
const STREAM: u32 = 6u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> shift: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> x: array<vec4<f32>>;

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

fn word(at: u32) -> u32 {
    let four = source[at / 4u];
    return four[at % 4u];
}

// Element j of the image whose words begin at `start`, moved: `by` counts from -reach.
fn moved(start: u32, j: u32, by: vec2<u32>) -> f32 {
    let pixel = j / params.channels;
    let to = vec2<u32>(pixel % params.width, pixel / params.width);
    let size = vec2<u32>(params.width, params.height);
    // Below 0 it wraps round, far outside.
    let whence = to + by - vec2<u32>(params.reach);
    if to.y >= params.height || any(whence >= size) {
        return 0.0;
    }
    let at = (whence.y * params.width + whence.x) * params.channels + j % params.channels;
    if U8 {
        return f32((word(start + at / 4u) >> (8u * (at % 4u))) & 255u);
    }
    return bitcast<f32>(word(start + at));
}

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
    let now = steps[slot.x * params.replicas + replica];
    if row >= now.rows {
        x[to] = vec4<f32>();
        return;
    }
    let item = order[replica * params.order_replica + now.row_start + row] - params.chunk_start;
    if item >= params.chunk_rows {
        return;
    }
    var value: vec4<f32>;
    if JITTER {
        let words = philox(now.seed, vec4<u32>(row, now.step, STREAM, 0u));
        let places = 2u * params.reach + 1u;
        let by = vec2<u32>(upper(words.x, places), upper(words.y, places));
        let start = item * params.source_stride;
        let j = 4u * column;
        value = vec4<f32>(
            moved(start, j, by), moved(start, j + 1u, by), moved(start, j + 2u, by), moved(start, j + 3u, by)
        );
    } else if U8 {
        let bytes = word(item * params.source_stride + column);
        value = vec4<f32>(vec4<u32>(bytes, bytes >> 8u, bytes >> 16u, bytes >> 24u) & vec4<u32>(255u));
    } else {
        value = bitcast<vec4<f32>>(source[item * params.source_stride / 4u + column]);
    }
    x[to] = value * gain[column] + shift[column];
}
