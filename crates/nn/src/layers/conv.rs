//! Convolutions and transposed convolutions, channels last.

use super::{Layer, scale_shift, truth, tuple, uniform};
use crate::{Module, Param};
use lapis::{Array, Error, Result, ops};
use std::fmt::Write as _;

/// What a convolution with `N` spatial axes does beside its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOptions<const N: usize> {
    /// Steps of the window.
    pub stride: [usize; N],
    /// Zeros on both sides.
    pub padding: [usize; N],
    /// Distance of neighbouring kernel positions.
    pub dilation: [usize; N],
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

impl<const N: usize> Default for ConvOptions<N> {
    fn default() -> Self {
        ConvOptions { stride: [1; N], padding: [0; N], dilation: [1; N], groups: 1, bias: true }
    }
}

/// What a transposed convolution with `N` spatial axes does beside its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTransposeOptions<const N: usize> {
    /// Steps of the window over the output.
    pub stride: [usize; N],
    /// What is cut off on both sides.
    pub padding: [usize; N],
    /// Distance of neighbouring kernel positions.
    pub dilation: [usize; N],
    /// Positions added at the end of the output.
    pub output_padding: [usize; N],
    /// Whether there is a bias.
    pub bias: bool,
}

impl<const N: usize> Default for ConvTransposeOptions<N> {
    fn default() -> Self {
        let (zero, one) = ([0; N], [1; N]);
        ConvTransposeOptions { stride: one, padding: zero, dilation: one, output_padding: zero, bias: true }
    }
}

/// The weight (outputs, kernel, inputs of a group), uniform in ±1/√(inputs of a group · kernel), and a bias of zeros.
fn parameters(outputs: usize, kernel: &[usize], inputs: usize, bias: bool) -> Result<(Param, Option<Param>)> {
    let fan_in = inputs * kernel.iter().product::<usize>();
    let shape: Vec<usize> = [outputs].iter().chain(kernel).chain(&[inputs]).copied().collect();
    let weight = Param::new(uniform((1.0 / fan_in as f64).sqrt(), &shape)?);
    Ok((weight, bias.then(|| ops::zeros::<f32>(&[outputs]).map(Param::new)).transpose()?))
}

/// Numbers as MLX prints them: alone for one axis.
fn numbers(list: &[usize]) -> String {
    match list {
        [one] => one.to_string(),
        _ => tuple(list),
    }
}

