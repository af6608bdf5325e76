// metrics[r, s] = sum over the batch of stats[r, s * batch + i], eight numbers per step s of the
// submission, in a fixed order: each lane over its stride, then a tree.
//
//   stats [r, slots * batch, 8] as shaders/head.wgsl writes it; metrics [r, slots, 8]
//
// One workgroup per step and replica; run once per submission, not once per step.
// Reference: the test's plain loop. Host: src/kernels/metrics.rs.

struct Params {
    batch: u32,
    // Replica strides in floats.
    stats_replica: u32,
    metrics_replica: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> stats: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> metrics: array<vec4<f32>>;

var<workgroup> low: array<vec4<f32>, 64>;
var<workgroup> high: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = group.z * (params.stats_replica / 4u) + group.x * params.batch * 2u;
    var a = vec4<f32>();
    var b = vec4<f32>();
    for (var i = lane; i < params.batch; i += 64u) {
        a += stats[at + 2u * i];
        b += stats[at + 2u * i + 1u];
    }
    low[lane] = a;
    high[lane] = b;
    workgroupBarrier();
    for (var reach = 32u; reach > 0u; reach /= 2u) {
        if lane < reach {
            low[lane] += low[lane + reach];
            high[lane] += high[lane + reach];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        let to = group.z * (params.metrics_replica / 4u) + group.x * 2u;
        metrics[to] = low[0];
        metrics[to + 1u] = high[0];
    }
}
