// C[r] = epilogue(op(A[r]) . op(B[r])), one output element per invocation.
//
//   op(A) is [m, k]: A is stored [m, k], or [k, m] with TRANSPOSE_A
//   op(B) is [k, n]: B is stored [k, n], or [n, k] with TRANSPOSE_B
//   C is [m, n]; r is the replica (workgroup z); a replica stride of 0 shares the operand
//
// Epilogue, in this order: + C (ACCUMULATE), + bias[col] (BIAS), keep the pre-activation in
// `extra` (KEEP), activation (ACTIVATION), * derivative of the activation taken from `saved`
// (MASK: 1 ReLU and 2 tanh from the activation's output, 3 GELU from the pre-activation).
// ROW_SUMS: extra[row] = sum over k of op(A)[row, k], the bias gradient beside the weight gradient;
// with ACCUMULATE added to what extra holds.
//
// The baseline that every other variant is measured against, and the easiest to check.
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

const TRANSPOSE_A: bool = false;
const TRANSPOSE_B: bool = false;
const ACCUMULATE: bool = false;
const BIAS: bool = false;
const KEEP: bool = false;
const ROW_SUMS: bool = false;
const ACTIVATION: u32 = 0u;
const MASK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> saved: array<f32>;
@group(0) @binding(6) var<storage, read_write> extra: array<f32>;

// tanh is NaN for large arguments on some drivers, and clamp would swallow a NaN: hence both guards.
fn safe_tanh(x: f32) -> f32 {
    return select(tanh(clamp(x, -10.0, 10.0)), x, (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u);
}

fn activate(x: f32) -> f32 {
    switch ACTIVATION {
        // Not max(): it would turn a NaN into 0 and hide it.
        case 1u: { return select(x, 0.0, x < 0.0); }
        case 2u: { return safe_tanh(x); }
        case 3u: { return 0.5 * x * (1.0 + safe_tanh(0.7978845608 * (x + 0.044715 * x * x * x))); }
        default: { return x; }
    }
}

fn derivative(s: f32) -> f32 {
    switch MASK {
        case 1u: { return select(0.0, 1.0, s > 0.0); }
        case 2u: { return 1.0 - s * s; }
        case 3u: {
            // Past 6 the limit: 1 - t * t would multiply one rounding error of t by s^3.
            if abs(s) > 6.0 { return select(0.0, 1.0, s > 0.0); }
            let t = safe_tanh(0.7978845608 * (s + 0.044715 * s * s * s));
            return 0.5 * (1.0 + t) + 0.5 * s * (1.0 - t * t) * 0.7978845608 * (1.0 + 0.134145 * s * s);
        }
        default: { return 1.0; }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let replica = group.z;
    let row = params.row_start + group.y * 8u + lane / 8u;
    let col = params.col_start + group.x * 8u + lane % 8u;
    if row >= params.m || col >= params.c_stride {
        return;
    }
    var sum = 0.0;
    var kept = 0.0;
    var row_sum = 0.0;
    if col < params.n {
        let a_base = replica * params.a_replica;
        let b_base = replica * params.b_replica;
        for (var i = 0u; i < params.k; i++) {
            let x = a[a_base + select(row * params.a_stride + i, i * params.a_stride + row, TRANSPOSE_A)];
            let y = b[b_base + select(i * params.b_stride + col, col * params.b_stride + i, TRANSPOSE_B)];
            sum = fma(x, y, sum);
            row_sum += x;
        }
        let at = row * params.c_stride + col;
        if ACCUMULATE { sum += c[replica * params.c_replica + at]; }
        if BIAS { sum += bias[replica * params.bias_replica + col]; }
        kept = sum;
        sum = activate(sum);
        if MASK != 0u { sum *= derivative(saved[replica * params.saved_replica + at]); }
    }
    // Padding columns too: they become zeros.
    c[replica * params.c_replica + row * params.c_stride + col] = sum;
    if KEEP { extra[replica * params.extra_replica + row * params.c_stride + col] = kept; }
    if ROW_SUMS && col == 0u {
        let at = replica * params.extra_replica + row;
        if ACCUMULATE { row_sum += extra[at]; }
        extra[at] = row_sum;
    }
}
