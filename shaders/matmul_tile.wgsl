// C[r] = epilogue(op(A[r]) . op(B[r])): the contract of matmul_plain, for GPUs.
//
// A workgroup of GROUP_ROWS by GROUP_COLS invocations computes ROWS * GROUP_ROWS rows by 4 * COL_VECS * GROUP_COLS
// columns of C. TILE_K columns of op(A) and rows of op(B) at a time go to workgroup memory, in 4x4 blocks that are
// loaded as vec4 whichever way the operand is stored, and transposed in registers where it is needed.
// An invocation's rows lie GROUP_ROWS apart and its vec4 columns GROUP_COLS apart, and the rows of both tiles are
// padded by one vec4, so that neighbours read neighbouring banks.
//
// ROWS * GROUP_ROWS and TILE_K are multiples of 4. The products over k are added in ascending k.
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
const TILE_K: u32 = 16u;
const SPLITS: u32 = 1u;
const TRANSPOSE_A: bool = false;
const TRANSPOSE_B: bool = false;
const ACCUMULATE: bool = false;
const BIAS: bool = false;
const KEEP: bool = false;
const ROW_SUMS: bool = false;
const ACTIVATION: u32 = 0u;
const MASK: u32 = 0u;
const INVOCATIONS: u32 = GROUP_ROWS * GROUP_COLS;
const TILE_M: u32 = ROWS * GROUP_ROWS;
const TILE_N: u32 = 4u * COL_VECS * GROUP_COLS;
const A_PITCH: u32 = TILE_K / 4u + 1u;
const B_PITCH: u32 = TILE_N / 4u + 1u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> saved: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> extra: array<f32>;

// Rows of op(A), four k to the vec4; rows of op(B), four columns to the vec4.
var<workgroup> a_tile: array<vec4<f32>, TILE_M * A_PITCH>;
var<workgroup> b_tile: array<vec4<f32>, TILE_K * B_PITCH>;

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

// Rows row..row+4 of op(A) at k 4 k_vec..+4; zero outside op(A).
fn load_a(base: u32, row: u32, k_vec: u32, k_end: u32) -> mat4x4<f32> {
    let stride = params.a_stride / 4u;
    var block = mat4x4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if TRANSPOSE_A {
            if k_vec < k_end && 4u * k_vec + j < params.k && row < params.m {
                block[j] = a[base + (4u * k_vec + j) * stride + row / 4u];
            }
        } else if k_vec < k_end && row + j < params.m {
            block[j] = a[base + (row + j) * stride + k_vec];
        }
    }
    if TRANSPOSE_A { block = transpose(block); }
    return block;
}

// Columns col..col+4 of rows 4 k_vec..+4 of op(B); zero outside op(B).
fn load_b(base: u32, col: u32, k_vec: u32, k_end: u32) -> mat4x4<f32> {
    let stride = params.b_stride / 4u;
    var block = mat4x4<f32>();
    for (var j = 0u; j < 4u; j++) {
        if TRANSPOSE_B {
            if k_vec < k_end && col + j < params.n { block[j] = b[base + (col + j) * stride + k_vec]; }
        } else if k_vec < k_end && 4u * k_vec + j < params.k && col < params.n {
            block[j] = b[base + (4u * k_vec + j) * stride + col / 4u];
        }
    }
    if TRANSPOSE_B { block = transpose(block); }
    return block;
}

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let replica = group.z / SPLITS;
    let split = group.z % SPLITS;
    let tile_row = params.row_start + group.y * TILE_M;
    let tile_col = params.col_start + group.x * TILE_N;
    let a_base = replica * params.a_replica / 4u;
    let b_base = replica * params.b_replica / 4u;
    let my_row = lane / GROUP_COLS;
    let my_col = lane % GROUP_COLS;
    // In units of four k.
    var k_start = 0u;
    var k_end = (params.k + 3u) / 4u;
    if SPLITS > 1u {
        k_start = split * params.k_chunk / 4u;
        k_end = min(k_end, k_start + params.k_chunk / 4u);
    }

    var sums: array<array<vec4<f32>, COL_VECS>, ROWS>;
    var row_sums: array<vec4<f32>, ROWS>;
    for (var k = k_start; k < k_end; k += TILE_K / 4u) {
        // Neighbours load along the direction in which the operand is stored.
        for (var block = lane; block < TILE_M / 4u * (TILE_K / 4u); block += INVOCATIONS) {
            var row = block / (TILE_K / 4u) * 4u;
            var k_vec = block % (TILE_K / 4u);
            if TRANSPOSE_A {
                row = block % (TILE_M / 4u) * 4u;
                k_vec = block / (TILE_M / 4u);
            }
            let x = load_a(a_base, tile_row + row, k + k_vec, k_end);
            for (var j = 0u; j < 4u; j++) { a_tile[(row + j) * A_PITCH + k_vec] = x[j]; }
        }
        for (var block = lane; block < TILE_N / 4u * (TILE_K / 4u); block += INVOCATIONS) {
            var col = block % (TILE_N / 4u) * 4u;
            var k_vec = block / (TILE_N / 4u);
            if TRANSPOSE_B {
                col = block / (TILE_K / 4u) * 4u;
                k_vec = block % (TILE_K / 4u);
            }
            let x = load_b(b_base, tile_col + col, k + k_vec, k_end);
            for (var j = 0u; j < 4u; j++) { b_tile[(4u * k_vec + j) * B_PITCH + col / 4u] = x[j]; }
        }
        workgroupBarrier();
        for (var k_vec = 0u; k_vec < TILE_K / 4u; k_vec++) {
            var b_k: array<array<vec4<f32>, 4>, COL_VECS>;
            for (var v = 0u; v < COL_VECS; v++) {
                for (var j = 0u; j < 4u; j++) {
                    b_k[v][j] = b_tile[(4u * k_vec + j) * B_PITCH + v * GROUP_COLS + my_col];
                }
            }
            for (var i = 0u; i < ROWS; i++) {
                let x = a_tile[(i * GROUP_ROWS + my_row) * A_PITCH + k_vec];
                if ROW_SUMS { row_sums[i] += x; }
                for (var v = 0u; v < COL_VECS; v++) {
                    for (var j = 0u; j < 4u; j++) {
                        sums[i][v] = fma(vec4<f32>(x[j]), b_k[v][j], sums[i][v]);
                    }
                }
            }
        }
        workgroupBarrier();
    }

    var shifts: array<vec4<f32>, COL_VECS>;
    for (var v = 0u; v < COL_VECS; v++) {
        shifts[v] = bias_of(replica, tile_col + (v * GROUP_COLS + my_col) * 4u);
    }
    for (var i = 0u; i < ROWS; i++) {
        let row = tile_row + i * GROUP_ROWS + my_row;
        for (var v = 0u; v < COL_VECS; v++) {
            finish(replica, split, row, tile_col + (v * GROUP_COLS + my_col) * 4u, sums[i][v], shifts[v]);
        }
        if ROW_SUMS && tile_col == 0u && my_col == 0u {
            let sum = row_sums[i];
            finish_row_sum(replica, split, row, sum.x + sum.y + sum.z + sum.w);
        }
    }
}
