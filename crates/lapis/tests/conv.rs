//! Convolutions against plain loops. Values are multiples of 1/8, so that small sums are exact in f32.

use lapis::dtype::{bf16, f16};
use lapis::ops::{ConvSettings, ConvolveMode, Spatial};
use lapis::prelude::*;
use lapis::{ErrorKind, Result};

fn random(shape: &[usize], seed: usize) -> Array {
    let mut state = seed as u64 * 7919 + 12345;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) % 33) as f32 / 8.0 - 2.0
    };
    Array::from_vec((0..shape.iter().product()).map(|_| next()).collect(), shape)
}

fn floats(a: &Array) -> Vec<f64> {
    a.astype(Dtype::Float64).to_vec().unwrap()
}

/// Plain numbers for every axis, three of them.
#[derive(Clone, Copy)]
struct Plain {
    stride: [usize; 3],
    lo: [i64; 3],
    hi: [i64; 3],
    dilation: [usize; 3],
    input_dilation: [usize; 3],
    groups: usize,
    flip: bool,
}

const PLAIN: Plain =
    Plain { stride: [1; 3], lo: [0; 3], hi: [0; 3], dilation: [1; 3], input_dilation: [1; 3], groups: 1, flip: false };

impl Plain {
    fn settings(&self, axes: usize) -> ConvSettings {
        let cut = |x: [usize; 3]| Spatial::from(&x[..axes]);
        ConvSettings {
            stride: cut(self.stride),
            padding_lo: Spatial::from(&self.lo[..axes]),
            padding_hi: Spatial::from(&self.hi[..axes]),
            kernel_dilation: cut(self.dilation),
            input_dilation: cut(self.input_dilation),
            groups: self.groups,
            flip: self.flip,
        }
    }

    /// The definition, for any number of axes up to three: shape and values.
    fn reference(&self, input: &Array, weight: &Array) -> (Vec<usize>, Vec<f64>) {
        let axes = input.ndim() - 2;
        // Axes that are not there have no settings either.
        let p = Plain {
            stride: std::array::from_fn(|i| if i < axes { self.stride[i] } else { 1 }),
            lo: std::array::from_fn(|i| if i < axes { self.lo[i] } else { 0 }),
            hi: std::array::from_fn(|i| if i < axes { self.hi[i] } else { 0 }),
            input_dilation: std::array::from_fn(|i| if i < axes { self.input_dilation[i] } else { 1 }),
            ..*self
        };
        let three = |s: &[usize]| -> [usize; 3] { std::array::from_fn(|i| if i < axes { s[i + 1] } else { 1 }) };
        let (n, k) = (three(input.shape()), three(weight.shape()));
        let (batch, channels, outputs) = (input.dim(0), input.dim(-1), weight.dim(0));
        let each = channels / p.groups;
        let len: [usize; 3] = std::array::from_fn(|i| {
            let room = (n[i] as i64 - 1) * p.input_dilation[i] as i64 + 1 + p.lo[i] + p.hi[i];
            ((room - (k[i] as i64 - 1) * p.dilation[i] as i64 - 1) / p.stride[i] as i64 + 1) as usize
        });
        let (x, w) = (floats(input), floats(weight));
        // Where tap j of output t reads along axis i.
        let source = |i: usize, t: usize, j: usize| -> Option<usize> {
            let j = if p.flip { k[i] - 1 - j } else { j };
            let at = (t * p.stride[i] + j * p.dilation[i]) as i64 - p.lo[i];
            let d = p.input_dilation[i] as i64;
            (at >= 0 && at % d == 0 && at / d < n[i] as i64).then_some((at / d) as usize)
        };
        let mut out = Vec::new();
        for b in 0..batch {
            for t in 0..len[0] * len[1] * len[2] {
                let t = [t / (len[1] * len[2]), t / len[2] % len[1], t % len[2]];
                for o in 0..outputs {
                    let first = o / (outputs / p.groups) * each;
                    let mut sum = 0.0;
                    for j in 0..k[0] * k[1] * k[2] {
                        let place = [j / (k[1] * k[2]), j / k[2] % k[1], j % k[2]];
                        let (s0, s1, s2) =
                            (source(0, t[0], place[0]), source(1, t[1], place[1]), source(2, t[2], place[2]));
                        let (Some(p), Some(q), Some(r)) = (s0, s1, s2) else { continue };
                        for c in 0..each {
                            let value = x[(((b * n[0] + p) * n[1] + q) * n[2] + r) * channels + first + c];
                            sum += value * w[(o * k[0] * k[1] * k[2] + j) * each + c];
                        }
                    }
                    out.push(sum);
                }
            }
        }
        let shape = [&[batch], &len[..axes], &[outputs]].concat();
        (shape, out)
    }

