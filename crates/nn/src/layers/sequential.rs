//! Layers one after another.

use crate::Module;
use lapis::{Array, Result};

/// A module that is a function of one array.
pub trait Layer: Module + Copied {
    /// The output for `x`.
    ///
    /// # Errors
    /// An input that does not fit the layer.
    fn forward(&self, x: &Array) -> Result<Array>;
}

/// Copying a layer of unknown type. Every layer that is `Clone` can be copied.
pub trait Copied {
    /// The copy.
    fn copied(&self) -> Box<dyn Layer>;
}

impl<L: Layer + Clone> Copied for L {
    fn copied(&self) -> Box<dyn Layer> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn Layer> {
    fn clone(&self) -> Box<dyn Layer> {
        (**self).copied()
    }
}

/// Layers in a row: the output of one is the input of the next (`nn.Sequential`).
///
/// ```
/// use lapis_nn::{Layer, Linear, Module, ReLU, Sequential};
///
/// let model = Sequential::new().then(Linear::new(4, 8, true)?).then(ReLU).then(Linear::new(8, 2, true)?);
/// assert_eq!(model.parameters().keys().next().map(String::as_str), Some("layers.0.bias"));
/// assert_eq!(model.forward(&lapis::ops::ones::<f32>(&[3, 4])?)?.shape(), [3, 2]);
/// # Ok::<(), lapis::Error>(())
/// ```
#[derive(Module, Clone, Default)]
pub struct Sequential {
    /// In order.
    pub layers: Vec<Box<dyn Layer>>,
}

impl Sequential {
    /// No layer: gives its input.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// The same with one layer more.
    pub fn then(mut self, layer: impl Layer) -> Sequential {
        self.layers.push(Box::new(layer));
        self
    }
}

impl Layer for Sequential {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x))
    }
}
