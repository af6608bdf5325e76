// C[r] = epilogue(sum over s of partial[s][r]): the second half of a product whose K was split.
//
//   partial (binding `a`) is [SPLITS][replicas][m, c_stride], a_replica floats apart
//   ROW_SUMS: extra[r][row] = sum over s of the partial row sums (binding `b`), [SPLITS][replicas][m], b_replica floats apart;
//   added to what extra holds with ACCUMULATE
//
// The first half is a member of the family that was given the same SPLITS, TRANSPOSE_A, TRANSPOSE_B and ROW_SUMS, with
// `c` and `extra` bound to the partial buffers and the rest of the epilogue off; the epilogue is done here.
// One invocation for four columns of one row; the splits are added in ascending order.
// Reference: reference::matmul. Host: src/kernels/matmul.rs.

struct Params {
    m: u32, n: u32, k: u32,
    // Row strides in floats, multiples of 4; what lies between n and the stride is written as zero.
    a_stride: u32, b_stride: u32, c_stride: u32,
    // Replica strides in floats, multiples of 4.
    a_replica: u32, b_replica: u32, c_replica: u32,
    bias_replica: u32, extra_replica: u32, saved_replica: u32,
    // Where the dispatch's first row and first column of C lie, for products cut into several dispatches.
    row_start: u32, col_start: u32,
    // Split K: floats of K per split, a multiple of 4, and how many replicas there are, for the partial
    // products lie [split][replica][m, c_stride] and matmul_reduce adds them up.
    k_chunk: u32, replicas: u32,
}

const SPLITS: u32 = 2u;
const ACCUMULATE: bool = false;
const BIAS: bool = false;
const KEEP: bool = false;
const ROW_SUMS: bool = false;
const ACTIVATION: u32 = 0u;
const MASK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> saved: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> extra: array<f32>;

// --- epilogue: the same text in every vec4 member of the family, held equal by a test

// tanh is NaN for large arguments on some drivers, and clamp would swallow a NaN: hence both guards.
fn safe_tanh(x: vec4<f32>) -> vec4<f32> {
    let is_nan = (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(tanh(clamp(x, vec4<f32>(-10.0), vec4<f32>(10.0))), x, is_nan);
}

fn activate(x: vec4<f32>) -> vec4<f32> {
    switch ACTIVATION {
        // Not max(): it would turn a NaN into 0 and hide it.
        case 1u: { return select(x, vec4<f32>(), x < vec4<f32>()); }
        case 2u: { return safe_tanh(x); }
        case 3u: { return 0.5 * x * (1.0 + safe_tanh(0.7978845608 * (x + 0.044715 * x * x * x))); }
        default: { return x; }
    }
}

fn derivative(s: vec4<f32>) -> vec4<f32> {
    switch MASK {
        case 1u: { return select(vec4<f32>(), vec4<f32>(1.0), s > vec4<f32>()); }
        case 2u: { return 1.0 - s * s; }
        case 3u: {
            let t = safe_tanh(0.7978845608 * (s + 0.044715 * s * s * s));
            let d = 0.5 * (1.0 + t) + 0.5 * s * (1.0 - t * t) * 0.7978845608 * (1.0 + 0.134145 * s * s);
            // Past 6 the limit: 1 - t * t would multiply one rounding error of t by s^3.
            let limit = select(vec4<f32>(), vec4<f32>(1.0), s > vec4<f32>());
            return select(d, limit, abs(s) > vec4<f32>(6.0));
        }
        default: { return vec4<f32>(1.0); }
    }
}

// Of the columns col..col+4: the same for all rows, so a tile loads it once.
fn bias_of(replica: u32, col: u32) -> vec4<f32> {
    // Past the last column the bias may end.
    if BIAS && col < params.n {
        return bias[(replica * params.bias_replica + col) / 4u];
    }
    return vec4<f32>();
}

// Columns col..col+4 of one row of C; `col` is a multiple of 4. What lies past the edge of C is dropped.
fn finish(replica: u32, split: u32, row: u32, col: u32, sum: vec4<f32>, shift: vec4<f32>) {
    if row >= params.m || col >= params.c_stride {
        return;
    }
    let at = row * params.c_stride + col;
    let within = vec4<u32>(col, col + 1u, col + 2u, col + 3u) < vec4<u32>(params.n);
    var x = sum;
    if ACCUMULATE { x += c[(replica * params.c_replica + at) / 4u]; }
    if BIAS { x += shift; }
    if KEEP {
        let kept = select(vec4<f32>(), x, within);
        for (var j = 0u; j < 4u; j++) { extra[replica * params.extra_replica + at + j] = kept[j]; }
    }
    x = activate(x);
    if MASK != 0u { x *= derivative(saved[(replica * params.saved_replica + at) / 4u]); }
    c[((split * params.replicas + replica) * params.c_replica + at) / 4u] = select(vec4<f32>(), x, within);
}

fn finish_row_sum(replica: u32, split: u32, row: u32, sum: f32) {
    if row >= params.m {
        return;
    }
    let at = (split * params.replicas + replica) * params.extra_replica + row;
    var x = sum;
    if ACCUMULATE { x += extra[at]; }
    extra[at] = x;
}
// --- end of epilogue

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let replica = group.z;
    let columns = params.c_stride / 4u;
    // A grid past 65,535 workgroups is folded into y.
    let i = (group.y * 65535u + group.x) * 64u + lane;
    let row = i / columns;
    if row >= params.m {
        return;
    }
    let col = i % columns * 4u;
    let at = row * params.c_stride + col;
    var sum = vec4<f32>();
    for (var split = 0u; split < SPLITS; split++) {
        sum += a[((split * params.replicas + replica) * params.a_replica + at) / 4u];
    }
    finish(replica, 0u, row, col, sum, bias_of(replica, col));
    if ROW_SUMS && col == 0u {
        var row_sum = 0.0;
        for (var split = 0u; split < SPLITS; split++) {
            let sums_at = (split * params.replicas + replica) * params.b_replica + row;
            row_sum += b[sums_at / 4u][sums_at % 4u];
        }
        finish_row_sum(replica, 0u, row, row_sum);
    }
}
