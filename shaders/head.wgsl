// The loss head: hard and soft loss, their gradient and the row's metrics, in one pass over the
// logits. Per row, with student logits z, teacher logits v, label c, T = temperature:
//
//   hard  = CE(z, y),  y = (1 - e) onehot(c) + e / K          (0 where the row has no label)
//   soft  = T^2 KL(p || q),  p = softmax(v / T), q = softmax(z / T)
//   d_z   = (hard_weight (softmax(z) - y) + soft_weight T (q - p)) / rows
//   stats = [hard, soft, correct, agreement], [non-finite, labelled, |hard gradient|^2, |soft gradient|^2]
//
//   z [r, batch, k], v [r, batch, k] or by row number [n, k] (BY_INDEX), d_z as z,
//   stats [r, slots * batch, 8]: one row per sample of every step of the submission
//
// LANES invocations share a row; a workgroup of 64 holds 64 / LANES rows. The logits are walked
// twice: once for the maxima and sums (online, a BLOCK at a time, so that each is loaded once and a
// long sum stays a sum of short ones), once for losses and gradient. Everything is in log space with
// the maximum subtracted before the division by T; sums run in a fixed order: each lane over its
// stride, then a tree. Rows past the step's `rows` give zeros.
// Reference: reference::head. Host: src/kernels/head.rs.

struct Params {
    batch: u32, k: u32,
    // Row strides in floats.
    z_stride: u32, v_stride: u32,
    // Replica strides in floats (rows for the labels and the order).
    z_replica: u32, v_replica: u32, stats_replica: u32,
    order_replica: u32, labels_replica: u32,
    replicas: u32,
    // The dispatch's first workgroup, for batches cut into several dispatches.
    group_start: u32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, spare_a: f32, spare_b: f32,
}

const LANES: u32 = 64u;
const SOFT: bool = true;
const BY_INDEX: bool = false;

const BLOCK: u32 = 32u;
const UNLABELLED: u32 = 0xffffffffu;
const LOWEST: f32 = -3.4028234e38;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> labels: array<u32>;
@group(0) @binding(5) var<storage, read> z: array<f32>;
@group(0) @binding(6) var<storage, read> v: array<f32>;
@group(0) @binding(7) var<storage, read_write> d_z: array<f32>;
@group(0) @binding(8) var<storage, read_write> stats: array<vec4<f32>>;

var<workgroup> sums: array<vec4<f32>, 64>;
var<workgroup> tops: array<vec4<f32>, 64>;

fn non_finite(x: f32) -> f32 {
    return select(0.0, 1.0, (bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u);
}

// The row's sum of x over its lanes, for every lane.
fn row_sum(x: vec4<f32>, local: u32) -> vec4<f32> {
    if LANES == 1u {
        return x;
    }
    sums[local] = x;
    workgroupBarrier();
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        if local % LANES < reach {
            sums[local] += sums[local + reach];
        }
        workgroupBarrier();
    }
    let total = sums[local - local % LANES];
    workgroupBarrier();
    return total;
}

// The better of two (maximum, index) pairs for z in xy and for v in zw; the lower index wins a tie.
fn better(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let first = b.x > a.x || (b.x == a.x && b.y < a.y);
    let second = b.z > a.z || (b.z == a.z && b.w < a.w);
    return vec4<f32>(select(a.xy, b.xy, first), select(a.zw, b.zw, second));
}

fn row_top(x: vec4<f32>, local: u32) -> vec4<f32> {
    if LANES == 1u {
        return x;
    }
    tops[local] = x;
    workgroupBarrier();
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        if local % LANES < reach {
            tops[local] = better(tops[local], tops[local + reach]);
        }
        workgroupBarrier();
    }
    let top = tops[local - local % LANES];
    workgroupBarrier();
    return top;
}