    fn check(&self, input: &Array, weight: &Array) {
        let got = ops::conv_general(input, weight, &self.settings(input.ndim() - 2)).unwrap();
        let (shape, want) = self.reference(input, weight);
        assert_eq!(got.shape(), shape);
        let got = floats(&got);
        assert!(got == want, "{:?}", got.iter().zip(&want).position(|(g, w)| g != w));
    }
}

#[track_caller]
fn assert_fails(result: Result<Array>, kind: ErrorKind, text: &str) {
    let error = result.expect_err("an error");
    assert!(error.kind() == kind && error.message().contains(text), "{error:?}");
}

#[test]
fn plain_convolutions_of_every_rank() {
    PLAIN.check(&random(&[2, 10, 3], 1), &random(&[5, 3, 3], 2));
    PLAIN.check(&random(&[2, 7, 8, 3], 1), &random(&[5, 3, 2, 3], 2));
    PLAIN.check(&random(&[2, 5, 6, 4, 3], 1), &random(&[4, 2, 3, 2, 3], 2));
    PLAIN.check(&random(&[1, 20, 20, 16], 1), &random(&[40, 3, 3, 16], 2));
    PLAIN.check(&random(&[3, 9, 9, 8], 1), &random(&[7, 1, 1, 8], 2));
}

#[test]
fn strides_paddings_dilations_and_flips() {
    for flip in [false, true] {
        let p = Plain { stride: [2, 3, 1], lo: [1, 0, 2], hi: [2, 1, 0], dilation: [2, 1, 1], flip, ..PLAIN };
        p.check(&random(&[2, 11, 3], 3), &random(&[4, 3, 3], 4));
        p.check(&random(&[2, 11, 9, 3], 3), &random(&[4, 3, 2, 3], 4));
        p.check(&random(&[1, 8, 7, 6, 2], 3), &random(&[3, 2, 3, 2, 2], 4));
        let spread = Plain { input_dilation: [2, 3, 2], ..p };
        spread.check(&random(&[2, 7, 3], 5), &random(&[4, 3, 3], 6));
        spread.check(&random(&[2, 5, 6, 3], 5), &random(&[4, 3, 2, 3], 6));
        spread.check(&random(&[1, 4, 5, 3, 2], 5), &random(&[3, 2, 3, 2, 2], 6));
    }
    let cropped = Plain { lo: [-1; 3], hi: [-2; 3], ..PLAIN };
    cropped.check(&random(&[2, 9, 3], 7), &random(&[4, 3, 3], 8));
}

#[test]
fn groups_and_depthwise() {
    let p = Plain { groups: 2, lo: [1; 3], hi: [1; 3], ..PLAIN };
    p.check(&random(&[2, 8, 4], 1), &random(&[6, 3, 2], 2));
    p.check(&random(&[2, 8, 6, 4], 1), &random(&[6, 3, 3, 2], 2));
    p.check(&random(&[1, 4, 5, 6, 4], 1), &random(&[2, 3, 3, 3, 2], 2));
    for stride in [1, 2] {
        let p = Plain { groups: 20, lo: [3; 3], stride: [stride; 3], ..PLAIN };
        p.check(&random(&[2, 9, 20], 3), &random(&[20, 4, 1], 4));
        p.check(&random(&[2, 9, 20], 3), &random(&[40, 4, 1], 4));
        p.check(&random(&[2, 5, 6, 20], 3), &random(&[20, 3, 3, 1], 4));
    }
}

