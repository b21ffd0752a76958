//! Convolutions of any number of spatial axes, channels last.
//!
//! One op with strides, padding, both dilations, groups and a reversed kernel; a transposed convolution is that op with
//! its stride as the dilation of the input.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::view::{permute, reshape_to};
use crate::ops::{Rule, astype, expect, flip, zeros_like};
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// One number a spatial axis, outermost first.
pub type PerAxis = SmallVec<[usize; 3]>;

/// `out[b, t, o] = sum over k, c of in[b, t * stride + k * dilation - padding, c] * w[o, k, c]`: input (batch, spatial
/// axes, channels), weight (outputs, spatial axes, channels / groups). Half precision sums in f32.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convolution {
    /// Steps of the window.
    pub stride: PerAxis,
    /// Zeros in front of the dilated input; negative ones crop.
    pub padding_lo: SmallVec<[isize; 3]>,
    /// Zeros behind it.
    pub padding_hi: SmallVec<[isize; 3]>,
    /// Distance of neighbouring kernel positions.
    pub kernel_dilation: PerAxis,
    /// Distance that neighbouring inputs are moved apart to.
    pub input_dilation: PerAxis,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Whether the kernel is applied reversed.
    pub flip: bool,
}

impl Convolution {
    /// Length of the output along spatial axis `i`; `None` when the kernel does not fit.
    fn length(&self, i: usize, input: usize, kernel: usize) -> Option<usize> {
        let spread = |len: usize, dilation: usize| -> Option<i128> {
            Some((len as i128 - 1).checked_mul(dilation as i128)? + 1).map(|n| if len == 0 { 0 } else { n })
        };
        let room = spread(input, self.input_dilation[i])? + self.padding_lo[i] as i128 + self.padding_hi[i] as i128;
        let span = spread(kernel, self.kernel_dilation[i])?.max(1);
        if room < span { None } else { usize::try_from((room - span) / self.stride[i] as i128 + 1).ok() }
    }
}

impl Rule for Convolution {
    fn name(&self) -> &'static str {
        "conv"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count("conv", inputs, 2)?;
        expect::alike("conv", inputs)?;
        expect::dtype("conv", &inputs[0], inputs[0].dtype().is_floating())?;
        let (input, weight) = (inputs[0].shape(), inputs[1].shape());
        let shapes = || format!("input {}, weight {}", show(input), show(weight));
        if input.len() != weight.len() || !(3..=5).contains(&input.len()) {
            let text = "input and weight need the same number of dimensions, 3 to 5";
            return Err(Error::shape(format!("[conv] {text}: {}", shapes())));
        }
        let (axes, groups) = (input.len() - 2, self.groups);
        let lists = [&self.stride, &self.kernel_dilation, &self.input_dilation];
        let counts = lists.iter().all(|list| list.len() == axes && !list.contains(&0));
        expect::fit("conv", counts && [self.padding_lo.len(), self.padding_hi.len()] == [axes; 2], inputs)?;
        let channels = input[axes + 1];
        if groups == 0 || !channels.is_multiple_of(groups) || !weight[0].is_multiple_of(groups) {
            return Err(Error::value(format!("[conv] channels do not divide into {groups} groups: {}", shapes())));
        }
        if weight[axes + 1] != channels / groups {
            let want = channels / groups;
            return Err(Error::shape(format!("[conv] the last axis of the weight must be {want}: {}", shapes())));
        }
        let mut shape: Shape = smallvec![input[0]];
        for i in 0..input.len() - 2 {
            let (n, k) = (input[i + 1], weight[i + 1]);
            let length = self.length(i, n, k).ok_or_else(|| {
                let text = "a kernel that does not fit the padded input along spatial axis";
                Error::shape(format!("[conv] {text} {i}: {}", shapes()))
            })?;
            shape.push(length);
        }
        shape.push(weight[0]);
        shape::elements(self.name(), &shape)?;
        Ok(smallvec![Aval::new(shape, inputs[0].dtype())])
    }
}

/// Numbers for the spatial axes: one for all, or one each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spatial {
    /// The same on every axis.
    All(i64),
    /// Outermost first.
    Each(SmallVec<[i64; 3]>),
}

