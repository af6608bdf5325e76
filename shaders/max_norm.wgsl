// Max-norm (Srivastava et al. 2014): a unit's incoming weights, a row of W [r, out, in], that are longer than
// the limit are shortened to it: w = w * min(1, limit / norm).
//
// One workgroup per row; each lane over its stride, then a tree: the order depends on the width alone.
// A row whose squares have no finite sum stays as it is, for the run to find.
// Reference: reference::optimizer::max_norm. Host: src/kernels/max_norm.rs.

struct Params {
    // Vec4 groups from a row to the next.
    groups: u32,
    // Vec4 from a replica to the next, and from a replica's norms to the next's.
    replica: u32,
    norms_replica: u32,
    limit: f32,
}

// A replica whose gradient shaders/norm.wgsl gave the scale 0 keeps its weights as they are.
const GUARDED: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> slot: vec4<u32>;
@group(0) @binding(2) var<storage, read_write> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> norms: array<vec4<f32>>;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.z * params.replica + group.x * params.groups;
    var four = vec4<f32>();
    for (var j = lane; j < params.groups; j += 64u) {
        let w = weight[row + j];
        four += w * w;
    }
    sums[lane] = (four.x + four.y) + (four.z + four.w);
    workgroupBarrier();
    for (var reach = 32u; reach > 0u; reach /= 2u) {
        if lane < reach {
            sums[lane] += sums[lane + reach];
        }
        workgroupBarrier();
    }
    let squares = sums[0];
    if GUARDED {
        if norms[group.z * params.norms_replica + slot.x].y == 0.0 {
            return;
        }
    }
    let norm = sqrt(squares);
    // By its bits: a compiler may take it that there are no such numbers.
    let finite = (bitcast<u32>(squares) & 0x7f800000u) != 0x7f800000u;
    if finite && norm > params.limit {
        let scale = params.limit / norm;
        for (var j = lane; j < params.groups; j += 64u) {
            weight[row + j] *= scale;
        }
    }
}