#[test]
fn functions_of_every_rank_pass_their_settings_on() {
    let (x, w) = (random(&[2, 9, 8, 4], 1), random(&[6, 3, 2, 2], 2));
    let got = ops::conv2d(&x, &w, [2, 1], [1, 0], [1, 2], 2).unwrap();
    let p = Plain { stride: [2, 1, 1], lo: [1, 0, 0], hi: [1, 0, 0], dilation: [1, 2, 1], groups: 2, ..PLAIN };
    assert_eq!(floats(&got), p.reference(&x, &w).1);
    let (x, w) = (random(&[2, 9, 4], 1), random(&[6, 3, 4], 2));
    assert_eq!(
        floats(&ops::conv1d(&x, &w, 2, 1, 1, 1).unwrap()),
        Plain { stride: [2; 3], lo: [1; 3], hi: [1; 3], ..PLAIN }.reference(&x, &w).1
    );
    let (x, w) = (random(&[1, 4, 4, 4, 2], 1), random(&[3, 2, 2, 2, 2], 2));
    assert_eq!(floats(&ops::conv3d(&x, &w, 1, 0, 1, 1).unwrap()), PLAIN.reference(&x, &w).1);
}

/// By its own definition: every input adds its kernel to the output.
#[test]
fn transposed_convolutions_scatter() {
    let (x, w) = (random(&[2, 5, 4], 1), random(&[6, 3, 2], 2));
    for (stride, padding, dilation, extra) in [(1, 0, 1, 0), (2, 1, 1, 1), (3, 0, 2, 0), (2, 3, 2, 1)] {
        let got = ops::conv_transpose1d(&x, &w, stride, padding, dilation, extra, 2).unwrap();
        let len = 4 * stride as i64 - 2 * padding + dilation as i64 * 2 + 1 + extra;
        assert_eq!(got.shape(), [2, len as usize, 6]);
        let (data, kernel) = (floats(&x), floats(&w));
        let mut want = vec![0.0; 2 * len as usize * 6];
        for (b, t, o, k) in
            (0..2).flat_map(|b| (0..5).flat_map(move |t| (0..6).flat_map(move |o| (0..3).map(move |k| (b, t, o, k)))))
        {
            let at = t as i64 * stride as i64 + k as i64 * dilation as i64 - padding;
            if (0..len).contains(&at) {
                let group = o / 3 * 2;
                let sum: f64 = (0..2).map(|c| data[(b * 5 + t) * 4 + group + c] * kernel[(o * 3 + k) * 2 + c]).sum();
                want[(b * len as usize + at as usize) * 6 + o] += sum;
            }
        }
        assert_eq!(floats(&got), want, "stride {stride}, padding {padding}, dilation {dilation}");
    }
    let two =
        ops::conv_transpose2d(&random(&[1, 3, 4, 2], 3), &random(&[3, 3, 2, 2], 4), [2, 1], 0, 1, [1, 0], 1).unwrap();
    assert_eq!(two.shape(), [1, 8, 5, 3]);
    let three =
        ops::conv_transpose3d(&random(&[1, 3, 4, 2, 2], 3), &random(&[3, 3, 2, 2, 2], 4), 2, 0, 1, 0, 1).unwrap();
    assert_eq!(three.shape(), [1, 7, 8, 4, 3]);
}

