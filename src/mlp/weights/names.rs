//! Which tensors of a file are a layer's weight and bias, and in which order the layers come.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// `[out, in]` by PyTorch's convention.
    Weight,
    /// `[in, out]` by Keras's and Flax's.
    Kernel,
    Bias,
}

/// A layer's tensors by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// What the names have in common, such as `module.fc1` or `sequential/dense_1`.
    pub stem: String,
    /// The weight's name.
    pub weight: Option<String>,
    /// The bias's name.
    pub bias: Option<String>,
    /// The name says Keras: the weight is stored `[in, out]`.
    pub kernel: bool,
}

/// Endings that give a tensor its role. `vars/0` and `vars/1` are what a `.weights.h5` of Keras 3 calls
/// a dense layer's kernel and bias.
const ENDINGS: [(&str, Role); 6] = [
    ("weight", Role::Weight),
    ("kernel", Role::Kernel),
    ("vars/0", Role::Kernel),
    ("vars.0", Role::Kernel),
    ("vars/1", Role::Bias),
    ("vars.1", Role::Bias),
];

fn role(name: &str) -> Option<(&str, Role)> {
    // TensorFlow numbers a variable's outputs; there is only one.
    let bare = name.strip_suffix(":0").unwrap_or(name);
    let endings = ENDINGS.iter().chain(&[("bias", Role::Bias)]);
    endings.copied().find_map(|(ending, role)| {
        let stem = bare.strip_suffix(ending)?;
        match stem.strip_suffix(['.', '/']) {
            Some(stem) => Some((stem, role)),
            None => stem.is_empty().then_some(("", role)),
        }
    })
}

/// Groups names into layers in natural order; the second list holds the names that are no weight, kernel
/// or bias, or the second of their kind in a layer.
pub(super) fn layers(names: &[&str]) -> (Vec<Group>, Vec<String>) {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let mut strangers = Vec::new();
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    for name in sorted {
        let Some((stem, role)) = role(name) else {
            strangers.push(name.to_owned());
            continue;
        };
        let group = groups.entry(stem.to_owned()).or_default();
        group.stem = stem.to_owned();
        let place = if role == Role::Bias { &mut group.bias } else { &mut group.weight };
        if place.is_some() {
            strangers.push(name.to_owned());
            continue;
        }
        *place = Some(name.to_owned());
        group.kernel |= role == Role::Kernel;
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by(|a, b| natural(&a.stem, &b.stem));
    (groups, strangers)
}

/// Runs of digits compare as numbers: `fc2` before `fc10`, `dense` before `dense_1`.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (x, rest_a) = head(a);
        let (y, rest_b) = head(b);
        let order = match (number(x), number(y)) {
            // Leading zeros aside, the longer run of digits is the larger number, of any length.
            (Some(x), Some(y)) => x.len().cmp(&y.len()).then_with(|| x.cmp(y)),
            _ => x.cmp(y),
        };
        if order != Ordering::Equal || (x.is_empty() && y.is_empty()) {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The first run of digits or of anything else, and what follows.
fn head(text: &str) -> (&str, &str) {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    text.split_at(end)
}

fn number(run: &str) -> Option<&str> {
    run.starts_with(|c: char| c.is_ascii_digit()).then(|| run.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stems(names: &[&str]) -> Vec<String> {
        layers(names).0.into_iter().map(|g| g.stem).collect()
    }

    #[test]
    fn layers_come_in_natural_order() {
        assert_eq!(
            stems(&["net.10.weight", "net.2.weight", "net.2.bias", "net.0.weight"]),
            ["net.0", "net.2", "net.10"]
        );
        assert_eq!(
            stems(&["s/dense_10/kernel", "s/dense/kernel", "s/dense_9/kernel:0"]),
            ["s/dense", "s/dense_9", "s/dense_10"]
        );
        assert_eq!(stems(&["_orig_mod.module.fc1.weight", "_orig_mod.module.fc2.weight"]).len(), 2);
        assert_eq!(natural("a007", "a7"), Ordering::Equal);
        assert_eq!(natural("a99999999999999999999999", "a100000000000000000000000"), Ordering::Less);
    }

    #[test]
    fn roles_by_ending() {
        let (groups, strangers) = layers(&["weight", "bias", "bn.running_mean", "x.weight_scale"]);
        assert_eq!((groups.len(), groups[0].stem.as_str()), (1, ""));
        assert_eq!(strangers, ["bn.running_mean", "x.weight_scale"]);
        let (groups, _) = layers(&["layers/dense/vars/0", "layers/dense/vars/1"]);
        assert!(groups[0].kernel && groups[0].bias.as_deref() == Some("layers/dense/vars/1"));
        // Two weights of one layer: neither is dropped in silence.
        let (_, strangers) = layers(&["a.kernel", "a.weight"]);
        assert_eq!(strangers, ["a.weight"]);
    }
}
