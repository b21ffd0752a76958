//! Composite ops with kernels of their own: what `mx.fast` offers. All compute in f32 inside (f64 for float64) and
//! equal their written-out form.

pub mod attention;
pub mod attention_grads;
pub mod cached;
pub mod delta;
pub mod norm;
pub mod rope;

pub use attention::{AttentionMask, AttentionOptions, KEY_BLOCK, attention_of_blocks, scaled_dot_product_attention};
pub use cached::{Cache, CachedHeads, attention_with_cache};
pub use delta::gated_delta_update;
pub use norm::{cross_entropy, layer_norm, rms_norm};
pub use rope::{Frequencies, Offset, rope};

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::shape::show;

/// What an op computes in that gives `dtype`.
fn wide(dtype: Dtype) -> Dtype {
    if dtype == Dtype::Float64 { dtype } else { Dtype::Float32 }
}

/// An error unless `a` is a real floating array.
fn check_floating(op: &str, what: &str, a: &Array) -> Result<()> {
    if a.dtype().is_floating() {
        return Ok(());
    }
    Err(Error::dtype(format!("[{op}] {what} is {}; real floating types are taken", a.dtype())))
}

/// An error unless `a` has `shape`.
fn check_shape(op: &str, what: &str, a: &Array, shape: &[usize]) -> Result<()> {
    if a.shape() == shape {
        return Ok(());
    }
    let (have, want) = (show(a.shape()), show(shape));
    Err(Error::shape(format!("[{op}] {what} has shape {have}; {want} is needed")))
}
