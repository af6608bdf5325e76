// The loss head: hard and soft loss, their gradient and the row's metrics, in one pass over the
// logits. Per row, with student logits z, teacher logits v, label c, T = temperature:
//
//   hard  = CE(z, y),  y = (1 - e) onehot(c) + e / K          (0 where the row has no label)
//   soft  = T^2 D,  p = softmax(v / T), q = softmax(z / T)    (slope: d soft / d z over T)
//     LOSS              D                                            slope
//     FORWARD_KL        KL(p || q)                                   q - p
//     REVERSE_KL        KL(q || p) = R                               q (log q - log p - R)
//     SYMMETRIC_KL      the mean of the two                          the mean of the two
//     JSD               b KL(p || m) + (1 - b) KL(q || m),           (1 - b) q (log q - log m - KL(q || m))
//                       m = b p + (1 - b) q
//     DKD               alpha TCKD + beta NCKD: see `term`; none without a label
//     CLIPPED_KL        sum p' (log p' - log q'), p and q raised     q sum w - w,
//                       to at least `clip` as Keras does             w = p' where q >= clip
//     VIRTUAL_TEACHER   FORWARD_KL, v made from the label, which has probability a; none without one
//     SIGMOID           a binary KL per class                        sigmoid(z / T) - sigmoid(v / T)
//     MSE               mean (z - v)^2, without T^2                  2 (z - v) / K, without T
//   With STANDARDISE z and v become (x - mean) / (s + 1e-7) first, s the row's sample deviation.
//   d_z   = (hard_weight (softmax(z) - y) + soft_weight T slope) / rows
//   stats = [hard, soft, correct, agreement], [non-finite, labelled, |hard gradient|^2, |soft gradient|^2]
//
//   z [r, batch, k], v [r, batch, k] or by row number [n, k] (by_index), d_z as z,
//   stats [r, slots * batch, 8]: one row per sample of every step of the submission
//
// LANES invocations share a row; a workgroup of 64 holds 64 / LANES rows. A lane has a BLOCK of classes
// in hand at a time, four side by side, then the next four LANES * 4 further. The loops over a block are
// unrolled, so that it is in registers. The first walk finds the maxima and the sums below them, online;
// the last gives losses and gradient. With HELD a row is one block, and z and v are read once. A loss that
// needs more than these sums takes further walks between the two: its stages. Everything is in log space
// with the maximum subtracted before the division by T. Sums run in a fixed order: a block, then the
// blocks of a lane, then a tree over the lanes; so a long sum stays a sum of short ones.
// Rows past the step's `rows` give zeros.
// Reference: reference::head, reference::losses. Host: src/kernels/head.rs.