#[test]
fn half_precision_sums_in_f32_and_views_are_read() {
    let (x, w) = (random(&[2, 12, 5], 1), random(&[4, 3, 5], 2));
    let (_, exact) = PLAIN.reference(&x, &w);
    let half = ops::conv1d(&x.astype(Dtype::Float16), &w.astype(Dtype::Float16), 1, 0, 1, 1).unwrap();
    assert_eq!(half.to_vec::<f16>().unwrap(), exact.iter().map(|&v| f16::from_f64(v)).collect::<Vec<_>>());
    let half = ops::conv1d(&x.astype(Dtype::Bfloat16), &w.astype(Dtype::Bfloat16), 1, 0, 1, 1).unwrap();
    assert_eq!(half.to_vec::<bf16>().unwrap(), exact.iter().map(|&v| bf16::from_f64(v)).collect::<Vec<_>>());
    let double = ops::conv1d(&x.astype(Dtype::Float64), &w, 1, 0, 1, 1).unwrap();
    assert_eq!(double.to_vec::<f64>().unwrap(), exact);
    assert_eq!(ops::conv1d(&x.astype(Dtype::Int32), &w, 1, 0, 1, 1).unwrap().dtype(), Dtype::Float32);
    // Channels first in memory.
    let view = ops::contiguous(&x.swapaxes(1, 2), false).unwrap().swapaxes(1, 2);
    let turned =
        ops::slice(&ops::slice(&w, &[(None, None, -1)]).unwrap(), &[(None, None, 1), (None, None, -1)]).unwrap();
    assert_eq!(floats(&ops::conv1d(&view, &turned, 1, 0, 1, 1).unwrap()), PLAIN.reference(&x, &turned).1);
    assert_eq!(ops::conv1d(&random(&[0, 9, 3], 1), &random(&[4, 3, 3], 1), 1, 0, 1, 1).unwrap().shape(), [0, 7, 4]);
}

#[test]
fn convolve_reverses_the_shorter_operand() {
    let (a, v) = (array([1.0f32, 2.0, 3.0, 4.0, 5.0]), array([1.0f32, 10.0, 100.0, 1000.0]));
    let of = |a: &Array, v: &Array, mode| ops::convolve(a, v, mode).unwrap().to_vec::<f32>().unwrap();
    // numpy.convolve
    let full = [1.0, 12.0, 123.0, 1234.0, 2345.0, 3450.0, 4500.0, 5000.0];
    assert_eq!(of(&a, &v, ConvolveMode::Full), full);
    assert_eq!(of(&v, &a, ConvolveMode::Full), full);
    assert_eq!(of(&a, &v, ConvolveMode::Same), [12.0, 123.0, 1234.0, 2345.0, 3450.0]);
    assert_eq!(of(&a, &v, ConvolveMode::Valid), [1234.0, 2345.0]);
    assert_eq!(of(&array([1.0f32, 2.0, 3.0]), &v, ConvolveMode::Same), [12.0, 123.0, 1230.0, 2300.0]);
    assert_fails(ops::convolve(&a, &ops::zeros::<f32>(&[0]).unwrap(), ConvolveMode::Full), ErrorKind::Shape, "(0,)");
    assert_fails(ops::convolve(&a, &a.reshape(&[5, 1]), ConvolveMode::Full), ErrorKind::Shape, "(5,1)");
    assert_fails(ops::convolve(&array([1, 2]), &array([1]), ConvolveMode::Full), ErrorKind::Dtype, "int32");
    assert!(ConvolveMode::from_name("circular").unwrap_err().message().contains("circular"));
}

#[test]
fn arguments_are_checked() {
    let (x, w) = (random(&[1, 7, 6, 3], 1), random(&[4, 3, 2, 3], 2));
    assert_fails(ops::conv1d(&x, &w, 1, 0, 1, 1), ErrorKind::Shape, "(1,7,6,3)");
    assert_fails(ops::conv2d(&x, &random(&[4, 3, 2, 2], 1), 1, 0, 1, 1), ErrorKind::Shape, "(4,3,2,2)");
    assert_fails(ops::conv2d(&x, &random(&[4, 9, 2, 3], 1), 1, 0, 1, 1), ErrorKind::Shape, "does not fit");
    assert_fails(ops::conv2d(&x.astype(Dtype::Int32), &w.astype(Dtype::Int32), 1, 0, 1, 1), ErrorKind::Dtype, "int32");
    assert_fails(ops::conv2d(&x, &w, 1, 0, 1, 2), ErrorKind::Value, "2 groups");
    assert_fails(ops::conv2d(&x, &w, 0, 0, 1, 1), ErrorKind::Value, "stride must be at least 1");
    assert_fails(ops::conv2d(&x, &w, 1, 0, [1, 0], 1), ErrorKind::Value, "dilation");
    assert_fails(ops::conv2d(&x, &w, [1, 1, 1], 0, 1, 1), ErrorKind::Value, "3 numbers for 2");
    assert_fails(ops::conv2d(&x, &w, 1, -9, 1, 1), ErrorKind::Shape, "does not fit");
}
