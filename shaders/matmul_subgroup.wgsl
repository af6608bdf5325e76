// C[r] = epilogue(op(A[r]) . op(B[r])): the contract of matmul_plain, for subgroups of a known width.
//
// One subgroup, which is the workgroup, computes ROW_BLOCKS * LANES rows by LANES * COL_VECS * 4 columns of C.
// A lane owns COL_VECS vec4 columns of that tile and loads only their part of B; of A it loads four k of one row
// in LANES, and the subgroup hands every element round. So a subgroup loads no element twice, which is what
// counts where a load costs scalar instructions for each lane and workgroup memory is no cheaper (lavapipe).
// A turn gives all lanes one row, or with EXCHANGE each lane another: for eight lanes that is one instruction (lavapipe)
// where the other way is two, for other numbers more.
// With TURNED the tile is one of C transposed, op(B)^T . op(A)^T, for a C whose rows fit a tile's breadth better than its
// columns do: the operands have changed places, and of four rows of the tile a lane makes vec4 of C.
// With NEIGHBOURS the upper half of the lanes own the vec4 that follow those of the lower half, lane by lane, and the strides
// of C are multiples of 8: what two such lanes store may be stored at once (src/gpu/twins/halves.rs).
// Four k of B are loaded first and k is innermost: an accumulator is touched once for four k.
//
// The pipeline's subgroup size must be LANES. The products over k are added in ascending k.
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

const LANES: u32 = 8u;
const ROW_BLOCKS: u32 = 4u;
const COL_VECS: u32 = 2u;
const TURNED: bool = false;
const NEIGHBOURS: bool = false;
const SPLITS: u32 = 1u;
const TRANSPOSE_A: bool = false;
const TRANSPOSE_B: bool = false;
const ACCUMULATE: bool = false;
const BIAS: bool = false;
const KEEP: bool = false;
const ROW_SUMS: bool = false;
const ACTIVATION: u32 = 0u;
const MASK: u32 = 0u;
const EXCHANGE: bool = LANES == 8u && !TRANSPOSE_A && !TURNED;
// Of the tile.
const ROWS: u32 = ROW_BLOCKS * LANES;
const COLS: u32 = LANES * COL_VECS * 4u;

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

// Reads one vec4 of each cache line of C's tile, so that the lines are at hand when they are stored to. lavapipe stores
// lane by lane and spills registers between, which fills the CPU's queue of stores: it would wait for every two lines.
fn lines_of_c(replica: u32, split: u32, row_0: u32, col_0: u32, lane: u32) -> vec4<f32> {
    const LINE = 16u; // floats
    const PER_ROW = select(COLS, ROWS, TURNED) / LINE;
    let base = (split * params.replicas + replica) * params.c_replica;
    var sum = vec4<f32>();
    for (var t = 0u; t < ROWS * COLS / LINE / LANES; t++) {
        let line = t * LANES + lane;
        let row = min(row_0 + line / PER_ROW, params.m - 1u);
        let col = min(col_0 + line % PER_ROW * LINE, params.c_stride - 4u);
        sum += c[(base + row * params.c_stride + col) / 4u];
    }
    return sum;
}

// The vec4 of the tile's breadth that is a lane's.
fn vec_of(v: u32, lane: u32) -> u32 {
    return v * LANES + select(lane, lane % (LANES / 2u) * 2u + lane / (LANES / 2u), NEIGHBOURS);
}

