// C[r] = epilogue(op(A[r]) . op(B[r])): the contract of matmul_plain, with a register tile and nothing else.
//
// An invocation computes ROWS rows by COL_VECS vec4 columns of C, four k at a time, every operand loaded as vec4;
// a workgroup is GROUP_ROWS by GROUP_COLS invocations. No workgroup memory, no subgroups: for devices whose
// caches do the sharing, and for products too small to fill tiles.
//
// ROWS is a multiple of 4. The products over k are added in ascending k.
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

const ROWS: u32 = 8u;
const COL_VECS: u32 = 2u;
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

// Columns col..col+4 of one row of C; `col` is a multiple of 4. What lies past the edge of C is dropped.
fn finish(replica: u32, split: u32, row: u32, col: u32, sum: vec4<f32>) {
    if row >= params.m || col >= params.c_stride {
        return;
    }
    let at = row * params.c_stride + col;
    let within = vec4<u32>(col, col + 1u, col + 2u, col + 3u) < vec4<u32>(params.n);
    var x = sum;
    if ACCUMULATE { x += c[(replica * params.c_replica + at) / 4u]; }
    // Past the last column the bias may end.
    if BIAS && col < params.n { x += bias[(replica * params.bias_replica + col) / 4u]; }
    if KEEP {
        let kept = select(vec4<f32>(), x, within);
        for (var j = 0u; j < 4u; j++) { extra[replica * params.extra_replica + at + j] = kept[j]; }
    }
    x = activate(x);
    if MASK != 0u { x *= derivative(saved[(replica * params.saved_replica + at) / 4u]); }
    c[((split * params.replicas + replica) * params.c_replica + at) / 4u] = select(vec4<f32>(), x, within);
}

fn finish_row_sum(replica: u32, split: u32, row: u32, sum: f32) {
    if row < params.m { extra[(split * params.replicas + replica) * params.extra_replica + row] = sum; }
}
// --- end of epilogue

@compute @workgroup_size(GROUP_COLS * GROUP_ROWS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let replica = group.z / SPLITS;
    let split = group.z % SPLITS;
    let row_0 = params.row_start + (group.y * GROUP_ROWS + lane / GROUP_COLS) * ROWS;
    // The vec4 columns of an invocation lie GROUP_COLS apart, so that neighbours load neighbouring ones.
    let col_0 = params.col_start + (group.x * GROUP_COLS * COL_VECS + lane % GROUP_COLS) * 4u;
    let a_stride = params.a_stride / 4u;
    let b_stride = params.b_stride / 4u;
    let a_base = replica * params.a_replica / 4u;
    let b_base = replica * params.b_replica / 4u;
    // In units of four k.
    var k_start = 0u;
    var k_end = (params.k + 3u) / 4u;
    if SPLITS > 1u {
        k_start = split * params.k_chunk / 4u;
        k_end = min(k_end, k_start + params.k_chunk / 4u);
    }

    var sums: array<array<vec4<f32>, COL_VECS>, ROWS>;
    var row_sums: array<vec4<f32>, ROWS>;
    // Rows and columns past the edge are clamped to ones that exist; what comes of them is not stored.
    for (var k = k_start; k < k_end; k++) {
        // Rows of op(B) past the last k are clamped too: they meet zeros in op(A).
        let last = params.k - 1u;
        let k_4 = min(vec4<u32>(4u * k) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
        // a_k[i]: four k of row i of op(A).
        var a_k: array<vec4<f32>, ROWS>;
        if TRANSPOSE_A {
            for (var i = 0u; i < ROWS; i += 4u) {
                let at = a_base + min((row_0 + i) / 4u, a_stride - 1u);
                var block = mat4x4<f32>(
                    a[at + k_4.x * a_stride], a[at + k_4.y * a_stride], a[at + k_4.z * a_stride], a[at + k_4.w * a_stride]);
                for (var j = 1u; j < 4u; j++) {
                    if 4u * k + j > last { block[j] = vec4<f32>(); }
                }
                block = transpose(block);
                for (var j = 0u; j < 4u; j++) { a_k[i + j] = block[j]; }
            }
        } else {
            for (var i = 0u; i < ROWS; i++) {
                a_k[i] = a[a_base + min(row_0 + i, params.m - 1u) * a_stride + k];
            }
        }
        if ROW_SUMS && group.x == 0u {
            for (var i = 0u; i < ROWS; i++) { row_sums[i] += a_k[i]; }
        }
        for (var v = 0u; v < COL_VECS; v++) {
            let col = col_0 + v * GROUP_COLS * 4u;
            // b_k[j]: four columns of row 4 k + j of op(B).
            var b_k: mat4x4<f32>;
            if TRANSPOSE_B {
                let n = b_base + min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(params.n - 1u)) * b_stride + k;
                b_k = transpose(mat4x4<f32>(b[n.x], b[n.y], b[n.z], b[n.w]));
            } else {
                let at = b_base + min(col / 4u, b_stride - 1u);
                b_k = mat4x4<f32>(
                    b[at + k_4.x * b_stride], b[at + k_4.y * b_stride], b[at + k_4.z * b_stride], b[at + k_4.w * b_stride]);
            }
            for (var i = 0u; i < ROWS; i++) {
                for (var j = 0u; j < 4u; j++) {
                    sums[i][v] = fma(vec4<f32>(a_k[i][j]), b_k[j], sums[i][v]);
                }
            }
        }
    }

    for (var i = 0u; i < ROWS; i++) {
        for (var v = 0u; v < COL_VECS; v++) {
            finish(replica, split, row_0 + i, col_0 + v * GROUP_COLS * 4u, sums[i][v]);
        }
        if ROW_SUMS && col_0 == 0u {
            let sum = row_sums[i];
            finish_row_sum(replica, split, row_0 + i, sum.x + sum.y + sum.z + sum.w);
        }
    }
}
