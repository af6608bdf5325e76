// Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019) over a whole parameter arena:
//
//   g = g + weight_decay * w          (without DECOUPLED)
//   w = w - lr * weight_decay * w     (with DECOUPLED: AdamW)
//   m = beta_1 * m + (1 - beta_1) * g
//   v = beta_2 * v + (1 - beta_2) * g^2
//   w = w - lr * correction_1 * m / (correction_2 * sqrt(v) + epsilon)
//
// The host sets the bias corrections of the step, and with them the convention: PyTorch has
// 1 / (1 - beta_1^t) and 1 / sqrt(1 - beta_2^t); Keras, whose epsilon is not corrected, has
// sqrt(1 - beta_2^t) / (1 - beta_1^t) and 1. All arenas are [r, 1, len], len a multiple of 8.
// An invocation takes eight, two vec4 side by side: it reads the step's numbers once for all of them, and a driver
// that reads by a loop over lanes (lavapipe) has half as many loops.
// Reference: reference::optimizer. Host: src/kernels/adam.rs.

struct Params {
    // Groups of eight in one replica.
    groups: u32,
    replicas: u32,
    weight_decay: f32,
    // Workgroups in a row of the grid: big arenas are folded into y.
    width: u32,
    // Vec4 from a replica's norms to the next's.
    norms_replica: u32,
    beta_1: f32,
    beta_2: f32,
    // 1 - beta, rounded once from the exact difference: in f32 it would lose five digits.
    rest_1: f32,
    rest_2: f32,
    epsilon: f32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

const WORKGROUP: u32 = 64u;
const DECOUPLED: bool = false;
// The gradient is multiplied with the scale that shaders/norm.wgsl found; 0 leaves everything as it is.
const SCALED: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> gradient: array<mat2x4<f32>>;
@group(0) @binding(4) var<storage, read_write> weight: array<mat2x4<f32>>;
@group(0) @binding(5) var<storage, read_write> moment_1: array<mat2x4<f32>>;
@group(0) @binding(6) var<storage, read_write> moment_2: array<mat2x4<f32>>;
@group(0) @binding(7) var<storage, read> norms: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * params.width + group.x) * WORKGROUP + lane;
    if i >= params.groups {
        return;
    }
    let at = group.z * params.groups + i;
    let now = steps[slot.x * params.replicas + group.z];
    var w = weight[at];
    var g = gradient[at];
    if SCALED {
        let scale = norms[group.z * params.norms_replica + slot.x].y;
        if scale == 0.0 {
            return;
        }
        g *= scale;
    }
    if DECOUPLED {
        w -= now.lr * params.weight_decay * w;
    } else {
        g += params.weight_decay * w;
    }
    var m = params.beta_1 * moment_1[at] + params.rest_1 * g;
    var v = params.beta_2 * moment_2[at];
    for (var j = 0u; j < 2u; j++) {
        v[j] += params.rest_2 * g[j] * g[j];
        w[j] -= now.lr * now.correction_1 * m[j] / (now.correction_2 * sqrt(v[j]) + params.epsilon);
    }
    moment_1[at] = m;
    moment_2[at] = v;
    weight[at] = w;
}
