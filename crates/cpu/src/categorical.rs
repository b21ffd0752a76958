//! Drawing categories from distributions by their inverse distribution functions.
//!
//! The weights are summed strictly from left to right in f32, with the generator's own exponential: that order is part
//! of the numbers users get for a key.

use crate::isa::isa;
use crate::math::{self, Unary};
use crate::tape::contiguous;
use lapis_core::buffer::Tensor;
use lapis_core::error::Result;

/// For each uniform the index of its category. `logits` (..., V) and `uniforms` (the same axes lead) are float32, `out`
/// is uint32.
pub(crate) fn inverse_cdf(logits: &Tensor, uniforms: &Tensor, out: &mut Tensor) -> Result<()> {
    let (logits, uniforms) = (contiguous(logits)?, contiguous(uniforms)?);
    let x: &[f32] = bytemuck::cast_slice(logits.contiguous_bytes());
    let uniforms: &[f32] = bytemuck::cast_slice(uniforms.contiguous_bytes());
    let classes = logits.shape.last().copied().unwrap_or(1).max(1);
    let draws = (uniforms.len() / (x.len() / classes).max(1)).max(1);
    let mut weights = vec![0.0; classes];
    let to = out.ptr().cast::<u32>();
    for (i, &u) in uniforms.iter().enumerate() {
        if i % draws == 0 {
            let row = i / draws * classes;
            running_sums(&x[row..row + classes], &mut weights);
        }
        let at = u * weights[classes];
        let index = weights[..classes].partition_point(|&sum| sum <= at).saturating_sub(1);
        // SAFETY: the output has an element for every uniform.
        unsafe { to.add(i).write(index as u32) };
    }
    Ok(())
}

/// The running sums of the weights of the categories, without and last with all of them.
fn running_sums(x: &[f32], weights: &mut Vec<f32>) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
    // With an infinite maximum the entries equal to it share everything.
    let shifted: Vec<f32> = if largest.is_infinite() {
        x.iter().map(|&v| if v == largest { 0.0 } else { f32::NEG_INFINITY }).collect()
    } else {
        x.iter().map(|&v| v - largest).collect()
    };
    weights.resize(x.len(), 0.0);
    math::unary_slice(isa(), Unary::RandomExp, &shifted, weights);
    let mut total = 0.0f32;
    for w in weights.iter_mut() {
        let before = total;
        total += *w;
        *w = before;
    }
    weights.push(total);
}
