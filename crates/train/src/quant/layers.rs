//! Layers of a model by their paths.

use lapis::ops::quantize::{Format, Quantized};
use lapis::{Array, Error, Result};
use lapis_lm::Model;
use lapis_nn::{Params, Quantize, Weight, for_each_packable};

/// What `f` gives for the layer at a path; nothing, if there is none.
pub(crate) fn with_layer<T>(model: &mut dyn Model, path: &str, f: impl FnOnce(&mut dyn Quantize) -> T) -> Option<T> {
    let (mut f, mut found) = (Some(f), None);
    for_each_packable(model.module_mut(), &mut |own, layer| {
        if own == path
            && let Some(f) = f.take()
        {
            found = Some(f(layer));
        }
    });
    found
}

/// The matrix of a layer, or stack of them, as numbers.
///
/// # Errors
/// No such layer.
pub(crate) fn numbers(model: &mut dyn Model, path: &str) -> Result<Array> {
    with_layer(model, path, |layer| layer.matrix().numbers())
        .unwrap_or_else(|| Err(Error::value(format!("[quantize] there is no layer {path}"))))
}

/// Puts numbers in the place of a layer's matrix.
pub(crate) fn set(model: &mut dyn Model, path: &str, matrix: Array) {
    with_layer(model, path, |layer| *layer.matrix_mut() = Weight::dense(matrix));
}

/// Puts codes, scales and biases in the place of a layer's matrix.
pub(crate) fn install(model: &mut dyn Model, path: &str, mut parts: Params, format: Format) {
    let mut take = |name: &str| parts.remove(name);
    if let (Some(packed), Some(scales)) = (take("weight"), take("scales")) {
        let q = Quantized { packed, scales, biases: take("biases"), global_scale: None, format };
        with_layer(model, path, |layer| *layer.matrix_mut() = Weight::packed(q));
    }
}