macro_rules! spatial {
    ($($t:ty),*) => {$(
        impl From<$t> for Spatial {
            fn from(n: $t) -> Spatial {
                Spatial::All(i64::try_from(n).unwrap_or(i64::MAX))
            }
        }
        impl From<&[$t]> for Spatial {
            fn from(list: &[$t]) -> Spatial {
                Spatial::Each(list.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect())
            }
        }
        impl<const N: usize> From<[$t; N]> for Spatial {
            fn from(list: [$t; N]) -> Spatial {
                Spatial::from(list.as_slice())
            }
        }
    )*};
}
spatial!(i32, i64, usize);

impl Spatial {
    fn expand(&self, what: &str, axes: usize) -> Result<SmallVec<[i64; 3]>> {
        match self {
            Spatial::All(n) => Ok(SmallVec::from_elem(*n, axes)),
            Spatial::Each(list) if list.len() == axes => Ok(list.clone()),
            Spatial::Each(list) => {
                Err(Error::value(format!("[conv] {what} has {} numbers for {axes} spatial axes", list.len())))
            }
        }
    }

    /// Numbers that must be positive.
    fn positive(&self, what: &str, axes: usize) -> Result<PerAxis> {
        let list = self.expand(what, axes)?;
        if let Some(bad) = list.iter().find(|&&n| n < 1) {
            return Err(Error::value(format!("[conv] {what} must be at least 1, not {bad}")));
        }
        Ok(list.into_iter().map(|n| n as usize).collect())
    }
}

/// The settings of [`conv_general`]; the default is a plain convolution.
#[derive(Clone, Debug)]
pub struct ConvSettings {
    /// Steps of the window.
    pub stride: Spatial,
    /// Zeros in front of the input; negative ones crop.
    pub padding_lo: Spatial,
    /// Zeros behind it.
    pub padding_hi: Spatial,
    /// Distance of neighbouring kernel positions.
    pub kernel_dilation: Spatial,
    /// Distance that neighbouring inputs are moved apart to, with zeros in between.
    pub input_dilation: Spatial,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Whether the kernel is applied reversed.
    pub flip: bool,
}

impl Default for ConvSettings {
    fn default() -> ConvSettings {
        let one = Spatial::All(1);
        ConvSettings {
            stride: one.clone(),
            padding_lo: Spatial::All(0),
            padding_hi: Spatial::All(0),
            kernel_dilation: one.clone(),
            input_dilation: one,
            groups: 1,
            flip: false,
        }
    }
}

/// Convolution, as a cross-correlation, with every setting (`mx.conv_general`): input (batch, spatial axes, channels),
/// weight (outputs, spatial axes, channels / groups), one to three spatial axes; result (batch, spatial axes, outputs)
/// of the promoted dtype. Output channel o reads input group `o / (outputs / groups)`.
///
/// Length along an axis: `(dilated input + padding - dilated kernel) / stride + 1`, rounded down.
///
/// # Errors
/// Dtypes that are not real floating; numbers of axes or channels that do not fit; a kernel larger than the padded
/// input; strides, dilations or groups below 1.
pub fn conv_general(input: &Array, weight: &Array, settings: &ConvSettings) -> Result<Array> {
    let dtype = input.dtype().promote(weight.dtype());
    if !dtype.is_floating() {
        let (a, b) = (input.dtype(), weight.dtype());
        return Err(Error::dtype(format!("[conv] takes real floating types, not {a} and {b}")));
    }
    let shapes = || format!("input {}, weight {}", show(input.shape()), show(weight.shape()));
    if input.ndim() != weight.ndim() || !(3..=5).contains(&input.ndim()) {
        let text = "input and weight need the same number of dimensions, 3 to 5";
        return Err(Error::shape(format!("[conv] {text}: {}", shapes())));
    }
    let axes = input.ndim() - 2;
    let padding = |p: &Spatial| -> Result<SmallVec<[isize; 3]>> {
        Ok(p.expand("padding", axes)?.into_iter().map(|n| n as isize).collect())
    };
    let op = Convolution {
        stride: settings.stride.positive("stride", axes)?,
        padding_lo: padding(&settings.padding_lo)?,
        padding_hi: padding(&settings.padding_hi)?,
        kernel_dilation: settings.kernel_dilation.positive("kernel dilation", axes)?,
        input_dilation: settings.input_dilation.positive("input dilation", axes)?,
        groups: settings.groups,
        flip: settings.flip,
    };
    Array::apply1(op, smallvec![astype(input, dtype)?, astype(weight, dtype)?])
}

