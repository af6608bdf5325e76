// metrics[r, s] = sum over the batch of stats[r, s * batch + i], eight numbers per step s of the
// submission, in a fixed order: each lane over its stride, then lane after lane.
//
//   stats [r, slots * batch, 8] as shaders/head.wgsl writes it; metrics [r, slots, 8]
//
// One workgroup per step and replica; run once per submission, not once per step. One barrier and few lanes:
// on lavapipe a tree over 64 lanes took nine times as long.
// Reference: the test's plain loop. Host: src/kernels/metrics.rs.

struct Params {
    batch: u32,
    // Replica strides in floats.
    stats_replica: u32,
    metrics_replica: u32,
}

const LANES: u32 = 16u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> stats: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> metrics: array<f32>;

var<workgroup> partial: array<array<f32, 8>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = group.z * (params.stats_replica / 4u) + group.x * params.batch * 2u;
    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var i = lane; i < params.batch; i += LANES) {
        low += stats[at + 2u * i];
        high += stats[at + 2u * i + 1u];
    }
    for (var j = 0u; j < 4u; j++) {
        partial[lane][j] = low[j];
        partial[lane][4u + j] = high[j];
    }
    workgroupBarrier();
    if lane < 8u {
        var sum = 0.0;
        for (var l = 0u; l < LANES; l++) {
            sum += partial[l][lane];
        }
        metrics[group.z * params.metrics_replica + group.x * 8u + lane] = sum;
    }
}
