//! Zeros at random, in training.

use super::{Layer, float};
use crate::{Mode, Module};
use lapis::shape::show;
use lapis::{Array, Error, Result, ops, random};

macro_rules! layers {
    ($($(#[$doc:meta])* $name:ident $axes:expr, $channels:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// Kept values are divided by the probability to keep them. The mask is drawn from this thread's random state.
        #[derive(Module, Clone, Debug)]
        #[module(repr)]
        pub struct $name {
            keep: f64,
            mode: Mode,
        }

        impl $name {
            /// Zeros with probability `p`; MLX's default is 0.5.
            ///
            /// # Errors
            /// A `p` outside [0, 1).
            pub fn new(p: f64) -> Result<$name> {
                if !(0.0..1.0).contains(&p) {
                    return Err(Error::value(format!("[{}] p is in [0, 1), not {p}", stringify!($name))));
                }
                Ok($name { keep: 1.0 - p, mode: Mode::Train })
            }

            fn repr(&self) -> String {
                format!("p={}", float(1.0 - self.keep))
            }
        }

        impl Layer for $name {
            fn forward(&self, x: &Array) -> Result<Array> {
                if !$axes.contains(&x.ndim()) {
                    let (name, s) = (stringify!($name), show(x.shape()));
                    return Err(Error::shape(format!("[{name}] x of shape {s} has another number of axes than it takes")));
                }
                if self.keep == 1.0 || !self.mode.is_training() {
                    return Ok(x.clone());
                }
                let mut shape = x.shape().to_vec();
                let last = shape.len();
                // One draw for the whole channel: the spatial axes before the last one are shared.
                (0..$channels).for_each(|i| shape[last - 2 - i] = 1);
                let mask = random::bernoulli(self.keep as f32, Some(&shape), None)?;
                ops::multiply(ops::multiply(&mask, x)?, 1.0 / self.keep)
            }
        }
    )*};
}

layers! {
    /// Zeros at single places (`nn.Dropout`).
    Dropout (0..=usize::MAX), 0;
    /// Zeros in whole channels of x (`[batch,]` height, width, channels) (`nn.Dropout2d`).
    Dropout2d (3..=4), 2;
    /// Zeros in whole channels of x (`[batch,]` depth, height, width, channels) (`nn.Dropout3d`).
    Dropout3d (4..=5), 3;
}