struct Params {
    batch: u32, k: u32,
    // Row strides in floats.
    z_stride: u32, v_stride: u32,
    // Replica strides in floats (rows for the labels and the order).
    z_replica: u32, v_replica: u32, stats_replica: u32,
    order_replica: u32, labels_replica: u32,
    replicas: u32,
    // Not 0: v is found by row number.
    by_index: u32,
    // The dispatch's first workgroup, for batches cut into several dispatches.
    group_start: u32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

const LANES: u32 = 64u;
const BLOCK: u32 = 32u;
const FOURS: u32 = BLOCK / 4u;
const HELD: bool = false;
const SOFT: bool = true;
const LOSS: u32 = 0u;
const STANDARDISE: bool = false;

const FORWARD_KL: u32 = 0u;
const REVERSE_KL: u32 = 1u;
const SYMMETRIC_KL: u32 = 2u;
// loss_a to loss_d: b, 1 - b, log b, log(1 - b).
const JSD: u32 = 3u;
// loss_a, loss_b: alpha, beta.
const DKD: u32 = 4u;
// loss_a, loss_b: clip, log clip.
const CLIPPED_KL: u32 = 5u;
// loss_a, loss_b: log a, log((1 - a) / (K - 1)).
const VIRTUAL_TEACHER: u32 = 6u;
const SIGMOID: u32 = 7u;
const MSE: u32 = 8u;

const OF_LABELS: bool = LOSS == DKD || LOSS == VIRTUAL_TEACHER;
const OF_SOFTMAX: bool = LOSS != SIGMOID && LOSS != MSE;
// The first walk sums what the soft loss needs too: it knows all that the exponents need.
const ONLINE: bool = SOFT && OF_SOFTMAX && !STANDARDISE && LOSS != DKD;

const FOUR: vec4<u32> = vec4<u32>(0u, 1u, 2u, 3u);
const UNLABELLED: u32 = 0xffffffffu;
const LOWEST: f32 = -3.4028234e38;
// As in reference::losses.
const CONSTANT_ROW: f32 = 8.0 * 1.1920929e-7;
const LEAST_DEVIATION: f32 = 1e-18;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> labels: array<u32>;
@group(0) @binding(5) var<storage, read> z: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> d_z: array<vec4<f32>>;
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

// What the walks know of their row.
struct Row {
    z_at: u32, v_at: u32, label: u32,
    // This invocation's first class, and the row's number of classes: 0 past the batch's last row.
    first: u32, end: u32,
    t: f32,
    // loss_a to loss_d.
    args: vec4<f32>,
    // Of z and of v, over the classes that the soft loss normalises over (DKD: all but the label's):
    // the maximum; with STANDARDISE the mean below it and 1 / (s + 1e-7); from a logit below the
    // maximum to its exponent; log of the sum of the exponentials.
    top: vec2<f32>, mean: vec2<f32>, inv_s: vec2<f32>, inv_t: vec2<f32>, log_sum: vec2<f32>,
    // DKD: log of the label's probability, and of all the others' together.
    log_target: vec2<f32>, log_rest: vec2<f32>,
    // R, KL(q || m) or the sum of w.
    expectation: f32,
}

// z and v of the classes j to j + 3, four that a vec4 holds; what is past the row's end is not used.
fn logits(row: Row, j: u32) -> mat4x2<f32> {
    let at = min(j, (row.end - 1u) / 4u * 4u);
    let own = z[(row.z_at + at) / 4u];
    var other = own;
    if LOSS == VIRTUAL_TEACHER {
        other = select(vec4<f32>(row.args.y), vec4<f32>(row.args.x), j + FOUR == vec4<u32>(row.label));
    } else if SOFT {
        other = v[(row.v_at + at) / 4u];
    }
    return transpose(mat2x4<f32>(own, other));
}

// log(softmax) of z and of v.
fn logs(row: Row, x: vec2<f32>) -> vec2<f32> {
    return (x - row.top) * row.inv_t - row.log_sum;
}

// log(1 / (1 + e^-x)).
fn log_sigmoid(x: vec2<f32>) -> vec2<f32> {
    return min(x, vec2<f32>()) - log(1.0 + exp(-abs(x)));
}

// log m.
fn log_mixture(row: Row, l: vec2<f32>) -> f32 {
    let part = l + row.args.wz;
    return max(part.x, part.y) + log(1.0 + exp(-abs(part.x - part.y)));
}

// p' where q is not clipped.
fn unclipped(row: Row, l: vec2<f32>, p: f32) -> f32 {
    return select(0.0, max(p, row.args.x), l.x >= row.args.y);
}

// What class j with the logits x = (z, v) adds to D, and its slope.
fn term(row: Row, j: u32, x: vec2<f32>) -> vec2<f32> {
    if LOSS == MSE {
        let d = x.x - x.y;
        return vec2<f32>(d * d, 2.0 * d) / f32(params.k);
    }
    if LOSS == SIGMOID {
        let high = log_sigmoid(x / row.t);
        let low = log_sigmoid(-x / row.t);
        let d = exp(high.y) * (high.y - high.x) + exp(low.y) * (low.y - low.x);
        return vec2<f32>(d, exp(high.x) - exp(high.y));
    }
    let l = logs(row, x);
    let q = exp(l.x);
    let p = exp(l.y);
    let ratio = l.x - l.y;
    if LOSS == REVERSE_KL {
        return q * vec2<f32>(ratio, ratio - row.expectation);
    }
    if LOSS == SYMMETRIC_KL {
        return 0.5 * vec2<f32>((q - p) * ratio, q - p + q * (ratio - row.expectation));
    }
    if LOSS == JSD {
        let below = l - log_mixture(row, l);
        let d = row.args.x * p * below.y + row.args.y * q * below.x;
        // In this order, so that a small q is not made smaller first: it could be flushed to zero.
        return vec2<f32>(d, q * (row.args.y * (below.x - row.expectation)));
    }
    if LOSS == DKD {
        // TCKD is the KL of two classes, the label's and the rest, and stands with the label; NCKD is
        // the KL of the others among themselves, whose softmaxes q and p are here. Never 1 - q_c: in
        // f32 that is 0 from a logit gap of 20.
        let target_of = exp(row.log_target);
        if j == row.label {
            let log_ratio = row.log_target.y - row.log_target.x;
            let d = target_of.y * log_ratio + exp(row.log_rest.y) * (row.log_rest.y - row.log_rest.x);
            return row.args.x * vec2<f32>(d, target_of.x - target_of.y);
        }
        let slope = row.args.x * (target_of.y - target_of.x) * q + row.args.y * (q - p);
        return vec2<f32>(-row.args.y * p * ratio, slope);
    }
    if LOSS == CLIPPED_KL {
        let raised = max(l, vec2<f32>(row.args.y));
        let d = max(p, row.args.x) * (raised.y - raised.x);
        return vec2<f32>(d, q * row.expectation - unclipped(row, l, p));
    }
    return vec2<f32>(p * (l.y - l.x), q - p);
}

// The walks between the first and the last, and what class j adds to the sums of each.
const MEAN: u32 = 0u;
const SQUARES: u32 = 1u;
const SUMS: u32 = 2u;
const EXPECTATION: u32 = 3u;
const ALONG: u32 = 4u;

fn stage_part(stage: u32, row: Row, j: u32, x: vec2<f32>) -> vec2<f32> {
    let below = x - row.top;
    switch stage {
        case MEAN: {
            return below;
        }
        case SQUARES: {
            let centred = below - row.mean;
            return centred * centred;
        }
        case SUMS: {
            if LOSS == DKD && j == row.label {
                return vec2<f32>();
            }
            return exp(below * row.inv_t);
        }
        case EXPECTATION: {
            let l = logs(row, x);
            if LOSS == CLIPPED_KL {
                return vec2<f32>(unclipped(row, l, exp(l.y)), 0.0);
            }
            var against = l.y;
            if LOSS == JSD { against = log_mixture(row, l); }
            return vec2<f32>(exp(l.x) * (l.x - against), 0.0);
        }
        // The slope along the standardised logits.
        default: {
            return vec2<f32>(term(row, j, x).y * (below.x - row.mean.x) * row.inv_s.x, 0.0);
        }
    }
}

// The row's sums of a stage, for every lane.
fn walk(stage: u32, row: Row, local: u32) -> vec2<f32> {
    var total = vec2<f32>();
    for (var start = row.first; start < row.end; start += BLOCK * LANES) {
        var part = vec2<f32>();
        for (var g = 0u; g < FOURS; g++) {
            let first = start + g * 4u * LANES;
            var x = logits(row, first);
            for (var i = 0u; i < 4u; i++) {
                let own = stage_part(stage, row, first + i, x[i]);
                part += select(vec2<f32>(), own, first + i < row.end);
            }
        }
        total += part;
    }
    return row_sum(vec4<f32>(total, 0.0, 0.0), local).xy;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let replica = group.z;
    let lane = local % LANES;
    let number = (params.group_start + group.x) * (64u / LANES) + local / LANES;
    let now = steps[slot.x * params.replicas + replica];
    // Lanes of rows past the end keep walking, so that every barrier is met by all.
    let live = number < min(params.batch, now.rows);
    let k = select(0u, params.k, live);
    var index = 0u;
    var label = UNLABELLED;
    if live {
        index = order[replica * params.order_replica + now.row_start + number];
        label = labels[replica * params.labels_replica + index];
    }
    let labelled = label != UNLABELLED;
    let t = now.temperature;
    let inv_t = 1.0 / t;
    var row: Row;
    row.z_at = replica * params.z_replica + number * params.z_stride;
    row.v_at = replica * params.v_replica + select(number, index, params.by_index != 0u) * params.v_stride;
    row.label = label;
    row.first = 4u * lane;
    row.end = k;
    row.t = t;
    row.args = vec4<f32>(now.loss_a, now.loss_b, now.loss_c, now.loss_d);

    // The lane's maxima with their indices, and the sums of exp(z), exp(z/T) and exp(v/T) below them.
    var top = vec4<f32>(LOWEST, 0.0, LOWEST, 0.0);
    // DKD: the maxima of z and v over the other classes than the label's.
    var others = vec2<f32>(LOWEST);
    var sum = vec3<f32>();
    // The logit too is looked at: softmax takes -inf for an impossible class and hides an overflow upstream.
    var bad = 0.0;
    var block: array<mat4x2<f32>, FOURS>;
    for (var start = row.first; start < k; start += BLOCK * LANES) {
        let before = top;
        for (var g = 0u; g < FOURS; g++) {
            let first = start + g * 4u * LANES;
            block[g] = logits(row, first);
            for (var i = 0u; i < 4u; i++) {
                let j = first + i;
                let within = j < k;
                let x = select(vec2<f32>(LOWEST), block[g][i], within);
                bad = max(bad, non_finite(x.x));
                let higher = x > top.xz;
                if higher.x { top.x = x.x; top.y = f32(j); }
                if SOFT {
                    if higher.y { top.z = x.y; top.w = f32(j); }
                    if LOSS == DKD && j != label { others = max(others, x); }
                    // A clip or a maximum would hide it; FORWARD_KL, the fast one, hides nothing.
                    if LOSS != FORWARD_KL { bad = max(bad, non_finite(x.y)); }
                }
            }
        }
        if start > row.first { sum *= rescale(before, top, inv_t); }
        var part = vec3<f32>();
        for (var g = 0u; g < FOURS; g++) {
            for (var i = 0u; i < 4u; i++) {
                let within = start + g * 4u * LANES + i < k;
                let below = block[g][i] - top.xz;
                part.x += select(0.0, exp(below.x), within);
                if ONLINE { part += vec3<f32>(0.0, select(vec2<f32>(), exp(below * inv_t), within)); }
            }
        }
        sum += part;
    }
    if LANES > 1u {
        let own = top;
        top = row_top(own, local);
        // A lane without elements has sums of zero and no maximum to speak of.
        let lower = select(vec3<f32>(), rescale(own, top, inv_t), row.first < k);
        let both = row_sum(vec4<f32>(sum * lower, bad), local);
        sum = both.xyz;
        bad = both.w;
    }
    sum = max(sum, vec3<f32>(1.0));
    let log_sum = log(sum);

    if SOFT {
        row.top = top.xz;
        if LOSS == DKD { row.top = row_top(vec4<f32>(others.x, 0.0, others.y, 0.0), local).xz; }
        row.inv_s = vec2<f32>(1.0);
        row.inv_t = vec2<f32>(inv_t);
        row.log_sum = log_sum.yz;
    }
    // From the slope along the standardised logits to that along the deviation.
    var spread = 0.0;
    if STANDARDISE {
        row.mean = walk(MEAN, row, local) / f32(params.k);
        let s = sqrt(walk(SQUARES, row, local) / f32(params.k - 1u));
        // A constant row, as far as f32 can tell, has all its standardised logits 0 and no gradient.
        let constant = s <= max(CONSTANT_ROW * abs(top.xz), vec2<f32>(LEAST_DEVIATION));
        row.inv_s = select(1.0 / (s + 1e-7), vec2<f32>(), constant);
        row.inv_t = row.inv_s / t;
        spread = row.inv_s.x / (f32(params.k - 1u) * max(s.x, LEAST_DEVIATION));
    }
    if SOFT && OF_SOFTMAX && !ONLINE {
        row.log_sum = log(max(walk(SUMS, row, local), vec2<f32>(1.0)));
    }
    if LOSS == DKD {
        // The label against the others: a softmax of two classes.
        let own = select(0u, label, labelled);
        var x = logits(row, own / 4u * 4u);
        let lead = logs(row, x[own % 4u]);
        row.log_target = log_sigmoid(lead);
        row.log_rest = log_sigmoid(-lead);
    }
    if LOSS == REVERSE_KL || LOSS == SYMMETRIC_KL || LOSS == JSD || LOSS == CLIPPED_KL {
        row.expectation = walk(EXPECTATION, row, local).x;
    }
    if STANDARDISE { spread *= walk(ALONG, row, local).x; }

    let even = now.smoothing / f32(params.k);
    let hard_weight = select(0.0, now.hard_weight, labelled);
    var soft_weight = now.soft_weight * t;
    if LOSS == MSE { soft_weight = now.soft_weight; }
    let scale = 1.0 / f32(max(now.rows, 1u));
    // Hard loss, soft loss, squared norms of the hard and the soft gradient.
    var total = vec4<f32>();
    for (var start = row.first; start < k; start += BLOCK * LANES) {
        var part = vec4<f32>();
        for (var g = 0u; g < FOURS; g++) {
            let first = start + g * 4u * LANES;
            if !HELD { block[g] = logits(row, first); }
            var gradient: vec4<f32>;
            for (var i = 0u; i < 4u; i++) {
                let j = first + i;
                let within = j < k;
                let x = block[g][i];
                let log_q = x.x - top.x - log_sum.x;
                let y = even + select(0.0, 1.0 - now.smoothing, j == label);
                let hard = hard_weight * (exp(log_q) - y);
                var soft = 0.0;
                var losses = vec2<f32>(select(0.0, -y * log_q, y != 0.0), 0.0);
                if SOFT && (labelled || !OF_LABELS) {
                    let own = term(row, j, x);
                    var slope = own.y;
                    if STANDARDISE { slope = slope * row.inv_s.x - spread * (x.x - row.top.x - row.mean.x); }
                    soft = soft_weight * slope;
                    losses.y = own.x;
                }
                part += select(vec4<f32>(), vec4<f32>(losses, hard * hard, soft * soft), within);
                gradient[i] = select(0.0, (hard + soft) * scale, within);
            }
            if first < k { d_z[(row.z_at + first) / 4u] = gradient; }
        }
        total += part;
    }
    // Padding columns, and whole rows past a short last batch.
    if number < params.batch {
        for (var j = (k + 3u) / 4u * 4u + row.first; j < params.z_stride; j += 4u * LANES) {
            d_z[(row.z_at + j) / 4u] = vec4<f32>();
        }
    }
    let all = row_sum(total, local);
    if lane == 0u && number < params.batch {
        var soft_loss = t * t * all.y;
        if LOSS == MSE { soft_loss = all.y; }
        // A gradient that is not finite makes its squared norm so.
        let results = max(max(non_finite(all.x), non_finite(soft_loss)), max(non_finite(all.z), non_finite(all.w)));
        let flag = max(results, min(bad, 1.0));
        let correct = select(0.0, 1.0, labelled && u32(top.y) == label);
        let agree = select(0.0, 1.0, live && SOFT && LOSS != VIRTUAL_TEACHER && top.y == top.w);
        let to = (replica * params.stats_replica + (slot.x * params.batch + number) * 8u) / 4u;
        stats[to] = vec4<f32>(select(0.0, all.x, labelled), select(0.0, soft_loss, SOFT), correct, agree);
        stats[to + 1u] = vec4<f32>(flag, select(0.0, 1.0, labelled), all.z, all.w);
    }
}
