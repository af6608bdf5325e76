// Stochastic gradient descent over a whole parameter arena:
//
//   g = g + weight_decay * w          (coupled L2)
//   m = momentum * m + g
//   w = w - lr * m, or with NESTEROV  w = w - lr * (g + momentum * m)
//
// PyTorch's convention (torch.optim.SGD, dampening 0). All arenas are [r, 1, len], len a multiple of 8.
// An invocation takes eight, two vec4 side by side: it reads the step's numbers once for all of them, and a driver
// that reads by a loop over lanes (lavapipe) has half as many loops.
// Reference: reference::optimizer. Host: src/kernels/sgd.rs.

struct Params {
    // Groups of eight in one replica.
    groups: u32,
    replicas: u32,
    weight_decay: f32,
    // Workgroups in a row of the grid: big arenas are folded into y.
    width: u32,
    // Vec4 from a replica's norms to the next's.
    norms_replica: u32,
}

struct Step {
    step: u32, row_start: u32, rows: u32, seed: u32,
    lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
    temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
    loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
}

const WORKGROUP: u32 = 64u;
const NESTEROV: bool = false;
// The gradient is multiplied with the scale that shaders/norm.wgsl found; 0 leaves everything as it is.
const SCALED: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> steps: array<Step>;
@group(0) @binding(3) var<storage, read> gradient: array<mat2x4<f32>>;
@group(0) @binding(4) var<storage, read_write> weight: array<mat2x4<f32>>;
@group(0) @binding(5) var<storage, read_write> momentum: array<mat2x4<f32>>;
@group(0) @binding(6) var<storage, read> norms: array<vec4<f32>>;

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
    g += params.weight_decay * w;
    var m = now.momentum * momentum[at] + g;
    for (var j = 0u; j < 2u; j++) {
        w[j] -= now.lr * select(m[j], g[j] + now.momentum * m[j], NESTEROV);
    }
    momentum[at] = m;
    weight[at] = w;
}