/// Checks that there are `axes` spatial axes.
fn spatial_axes(op: &str, axes: usize, input: &Array, weight: &Array) -> Result<()> {
    if input.ndim() == axes + 2 && weight.ndim() == axes + 2 {
        return Ok(());
    }
    let (a, b, n) = (show(input.shape()), show(weight.shape()), axes + 2);
    Err(Error::shape(format!("[{op}] input and weight have {n} dimensions, not shapes {a} and {b}")))
}

macro_rules! convolutions {
    ($($axes:literal $name:ident $transposed:ident;)*) => {$(
        #[doc = concat!("Convolution with ", $axes, " spatial axes (`mx.", stringify!($name), "`): see [`conv_general`].")]
        /// Stride, padding and dilation of the kernel: one number, or one an axis.
        ///
        /// # Errors
        /// As [`conv_general`].
        pub fn $name(
            input: &Array,
            weight: &Array,
            stride: impl Into<Spatial>,
            padding: impl Into<Spatial>,
            dilation: impl Into<Spatial>,
            groups: usize,
        ) -> Result<Array> {
            spatial_axes(stringify!($name), $axes, input, weight)?;
            let padding = padding.into();
            let settings = ConvSettings {
                stride: stride.into(),
                padding_lo: padding.clone(),
                padding_hi: padding,
                kernel_dilation: dilation.into(),
                groups,
                ..ConvSettings::default()
            };
            conv_general(input, weight, &settings)
        }

        #[doc = concat!("Transposed convolution with ", $axes, " spatial axes (`mx.", stringify!($transposed), "`):")]
        /// `out[t * stride + k * dilation - padding] += in[t] * w[k]`, of length `(input - 1) * stride - 2 * padding +
        /// dilation * (kernel - 1) + 1 + output_padding`.
        ///
        /// # Errors
        /// As [`conv_general`].
        pub fn $transposed(
            input: &Array,
            weight: &Array,
            stride: impl Into<Spatial>,
            padding: impl Into<Spatial>,
            dilation: impl Into<Spatial>,
            output_padding: impl Into<Spatial>,
            groups: usize,
        ) -> Result<Array> {
            spatial_axes(stringify!($transposed), $axes, input, weight)?;
            let args = [stride.into(), padding.into(), dilation.into(), output_padding.into()];
            transposed(input, weight, args, groups)
        }
    )*};
}

convolutions! {
    1 conv1d conv_transpose1d;
    2 conv2d conv_transpose2d;
    3 conv3d conv_transpose3d;
}

fn transposed(
    input: &Array,
    weight: &Array,
    [stride, padding, dilation, extra]: [Spatial; 4],
    groups: usize,
) -> Result<Array> {
    let axes = input.ndim() - 2;
    let steps = dilation.positive("kernel dilation", axes)?;
    let (padding, extra) = (padding.expand("padding", axes)?, extra.expand("output padding", axes)?);
    let reach = |i: usize| weight.shape()[i + 1].saturating_sub(1).saturating_mul(steps[i]) as i64;
    let lo: SmallVec<[i64; 3]> = (0..axes).map(|i| reach(i).saturating_sub(padding[i])).collect();
    let hi = (0..axes).map(|i| lo[i].saturating_add(extra[i])).collect();
    let settings = ConvSettings {
        padding_lo: Spatial::Each(lo),
        padding_hi: Spatial::Each(hi),
        kernel_dilation: dilation,
        input_dilation: stride,
        groups,
        flip: true,
        ..ConvSettings::default()
    };
    conv_general(input, weight, &settings)
}

