//! Pooling over windows, channels last.

use super::{Layer, tuple};
use crate::Module;
use lapis::ops::PadMode;
use lapis::shape::show;
use lapis::{Array, Error, Result, ops};

/// Size, step and padding of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window<const N: usize> {
    kernel: [usize; N],
    stride: [usize; N],
    padding: [usize; N],
}

impl<const N: usize> Window<N> {
    fn new(name: &str, kernel: [usize; N], stride: Option<[usize; N]>, padding: [usize; N]) -> Result<Self> {
        let stride = stride.unwrap_or(kernel);
        if kernel.iter().chain(&stride).any(|&n| n == 0) {
            let (k, s) = (show(&kernel), show(&stride));
            return Err(Error::value(format!("[{name}] kernel size {k} and stride {s} must be positive")));
        }
        Ok(Window { kernel, stride, padding })
    }

    /// x (batch, spatial axes, channels) as a view with the window's axes before the channels.
    fn over(&self, name: &str, x: &Array, fill: f64) -> Result<Array> {
        if x.ndim() != N + 2 {
            let s = show(x.shape());
            return Err(Error::shape(format!("[{name}] x of shape {s}; (batch, {N} spatial axes, channels) is taken")));
        }
        let pads = |i: usize| if (1..=N).contains(&i) { (self.padding[i - 1], self.padding[i - 1]) } else { (0, 0) };
        let pads: Vec<(usize, usize)> = (0..N + 2).map(pads).collect();
        let padded = ops::pad(x, pads, PadMode::Constant, fill)?;
        let shape = padded.shape();
        if let Some(i) = (0..N).find(|&i| shape[i + 1] < self.kernel[i]) {
            let (s, k) = (show(shape), show(&self.kernel));
            return Err(Error::shape(format!("[{name}] the window {k} is longer than axis {} of {s}", i + 1)));
        }
        let steps: Vec<isize> = (0..N + 2).map(|i| shape[i + 1..].iter().product::<usize>() as isize).collect();
        let count = |i: usize| (shape[i + 1] - self.kernel[i]) / self.stride[i] + 1;
        let sizes: Vec<usize> =
            [shape[0]].into_iter().chain((0..N).map(count)).chain(self.kernel).chain([shape[N + 1]]).collect();
        let moves = (0..N).map(|i| steps[i + 1] * self.stride[i] as isize);
        let strides: Vec<isize> =
            [steps[0]].into_iter().chain(moves).chain(steps[1..=N].iter().copied()).chain([steps[N + 1]]).collect();
        ops::as_strided(&ops::contiguous(&padded, false)?, &sizes, &strides, 0)
    }

    fn axes() -> Vec<i32> {
        (0..N as i32).map(|i| i - N as i32 - 1).collect()
    }
}

macro_rules! layers {
    ($($axes:literal $name:ident $op:ident $fill:expr, $what:literal;)*) => {$(
        #[doc = concat!($what, " over windows of ", $axes, " spatial axes (`nn.", stringify!($name), "`). Sizes round")]
        /// down; x is (batch, spatial axes, channels).
        #[derive(Module, Clone, Debug)]
        #[module(repr)]
        pub struct $name {
            #[plain]
            window: Window<$axes>,
        }

        impl $name {
            /// The stride is the kernel size unless given; MLX's default padding is 0.
            ///
            /// # Errors
            /// A kernel size or stride of 0.
            pub fn new(
                kernel: [usize; $axes],
                stride: Option<[usize; $axes]>,
                padding: [usize; $axes],
            ) -> Result<$name> {
                Ok($name { window: Window::new(stringify!($name), kernel, stride, padding)? })
            }

            fn repr(&self) -> String {
                let Window { kernel, stride, padding } = &self.window;
                format!("kernel_size={}, stride={}, padding={}", tuple(kernel), tuple(stride), tuple(padding))
            }
        }

        impl Layer for $name {
            fn forward(&self, x: &Array) -> Result<Array> {
                ops::$op(&self.window.over(stringify!($name), x, $fill)?, Window::<$axes>::axes(), false)
            }
        }
    )*};
}

layers! {
    1 MaxPool1d max f64::NEG_INFINITY, "Largest value";
    2 MaxPool2d max f64::NEG_INFINITY, "Largest value";
    3 MaxPool3d max f64::NEG_INFINITY, "Largest value";
    1 AvgPool1d mean 0.0, "Mean, padding counted,";
    2 AvgPool2d mean 0.0, "Mean, padding counted,";
    3 AvgPool3d mean 0.0, "Mean, padding counted,";
}
