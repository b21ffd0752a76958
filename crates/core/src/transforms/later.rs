//! Ops whose rules are still to be written.

use super::{Grads, Lane, Site, Transform};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops::{self, Rule};

macro_rules! later {
    ($($op:ty),* $(,)?) => {$(
        impl Transform for $op {
            fn vjp(&self, _: &Site<'_>) -> Result<Grads> {
                Err(Error::unsupported(format!("[{}] has no derivative yet", self.name())))
            }
            fn vmap(&self, _: &[Lane], _: usize) -> Result<Vec<Array>> {
                Err(Error::unsupported(format!("[{}] cannot be mapped yet", self.name())))
            }
        }
    )*};
}

later! {
    ops::fast::norm::Norm,
    ops::fast::rope::Rope,
    ops::fast::attention::Attention,
    ops::fast::delta::GatedDelta,
    ops::quantize::Quantize,
    ops::quantize::Dequantize,
    ops::quantize::QuantizedMatmul,
    ops::quantize::ConvertFp8,
}