// What sums below the maxima of `before` become below those of `after`.
fn rescale(before: vec4<f32>, after: vec4<f32>, inv_t: f32) -> vec3<f32> {
    let lower = before.xz - after.xz;
    return exp(vec3<f32>(lower.x, lower.x * inv_t, lower.y * inv_t));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let replica = group.z;
    let lane = local % LANES;
    let row = (params.group_start + group.x) * (64u / LANES) + local / LANES;
    let now = steps[slot.x * params.replicas + replica];
    // Lanes of rows past the end keep walking, so that every barrier is met by all.
    let live = row < min(params.batch, now.rows);
    let k = select(0u, params.k, live);
    var index = 0u;
    var label = UNLABELLED;
    if live {
        index = order[replica * params.order_replica + now.row_start + row];
        label = labels[replica * params.labels_replica + index];
    }
    let z_at = replica * params.z_replica + row * params.z_stride;
    let v_at = replica * params.v_replica + select(row, index, BY_INDEX) * params.v_stride;
    let t = now.temperature;

    let inv_t = 1.0 / t;

    // The lane's maxima with their indices, and the sums of exp(z), exp(z/T) and exp(v/T) below them.
    var top = vec4<f32>(LOWEST, 0.0, LOWEST, 0.0);
    var sum = vec3<f32>();
    var z_block: array<f32, BLOCK>;
    var v_block: array<f32, BLOCK>;
    for (var start = lane; start < k; start += BLOCK * LANES) {
        let count = min(BLOCK, (k - start + LANES - 1u) / LANES);
        let before = top;
        for (var i = 0u; i < count; i++) {
            let j = start + i * LANES;
            z_block[i] = z[z_at + j];
            if z_block[i] > top.x { top.x = z_block[i]; top.y = f32(j); }
            if SOFT {
                v_block[i] = v[v_at + j];
                if v_block[i] > top.z { top.z = v_block[i]; top.w = f32(j); }
            }
        }
        var part = vec3<f32>();
        for (var i = 0u; i < count; i++) {
            let below = z_block[i] - top.x;
            part.x += exp(below);
            if SOFT {
                part.y += exp(below * inv_t);
                part.z += exp((v_block[i] - top.z) * inv_t);
            }
        }
        if start == lane {
            sum = part;
        } else {
            sum = sum * rescale(before, top, inv_t) + part;
        }
    }
    if LANES > 1u {
        let own = top;
        top = row_top(own, local);
        // A lane without elements has sums of zero and no maximum to speak of.
        if lane < k { sum *= rescale(own, top, inv_t); }
        sum = row_sum(vec4<f32>(sum, 0.0), local).xyz;
    }
    let log_sum = log(max(sum, vec3<f32>(1.0)));

    let labelled = label != UNLABELLED;
    let even = now.smoothing / f32(params.k);
    let hard_weight = select(0.0, now.hard_weight, labelled);
    let scale = 1.0 / f32(max(now.rows, 1u));
    var total = vec4<f32>();
    var bad = 0.0;
    for (var start = lane; start < k; start += BLOCK * LANES) {
        let end = min(k, start + BLOCK * LANES);
        // Hard loss, soft loss, squared norms of the hard and the soft gradient.
        var part = vec4<f32>();
        for (var j = start; j < end; j += LANES) {
            let below = z[z_at + j] - top.x;
            let log_q1 = below - log_sum.x;
            let y = even + select(0.0, 1.0 - now.smoothing, j == label);
            let hard = hard_weight * (exp(log_q1) - y);
            part.x -= select(0.0, y * log_q1, labelled && y != 0.0);
            var soft = 0.0;
            if SOFT {
                let log_q = below * inv_t - log_sum.y;
                let log_p = (v[v_at + j] - top.z) * inv_t - log_sum.z;
                let p = exp(log_p);
                soft = now.soft_weight * t * (exp(log_q) - p);
                part.y += p * (log_p - log_q);
            }
            let gradient = (hard + soft) * scale;
            bad = max(bad, non_finite(gradient));
            part.z += hard * hard;
            part.w += soft * soft;
            d_z[z_at + j] = gradient;
        }
        total += part;
    }
    // Padding columns, and whole rows past a short last batch.
    if row < params.batch {
        for (var j = k + lane; j < params.z_stride; j += LANES) {
            d_z[z_at + j] = 0.0;
        }
    }
    let all = row_sum(total, local);
    let any_bad = row_sum(vec4<f32>(bad, 0.0, 0.0, 0.0), local).x;
    if lane == 0u && row < params.batch {
        let soft_loss = t * t * all.y;
        let flag = max(select(0.0, 1.0, any_bad > 0.0), max(non_finite(all.x), non_finite(soft_loss)));
        let correct = select(0.0, 1.0, labelled && u32(top.y) == label);
        let agree = select(0.0, 1.0, live && SOFT && top.y == top.w);
        let to = (replica * params.stats_replica + (slot.x * params.batch + row) * 8u) / 4u;
        stats[to] = vec4<f32>(all.x, select(0.0, soft_loss, SOFT), correct, agree);
        stats[to + 1u] = vec4<f32>(flag, select(0.0, 1.0, labelled), all.z, all.w);
    }
}