/// How much of a [`convolve`] is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ConvolveMode {
    /// Every overlap: the sum of the lengths, less one.
    #[default]
    Full,
    /// The middle, as long as the longer operand.
    Same,
    /// Whole overlaps only.
    Valid,
}

impl ConvolveMode {
    /// The mode called `full`, `same` or `valid`.
    ///
    /// # Errors
    /// Other names.
    pub fn from_name(name: &str) -> Result<ConvolveMode> {
        match name {
            "full" => Ok(ConvolveMode::Full),
            "same" => Ok(ConvolveMode::Same),
            "valid" => Ok(ConvolveMode::Valid),
            _ => Err(Error::value(format!("[convolve] mode is \"full\", \"same\" or \"valid\", not {name:?}"))),
        }
    }
}

/// Discrete convolution of two 1-D arrays (`mx.convolve`), the longer one being the signal.
///
/// # Errors
/// Operands that are not 1-D or are empty; dtypes that are not real floating.
pub fn convolve(a: &Array, v: &Array, mode: ConvolveMode) -> Result<Array> {
    if a.ndim() != 1 || v.ndim() != 1 || a.size() == 0 || v.size() == 0 {
        let (a, v) = (show(a.shape()), show(v.shape()));
        return Err(Error::shape(format!("[convolve] needs 1-D arrays that are not empty, not shapes {a} and {v}")));
    }
    let (signal, kernel) = if a.size() < v.size() { (v, a) } else { (a, v) };
    let reach = kernel.size() as i64 - 1;
    let (lo, hi) = match mode {
        ConvolveMode::Full => (reach, reach),
        ConvolveMode::Same => (reach - reach / 2, reach / 2),
        ConvolveMode::Valid => (0, 0),
    };
    let settings = ConvSettings {
        padding_lo: Spatial::All(lo),
        padding_hi: Spatial::All(hi),
        flip: true,
        ..ConvSettings::default()
    };
    let line = |x: &Array| reshape_to(x, smallvec![1, x.size(), 1]);
    let out = conv_general(&line(signal)?, &line(kernel)?, &settings)?;
    let len = out.size();
    reshape_to(&out, smallvec![len])
}

// ------------------------------------------------------------------ transforms

/// The length of `len` positions that were moved `dilation` apart.
fn spread(len: usize, dilation: usize) -> isize {
    if len == 0 { 0 } else { ((len - 1) * dilation + 1) as isize }
}

/// `a` with its axis `axis` seen as two, the outer one of size `outer`.
fn split(a: &Array, axis: usize, outer: usize) -> Result<Array> {
    let mut shape: Shape = a.shape().into();
    shape[axis] /= outer.max(1);
    shape.insert(axis, outer);
    reshape_to(a, shape)
}

/// `a` with axes `axis` and the one behind it as one.
fn merge(a: &Array, axis: usize) -> Result<Array> {
    let mut shape: Shape = a.shape().into();
    let inner = shape.remove(axis + 1);
    shape[axis] *= inner;
    reshape_to(a, shape)
}

/// `a` with its axes in another order, given as lists put after each other.
fn ordered(a: &Array, order: [&[usize]; 3]) -> Result<Array> {
    permute(a, order.iter().flat_map(|part| part.iter().copied()).collect())
}

impl Convolution {
    /// The gradient of the input: the cotangent, moved apart by the stride, under the reversed kernel.
    fn of_input(&self, g: &Array, input: &Array, weight: &Array) -> Result<Array> {
        let (n, groups) = (self.stride.len(), self.groups);
        let mut op = Convolution {
            stride: self.input_dilation.clone(),
            input_dilation: self.stride.clone(),
            flip: !self.flip,
            ..self.clone()
        };
        for i in 0..n {
            let (len, window) = (input.shape()[i + 1], spread(weight.shape()[i + 1], self.kernel_dilation[i]));
            op.padding_lo[i] = window - 1 - self.padding_lo[i];
            let reach = spread(len, self.input_dilation[i]) - 1 + window;
            op.padding_hi[i] = reach - op.padding_lo[i] - spread(g.shape()[i + 1], self.stride[i]);
        }
        // (groups * outputs, axes, channels) to (groups * channels, axes, outputs).
        let axes: SmallVec<[usize; 3]> = (2..n + 2).collect();
        let turned = ordered(&split(weight, 0, groups)?, [&[0, n + 2], &axes, &[1]])?;
        Array::apply1(op, smallvec![g.clone(), merge(&turned, 0)?])
    }

