// One member of an ensemble of teachers, added to the teacher's logits that the loss head will read.
// Members m = 0 .. M - 1 are added one dispatch after the other:
//
//   GEOMETRIC    v_j = 1/M sum_m u_mj                                        mean of the logits
//   otherwise    v_j = T log( 1/M sum_m softmax(u_m / T)_j )                  mean of the probabilities
//
// so that softmax(v / T) is the ensemble's target at the step's temperature T. In between v holds the sum,
// or its logarithm. All in log space with the maximum subtracted; a NaN or infinity of u reaches v.
//
//   u [r or 1, batch, k], or by row number [n, k] (BY_INDEX); v [r, batch, k], FIRST writes, else adds
//
// One workgroup per row: each lane strides over the classes, then a tree in a fixed order. Rows past the
// step's `rows` and padding columns become zero. Reference: the test's plain loop in f64.
// Host: src/kernels/ensemble.rs.

struct Params {
    batch: u32, k: u32,
    // Row strides in floats.
    u_stride: u32, v_stride: u32,
    // Replica strides in floats (rows for the order).
    u_replica: u32, v_replica: u32, order_replica: u32,
    replicas: u32,
    // 1 / M and its logarithm.
    share: f32, log_share: f32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

const GEOMETRIC: bool = false;
const BY_INDEX: bool = false;
const FIRST: bool = false;
const LAST: bool = false;

const LOWEST: f32 = -3.4028234e38;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> u: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;

var<workgroup> lanes: array<f32, 64>;

// log(exp(a) + exp(b)). Not max() and min(): they would turn a NaN into the other number.
fn log_add(a: f32, b: f32) -> f32 {
    let high = select(a, b, b > a);
    let low = select(b, a, b > a);
    return high + log(1.0 + exp(low - high));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let replica = group.z;
    let row = group.x;
    let now = steps[slot.x * params.replicas + replica];
    // Uniform over the workgroup, so that every barrier is met by all.
    let live = row < min(params.batch, now.rows);
    let k = select(0u, params.k, live);
    var item = row;
    if BY_INDEX && live {
        item = order[replica * params.order_replica + now.row_start + row];
    }
    let u_at = replica * params.u_replica + item * params.u_stride;
    let v_at = replica * params.v_replica + row * params.v_stride;
    let t = now.temperature;

    var top = 0.0;
    var log_sum = 0.0;
    if !GEOMETRIC {
        top = LOWEST;
        for (var j = lane; j < k; j += 64u) {
            let x = u[u_at + j];
            top = select(top, x, x > top);
        }
        lanes[lane] = top;
        workgroupBarrier();
        for (var reach = 32u; reach > 0u; reach /= 2u) {
            if lane < reach {
                lanes[lane] = select(lanes[lane], lanes[lane + reach], lanes[lane + reach] > lanes[lane]);
            }
            workgroupBarrier();
        }
        top = lanes[0];
        workgroupBarrier();
        var sum = 0.0;
        for (var j = lane; j < k; j += 64u) {
            sum += exp((u[u_at + j] - top) / t);
        }
        lanes[lane] = sum;
        workgroupBarrier();
        for (var reach = 32u; reach > 0u; reach /= 2u) {
            if lane < reach {
                lanes[lane] += lanes[lane + reach];
            }
            workgroupBarrier();
        }
        sum = lanes[0];
        log_sum = log(select(sum, 1.0, sum < 1.0));
    }
    for (var j = lane; j < k; j += 64u) {
        let x = u[u_at + j];
        var value = x * params.share;
        if !GEOMETRIC {
            value = (x - top) / t - log_sum + params.log_share;
        }
        if !FIRST {
            if GEOMETRIC {
                value += v[v_at + j];
            } else {
                value = log_add(v[v_at + j], value);
            }
        }
        if LAST && !GEOMETRIC {
            value *= t;
        }
        v[v_at + j] = value;
    }
    if row < params.batch {
        for (var j = k + lane; j < params.v_stride; j += 64u) {
            v[v_at + j] = 0.0;
        }
    }
}
