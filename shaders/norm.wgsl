// The norm of each replica's gradient, and what its update multiplies the gradient with:
//
//   norm  = sqrt(sum g^2)
//   scale = min(1, clip / norm), or 0 where the sum is not a finite number: then nothing is updated
//
//   gradient [r, 1, len], partial [r, 1, workgroups], norms [r, slots, 4] = norm, scale, not finite, 0
//
// Two dispatches: `partials` workgroups per replica leave a sum each; with FINISH one workgroup per
// replica adds those. Each lane over its stride, then a tree: the order depends on the length alone.
// A norm of 1.8e19 and more overflows in its square and counts as not finite.
// Reference: reference::optimizer::clipped. Host: src/kernels/norm.rs.

struct Params {
    // Vec4 groups in one replica.
    groups: u32,
    // Workgroups of the first dispatch in one replica.
    partials: u32,
    // Vec4 from a replica's norms to the next's.
    norms_replica: u32,
    clip: f32,
}

const FINISH: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read> gradient: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> partial: array<f32>;
@group(0) @binding(4) var<storage, read_write> norms: array<vec4<f32>>;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let partial_at = group.z * params.partials;
    var sum = 0.0;
    if FINISH {
        for (var i = lane; i < params.partials; i += 64u) {
            sum += partial[partial_at + i];
        }
    } else {
        var four = vec4<f32>();
        for (var i = group.x * 64u + lane; i < params.groups; i += 64u * params.partials) {
            let g = gradient[group.z * params.groups + i];
            four += g * g;
        }
        sum = (four.x + four.y) + (four.z + four.w);
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var reach = 32u; reach > 0u; reach /= 2u) {
        if lane < reach {
            sums[lane] += sums[lane + reach];
        }
        workgroupBarrier();
    }
    if lane != 0u {
        return;
    }
    let squares = sums[0];
    if FINISH {
        let norm = sqrt(squares);
        var result = vec4<f32>(norm, 1.0, 0.0, 0.0);
        if norm > params.clip {
            result.y = params.clip / norm;
        }
        // By its bits: a compiler may take it that there are no such numbers.
        if (bitcast<u32>(squares) & 0x7f800000u) == 0x7f800000u {
            result = vec4<f32>(squares, 0.0, 1.0, 0.0);
        }
        norms[group.z * params.norms_replica + slot.x] = result;
    } else {
        partial[partial_at + group.x] = squares;
    }
}