    /// The gradient of the weight: the input under the cotangent as a kernel, images in the place of channels.
    fn of_weight(&self, g: &Array, input: &Array, weight: &Array) -> Result<Array> {
        let (n, groups) = (self.stride.len(), self.groups);
        let mut op = Convolution {
            stride: self.kernel_dilation.clone(),
            kernel_dilation: self.stride.clone(),
            flip: false,
            ..self.clone()
        };
        for i in 0..n {
            let steps = spread(weight.shape()[i + 1], self.kernel_dilation[i]) - 1;
            let (len, window) = (input.shape()[i + 1], spread(g.shape()[i + 1], self.stride[i]));
            op.padding_hi[i] = steps + window - self.padding_lo[i] - spread(len, self.input_dilation[i]);
        }
        // (images, axes, groups * channels) to (channels, axes, groups * images).
        let axes: SmallVec<[usize; 3]> = (1..n + 1).collect();
        let lines = ordered(&split(input, n + 1, groups)?, [&[n + 2], &axes, &[n + 1, 0]])?;
        let kernel = ordered(g, [&[n + 1], &axes, &[0]])?;
        let out = Array::apply1(op, smallvec![merge(&lines, n + 1)?, kernel])?;
        let out = ordered(&out, [&[n + 1], &axes, &[0]])?;
        if !self.flip {
            return Ok(out);
        }
        flip(&out, axes.iter().map(|&i| i as i32).collect::<Vec<_>>())
    }
}

impl Transform for Convolution {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, input, weight) = (at.cotangent(0)?, &at.inputs[0], &at.inputs[1]);
        if [&g, input, weight].iter().any(|a| a.size() == 0) {
            return Ok(smallvec![Some(zeros_like(input, None)?), Some(zeros_like(weight, None)?)]);
        }
        let of_input = at.wanted[0].then(|| self.of_input(&g, input, weight)).transpose()?;
        let of_weight = at.wanted[1].then(|| self.of_weight(&g, input, weight)).transpose()?;
        Ok(smallvec![of_input, of_weight])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let (n, groups) = (self.stride.len(), self.groups);
        let (input, weight) = (&lanes[0].array, &lanes[1].array);
        if !lanes[1].mapped {
            // More images.
            let out = Array::apply1(self.clone(), smallvec![merge(input, 0)?, weight.clone()])?;
            return Ok(vec![split(&out, 0, size)?]);
        }
        let axes: SmallVec<[usize; 4]> = (2..n + 3).collect();
        if !lanes[0].mapped {
            // More outputs of every group.
            let by_group = ordered(&split(weight, 1, groups)?, [&[1, 0], &axes, &[n + 3]])?;
            let out = Array::apply1(self.clone(), smallvec![input.clone(), merge(&merge(&by_group, 0)?, 0)?])?;
            let out = split(&split(&out, n + 1, groups)?, n + 2, size)?;
            let images: SmallVec<[usize; 4]> = (0..n + 2).collect();
            return Ok(vec![merge(&ordered(&out, [&[n + 2], &images, &[n + 3]])?, n + 2)?]);
        }
        // A group each.
        let images: SmallVec<[usize; 4]> = (1..n + 2).collect();
        let side_by_side = merge(&ordered(input, [&images, &[0], &[n + 2]])?, n + 1)?;
        let op = Convolution { groups: groups * size, ..self.clone() };
        let out = split(&Array::apply1(op, smallvec![side_by_side, merge(weight, 0)?])?, n + 1, size)?;
        let images: SmallVec<[usize; 4]> = (0..n + 1).collect();
        Ok(vec![ordered(&out, [&[n + 1], &images, &[n + 2]])?])
    }
}