// The row of a block that a lane works on in a turn.
fn row_of(turn: u32, lane: u32) -> u32 {
    return select(turn, turn ^ lane, EXCHANGE);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    // Down the rows first: a tile is at least as wide as high, so there is no more to read of A again for each column of
    // tiles than of B for each row of them, and the columns of B stay in the cache meanwhile.
    let tile = group.y * groups.x + group.x;
    let replica = group.z / SPLITS;
    let split = group.z % SPLITS;
    let c_row_0 = params.row_start + tile % groups.y * select(ROWS, COLS, TURNED);
    let c_col_0 = params.col_start + tile / groups.y * select(COLS, ROWS, TURNED);
    // From here on rows and columns are the tile's.
    let row_0 = select(c_row_0, c_col_0, TURNED);
    let col_0 = select(c_col_0, c_row_0, TURNED);
    let last_row = select(params.m, params.n, TURNED) - 1u;
    let last_col = select(params.n, params.m, TURNED) - 1u;
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

    // Rows and columns past the edge are clamped to ones that exist; what comes of them is not stored.
    var a_at: array<u32, ROW_BLOCKS>;
    for (var i = 0u; i < ROW_BLOCKS; i++) {
        if TRANSPOSE_A {
            a_at[i] = a_base + min((row_0 + i * LANES) / 4u + lane / 4u, a_stride - 1u);
        } else {
            a_at[i] = a_base + min(row_0 + i * LANES + lane, last_row) * a_stride;
        }
    }
    var b_at: array<array<u32, 4>, COL_VECS>;
    for (var v = 0u; v < COL_VECS; v++) {
        let col = col_0 + vec_of(v, lane) * 4u;
        for (var j = 0u; j < 4u; j++) {
            if TRANSPOSE_B {
                b_at[v][j] = b_base + min(col + j, last_col) * b_stride;
            } else {
                b_at[v][j] = b_base + min(col / 4u, b_stride - 1u);
            }
        }
    }

    // sums[i][r] of a lane are those of row row_of(r, lane) of block i.
    var sums: array<array<array<vec4<f32>, COL_VECS>, LANES>, ROW_BLOCKS>;
    var row_sums: array<vec4<f32>, ROW_BLOCKS>;
    // With TURNED the rows of C are the tile's columns: [v][j] sums up b_k[v][j].
    var col_sums: array<mat4x4<f32>, COL_VECS>;
    for (var k = k_start; k < k_end; k++) {
        // b_k[v][j]: this lane's four columns of row 4 k + j of op(B).
        var b_k: array<mat4x4<f32>, COL_VECS>;
        for (var v = 0u; v < COL_VECS; v++) {
            if TRANSPOSE_B {
                b_k[v] = transpose(mat4x4<f32>(
                    b[b_at[v][0] + k], b[b_at[v][1] + k], b[b_at[v][2] + k], b[b_at[v][3] + k]));
            } else {
                // A row past the last meets zeros in A.
                let last = params.k - 1u;
                b_k[v] = mat4x4<f32>(
                    b[b_at[v][0] + min(4u * k, last) * b_stride], b[b_at[v][1] + min(4u * k + 1u, last) * b_stride],
                    b[b_at[v][2] + min(4u * k + 2u, last) * b_stride], b[b_at[v][3] + min(4u * k + 3u, last) * b_stride]);
            }
        }
        if ROW_SUMS && TURNED {
            for (var v = 0u; v < COL_VECS; v++) {
                for (var j = 0u; j < 4u; j++) {
                    col_sums[v][j] += select(vec4<f32>(), b_k[v][j], 4u * k + j < params.k);
                }
            }
        }
        for (var i = 0u; i < ROW_BLOCKS; i++) {
            // Of a block of LANES rows a lane holds four k of row `lane`, or with TRANSPOSE_A four rows of k `lane % 4`.
            var held: vec4<f32>;
            if TRANSPOSE_A {
                let k_lane = 4u * k + lane % 4u;
                held = select(vec4<f32>(), a[a_at[i] + min(k_lane, params.k - 1u) * a_stride], k_lane < params.k);
            } else {
                held = a[a_at[i] + k];
            }
            if ROW_SUMS { row_sums[i] += held; }
            for (var r = 0u; r < LANES; r++) {
                var x: vec4<f32>;
                for (var j = 0u; j < 4u; j++) {
                    if EXCHANGE {
                        x[j] = subgroupShuffleXor(held[j], r);
                    } else if TRANSPOSE_A {
                        x[j] = subgroupShuffle(held[r % 4u], r / 4u * 4u + j);
                    } else {
                        x[j] = subgroupShuffle(held[j], r);
                    }
                }
                for (var v = 0u; v < COL_VECS; v++) {
                    for (var j = 0u; j < 4u; j++) {
                        sums[i][r][v] = fma(vec4<f32>(x[j]), b_k[v][j], sums[i][r][v]);
                    }
                }
            }
        }
    }

    if !ACCUMULATE {
        let read = lines_of_c(replica, split, c_row_0, c_col_0, lane);
        // There is always a replica; but no compiler knows, so it reads before it stores.
        if params.replicas == 0u { sums[0][0][0] += read; }
    }
    if TURNED {
        var shift: array<array<vec4<f32>, LANES / 4u>, ROW_BLOCKS>;
        for (var i = 0u; i < ROW_BLOCKS; i++) {
            for (var q = 0u; q < LANES / 4u; q++) { shift[i][q] = bias_of(replica, row_0 + i * LANES + q * 4u); }
        }
        for (var v = 0u; v < COL_VECS; v++) {
            for (var c = 0u; c < 4u; c++) {
                let c_row = col_0 + vec_of(v, lane) * 4u + c;
                for (var i = 0u; i < ROW_BLOCKS; i++) {
                    for (var q = 0u; q < LANES / 4u; q++) {
                        let sum = vec4<f32>(
                            sums[i][q * 4u][v][c], sums[i][q * 4u + 1u][v][c],
                            sums[i][q * 4u + 2u][v][c], sums[i][q * 4u + 3u][v][c]);
                        finish(replica, split, c_row, row_0 + i * LANES + q * 4u, sum, shift[i][q]);
                    }
                }
                if ROW_SUMS && c_col_0 == 0u {
                    let part = col_sums[v];
                    finish_row_sum(replica, split, c_row, (part[0][c] + part[1][c]) + (part[2][c] + part[3][c]));
                }
            }
        }
    } else {
        var shift: array<vec4<f32>, COL_VECS>;
        for (var v = 0u; v < COL_VECS; v++) {
            shift[v] = bias_of(replica, col_0 + vec_of(v, lane) * 4u);
        }
        // Along the rows: what lies side by side in memory is stored one after the other.
        for (var i = 0u; i < ROW_BLOCKS; i++) {
            for (var r = 0u; r < LANES; r++) {
                for (var v = 0u; v < COL_VECS; v++) {
                    let col = col_0 + vec_of(v, lane) * 4u;
                    finish(replica, split, row_0 + i * LANES + row_of(r, lane), col, sums[i][r][v], shift[v]);
                }
            }
        }
        if ROW_SUMS && col_0 == 0u {
            for (var i = 0u; i < ROW_BLOCKS; i++) {
                var sum = row_sums[i];
                if TRANSPOSE_A {
                    sum += subgroupShuffleXor(sum, 1u);
                    sum += subgroupShuffleXor(sum, 2u);
                    for (var j = 0u; j < 4u; j++) {
                        if lane % 4u == j { finish_row_sum(replica, split, row_0 + i * LANES + lane, sum[j]); }
                    }
                } else {
                    finish_row_sum(replica, split, row_0 + i * LANES + lane, sum.x + sum.y + sum.z + sum.w);
                }
            }
        }
    }
}