macro_rules! layers {
    ($($axes:literal $name:ident $op:ident $transposed:ident $transposed_op:ident;)*) => {$(
        #[doc = concat!("Convolution with ", $axes, " spatial axes (`nn.", stringify!($name), "`): weight (out, kernel,")]
        /// in / groups), uniform in ±1/√(in / groups · kernel); bias 0.
        #[derive(Module, Clone, Debug)]
        #[module(repr)]
        pub struct $name {
            /// (out, kernel, in / groups).
            pub weight: Param,
            /// (out,).
            pub bias: Option<Param>,
            /// Steps, padding, dilation, groups.
            #[plain]
            pub options: ConvOptions<$axes>,
        }

        impl $name {
            /// With default options.
            ///
            /// # Errors
            /// Sizes too large.
            pub fn new(inputs: usize, outputs: usize, kernel: [usize; $axes]) -> Result<$name> {
                $name::with(inputs, outputs, kernel, ConvOptions::default())
            }

            /// With these options.
            ///
            /// # Errors
            /// Input channels that the groups do not divide.
            pub fn with(
                inputs: usize,
                outputs: usize,
                kernel: [usize; $axes],
                options: ConvOptions<$axes>,
            ) -> Result<$name> {
                if options.groups == 0 || !inputs.is_multiple_of(options.groups) {
                    let (name, groups) = (stringify!($name), options.groups);
                    return Err(Error::value(format!("[{name}] {inputs} channels do not divide into {groups} groups")));
                }
                let (weight, bias) = parameters(outputs, &kernel, inputs / options.groups, options.bias)?;
                Ok($name { weight, bias, options })
            }

            fn repr(&self) -> String {
                let (s, o) = (self.weight.shape(), &self.options);
                let inputs = s[$axes + 1] * o.groups;
                let mut text = format!("{inputs}, {}, kernel_size={}", s[0], numbers(&s[1..=$axes]));
                let (stride, padding, dilation) = (numbers(&o.stride), numbers(&o.padding), o.dilation);
                // MLX keeps one dilation for all axes as a number.
                let same = dilation.iter().all(|&d| d == dilation[0]);
                let dilation = if same { dilation[0].to_string() } else { tuple(&dilation) };
                write!(text, ", stride={stride}, padding={padding}, dilation={dilation}").expect("a string");
                if $axes < 3 {
                    write!(text, ", groups={}", o.groups).expect("a string");
                }
                text + &format!(", bias={}", truth(self.bias.is_some()))
            }
        }

        impl Layer for $name {
            /// (batch, spatial axes, in) to (batch, spatial axes, out).
            fn forward(&self, x: &Array) -> Result<Array> {
                let o = &self.options;
                let y = ops::$op(x, &self.weight, o.stride, o.padding, o.dilation, o.groups)?;
                scale_shift(&y, None, self.bias.as_ref())
            }
        }

        #[doc = concat!("Transposed convolution with ", $axes, " spatial axes (`nn.", stringify!($transposed), "`):")]
        /// weight (out, kernel, in), uniform in ±1/√(in · kernel); bias 0.
        #[derive(Module, Clone, Debug)]
        #[module(repr)]
        pub struct $transposed {
            /// (out, kernel, in).
            pub weight: Param,
            /// (out,).
            pub bias: Option<Param>,
            /// Steps, padding, dilation.
            #[plain]
            pub options: ConvTransposeOptions<$axes>,
        }

        impl $transposed {
            /// With default options.
            ///
            /// # Errors
            /// Sizes too large.
            pub fn new(inputs: usize, outputs: usize, kernel: [usize; $axes]) -> Result<$transposed> {
                $transposed::with(inputs, outputs, kernel, ConvTransposeOptions::default())
            }

            /// With these options.
            ///
            /// # Errors
            /// Sizes too large.
            pub fn with(
                inputs: usize,
                outputs: usize,
                kernel: [usize; $axes],
                options: ConvTransposeOptions<$axes>,
            ) -> Result<$transposed> {
                let (weight, bias) = parameters(outputs, &kernel, inputs, options.bias)?;
                Ok($transposed { weight, bias, options })
            }

            fn repr(&self) -> String {
                let (s, o) = (self.weight.shape(), &self.options);
                let dilation = o.dilation;
                let same = dilation.iter().all(|&d| d == dilation[0]);
                let dilation = if same { dilation[0].to_string() } else { tuple(&dilation) };
                format!(
                    "{}, {}, kernel_size={}, stride={}, padding={}, dilation={dilation}, output_padding={}, bias={}",
                    s[$axes + 1],
                    s[0],
                    numbers(&s[1..=$axes]),
                    numbers(&o.stride),
                    numbers(&o.padding),
                    numbers(&o.output_padding),
                    truth(self.bias.is_some()),
                )
            }
        }

        impl Layer for $transposed {
            /// (batch, spatial axes, in) to (batch, spatial axes, out).
            fn forward(&self, x: &Array) -> Result<Array> {
                let o = &self.options;
                let y = ops::$transposed_op(x, &self.weight, o.stride, o.padding, o.dilation, o.output_padding, 1)?;
                scale_shift(&y, None, self.bias.as_ref())
            }
        }
    )*};
}

layers! {
    1 Conv1d conv1d ConvTranspose1d conv_transpose1d;
    2 Conv2d conv2d ConvTranspose2d conv_transpose2d;
    3 Conv3d conv3d ConvTranspose3d conv_transpose3d;
}
