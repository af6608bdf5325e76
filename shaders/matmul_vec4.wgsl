// C[r] = epilogue(op(A[r]) . op(B[r])): the contract of matmul_plain, with a 4x4 register tile and nothing else.
//
// An invocation computes four rows by four columns of C, four k at a time, as one product of 4x4 matrices in
// registers; every operand is loaded as vec4. A workgroup is GROUP_ROWS by GROUP_COLS invocations. No workgroup
// memory, no subgroups, no arrays: for drivers that keep arrays in memory (SwiftShader), and where nothing else runs.
//
// The products over four k are added first, then these sums in ascending k.
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

const GROUP_ROWS: u32 = 8u;
const GROUP_COLS: u32 = 8u;
const SPLITS: u32 = 1u;
const TRANSPOSE_A: bool = false;
const TRANSPOSE_B: bool = false;
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

@compute @workgroup_size(GROUP_COLS * GROUP_ROWS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let replica = group.z / SPLITS;
    let split = group.z % SPLITS;
    let row = params.row_start + (group.y * GROUP_ROWS + lane / GROUP_COLS) * 4u;
    let col = params.col_start + (group.x * GROUP_COLS + lane % GROUP_COLS) * 4u;
    let a_stride = params.a_stride / 4u;
    let b_stride = params.b_stride / 4u;
    // Where an operand is stored along k, its four rows (or columns of B); past the edge, ones that exist:
    // what comes of them is not stored. Otherwise, its vec4 in the row of k = 0.
    var a_at = vec4<u32>(replica * params.a_replica / 4u);
    if TRANSPOSE_A {
        a_at += min(row / 4u, a_stride - 1u);
    } else {
        a_at += min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(params.m - 1u)) * a_stride;
    }
    var b_at = vec4<u32>(replica * params.b_replica / 4u);
    if TRANSPOSE_B {
        b_at += min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(params.n - 1u)) * b_stride;
    } else {
        b_at += min(col / 4u, b_stride - 1u);
    }
    // In units of four k.
    var k_start = 0u;
    var k_end = (params.k + 3u) / 4u;
    if SPLITS > 1u {
        k_start = split * params.k_chunk / 4u;
        k_end = min(k_end, k_start + params.k_chunk / 4u);
    }

    // A WGSL matrix is a list of columns: here sums[i] is row i of the tile, a_k[i] four k of row i of op(A), and
    // b_k[j] the four columns of row 4 k + j of op(B). So sums[i] += sum over j of a_k[i][j] * b_k[j] reads b_k * a_k.
    var sums = mat4x4<f32>();
    var row_sums = vec4<f32>();
    for (var k = k_start; k < k_end; k++) {
        let k_4 = vec4<u32>(4u * k) + vec4<u32>(0u, 1u, 2u, 3u);
        let k_in = min(k_4, vec4<u32>(params.k - 1u));
        var x = a_at + k;
        if TRANSPOSE_A { x = a_at + k_in * a_stride; }
        var a_k = mat4x4<f32>(a[x.x], a[x.y], a[x.z], a[x.w]);
        if TRANSPOSE_A {
            // What stands for a row past the last k must not count twice. B's copies meet these zeros.
            a_k = transpose(mat4x4<f32>(
                a_k[0],
                select(vec4<f32>(), a_k[1], k_4.y < params.k),
                select(vec4<f32>(), a_k[2], k_4.z < params.k),
                select(vec4<f32>(), a_k[3], k_4.w < params.k)));
        }
        var y = b_at + k;
        if !TRANSPOSE_B { y = b_at + k_in * b_stride; }
        var b_k = mat4x4<f32>(b[y.x], b[y.y], b[y.z], b[y.w]);
        if TRANSPOSE_B { b_k = transpose(b_k); }
        sums += b_k * a_k;
        if ROW_SUMS { row_sums += vec4<f32>(1.0) * a_k; }
    }

    let shift = bias_of(replica, col);
    finish(replica, split, row, col, sums[0], shift);
    finish(replica, split, row + 1u, col, sums[1], shift);
    finish(replica, split, row + 2u, col, sums[2], shift);
    finish(replica, split, row + 3u, col, sums[3], shift);
    if ROW_SUMS && col == 0u {
        finish_row_sum(replica, split, row, row_sums.x);
        finish_row_sum(replica, split, row + 1u, row_sums.y);
        finish_row_sum(replica, split, row + 2u, row_sums.z);
        finish_row_sum(replica, split, row + 3u, row_sums.w);
    }
}
