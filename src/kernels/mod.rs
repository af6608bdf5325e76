//! Knows the mathematics of one kernel each, knows no models.
//!
//! A kernel is a pair: `shaders/NAME.wgsl` and its twin here. Adding one touches three places: the
//! shader, the twin with its test, and one word in the list below. Validation, translation,
//! drift checks, doctor and bench all walk [`all`].

use crate::gpu::Kernel;

/// Declares a kernel's `Params` and, from the same fields, the table that is held against naga's.
macro_rules! params {
    ($(#[$meta:meta])* struct $name:ident { $($field:ident: $ty:ty),+ $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[allow(missing_docs, reason = "the shader's struct of the same name says what they are")]
        pub struct $name { $(pub $field: $ty),+ }
        impl $name {
            /// Name, offset and size in bytes of each field.
            pub const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$ty>())),+
            ];
        }
    };
}

/// The text of `shaders/NAME.wgsl`.
macro_rules! shader {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl"))
    };
}

macro_rules! kernels {
    ($($module:ident),+ $(,)?) => {
        $(pub mod $module;)+
        /// Every kernel of the crate.
        pub fn all() -> Vec<&'static Kernel> {
            [$($module::KERNELS),+].concat()
        }
    };
}

kernels!(gather, dropout, matmul, ensemble, head, feature, metrics, norm, sgd, adam, max_norm, peak);

pub mod step;
