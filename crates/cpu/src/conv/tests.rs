//! Convolutions against the sum they are defined by, in f64.

use super::*;
use crate::{isa, pool};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    fn values(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.below(2001) as f64 / 1000.0 - 1.0).collect()
    }
}

fn encode(dtype: Dtype, values: &[f64]) -> Vec<u8> {
    let each = |x: f64| match dtype {
        Dtype::Float32 => (x as f32).to_ne_bytes().to_vec(),
        Dtype::Float16 => f16::from_f64(x).to_ne_bytes().to_vec(),
        Dtype::Bfloat16 => bf16::from_f64(x).to_ne_bytes().to_vec(),
        _ => x.to_ne_bytes().to_vec(),
    };
    values.iter().flat_map(|&x| each(x)).collect()
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let each = |b: &[u8]| match dtype {
        Dtype::Float32 => f32::from_ne_bytes(b.try_into().unwrap()) as f64,
        Dtype::Float16 => f16::from_ne_bytes(b.try_into().unwrap()).to_f64(),
        Dtype::Bfloat16 => bf16::from_ne_bytes(b.try_into().unwrap()).to_f64(),
        _ => f64::from_ne_bytes(b.try_into().unwrap()),
    };
    bytes.chunks_exact(dtype.size()).map(each).collect()
}

/// The definition: every output, every kernel position, every channel; and the sum of the magnitudes.
fn reference(c: &Conv, input: &[f64], weight: &[f64]) -> Vec<(f64, f64)> {
    let out = c.axes.map(|axis| axis.output());
    let (per_in, per_out) = (c.channels / c.groups, c.outputs / c.groups);
    let index = |at: [usize; 3], len: [usize; 3]| (at[0] * len[1] + at[1]) * len[2] + at[2];
    let cells = |len: [usize; 3]| {
        (0..len[0]).flat_map(move |a| (0..len[1]).flat_map(move |b| (0..len[2]).map(move |c| [a, b, c])))
    };
    let (inputs, kernel) = (c.axes.map(|axis| axis.input), c.axes.map(|axis| axis.kernel));
    let mut result = Vec::new();
    for image in 0..c.batch {
        for t in cells(out) {
            for o in 0..c.outputs {
                let (mut sum, mut size) = (0.0, 0.0);
                for k in cells(kernel) {
                    let mut at = [0; 3];
                    let inside = (0..3).all(|i| {
                        let axis = &c.axes[i];
                        let place = if c.flip { axis.kernel - 1 - k[i] } else { k[i] };
                        let x = (t[i] * axis.stride + place * axis.kernel_dilation) as isize - axis.padding.0;
                        let dilation = axis.input_dilation as isize;
                        at[i] = (x / dilation) as usize;
                        x >= 0 && x % dilation == 0 && x / dilation < axis.input as isize
                    });
                    for ch in 0..if inside { per_in } else { 0 } {
                        let pixel = image * inputs.iter().product::<usize>() + index(at, inputs);
                        let x = input[pixel * c.channels + o / per_out * per_in + ch];
                        let w = weight[(o * kernel.iter().product::<usize>() + index(k, kernel)) * per_in + ch];
                        sum += x * w;
                        size += (x * w).abs();
                    }
                }
                result.push((sum, size));
            }
        }
    }
    result
}

fn sizes(c: &Conv) -> (usize, usize, usize) {
    let product = |f: fn(&Axis) -> usize| c.axes.iter().map(f).product::<usize>();
    (
        c.batch * product(|axis| axis.input) * c.channels,
        c.outputs * product(|axis| axis.kernel) * c.channels / c.groups,
        c.batch * product(Axis::output) * c.outputs,
    )
}

fn run_on(isa: Isa, dtype: Dtype, c: &Conv, input: &[u8], weight: &[u8]) -> Vec<u8> {
    let mut out = encode(dtype, &vec![9.0; sizes(c).2]);
    // SAFETY: the buffers have the sizes of the convolution.
    unsafe { conv(isa, dtype, c, input.as_ptr(), weight.as_ptr(), out.as_mut_ptr()) };
    out
}

fn check(c: &Conv, random: &mut Random, isas: &[Isa], dtypes: &[Dtype]) {
    let (inputs, weights, _) = sizes(c);
    let (input, weight) = (random.values(inputs), random.values(weights));
    for &dtype in dtypes {
        let (input, weight) = (encode(dtype, &input), encode(dtype, &weight));
        let expected = reference(c, &decode(dtype, &input), &decode(dtype, &weight));
        // The last: half the distance of subnormals.
        let (sum_eps, out_eps, tiny) = match dtype {
            Dtype::Float64 => (f64::EPSILON, 0.0, 0.0),
            Dtype::Float16 => (f32::EPSILON as f64, 2f64.powi(-11), 2f64.powi(-25)),
            Dtype::Bfloat16 => (f32::EPSILON as f64, 2f64.powi(-8), 0.0),
            _ => (f32::EPSILON as f64, 0.0, 0.0),
        };
        let terms = (weights / c.outputs.max(1)) as f64;
        for &isa in isas {
            let got = decode(dtype, &run_on(isa, dtype, c, &input, &weight));
            assert_eq!(got.len(), expected.len());
            for (i, (x, (want, size))) in got.iter().zip(&expected).enumerate() {
                let bound = size * sum_eps * (terms + 4.0) + want.abs() * out_eps + tiny;
                assert!((x - want).abs() <= bound, "{} {dtype} output {i}: {x}, expected {want}: {c:?}", isa.name());
            }
        }
    }
}

const FLOATS: [Dtype; 4] = [Dtype::Float32, Dtype::Float64, Dtype::Float16, Dtype::Bfloat16];

fn axis(random: &mut Random, longest: usize) -> Axis {
    let (kernel_dilation, input_dilation) = (1 + random.below(3) / 2, [1, 1, 2, 3][random.below(4)]);
    let kernel = 1 + random.below(4);
    let pads = [-1, 0, 0, 1, 2];
    Axis {
        input: 1 + random.below(longest),
        kernel,
        stride: 1 + random.below(3),
        padding: (pads[random.below(5)], pads[random.below(5)]),
        kernel_dilation,
        input_dilation,
    }
}

#[test]
fn all_geometries_are_right() {
    let random = &mut Random(1);
    for round in 0..150 {
        let mut axes = [Axis::UNIT; 3];
        for i in 2 - round % 3..3 {
            axes[i] = axis(random, if round % 3 == 2 { 5 } else { 9 });
        }
        let groups = [1, 1, 2, 3][random.below(4)];
        let (channels, outputs) = (groups * (1 + random.below(5)), groups * (1 + random.below(5)));
        let c = Conv { batch: 1 + random.below(3), axes, channels, outputs, groups, flip: random.below(3) == 0 };
        check(&c, random, &isa::available(), &[FLOATS[round % 4]]);
    }
}

#[test]
fn many_channels_are_right() {
    let random = &mut Random(2);
    let side = |input, kernel, stride, pad| Axis { input, kernel, stride, padding: (pad, pad), ..Axis::UNIT };
    for (channels, outputs, groups) in [(40, 70, 1), (64, 33, 1), (300, 17, 1), (96, 64, 2), (33, 40, 1)] {
        for axes in [
            [Axis::UNIT, side(9, 3, 1, 1), side(11, 3, 1, 1)],
            [Axis::UNIT, side(8, 3, 2, 1), side(8, 2, 2, 0)],
            [Axis::UNIT, Axis::UNIT, side(60, 4, 1, 3)],
            [Axis::UNIT, side(5, 3, 1, 2), Axis { input_dilation: 2, ..side(7, 3, 1, 2) }],
            [Axis::UNIT, Axis::UNIT, side(3, 3, 1, 0)],
        ] {
            let c = Conv { batch: 2, axes, channels, outputs, groups, flip: groups == 2 };
            check(&c, random, &isa::available(), &FLOATS);
        }
    }
}

#[test]
fn a_large_image_is_right() {
    let random = &mut Random(3);
    let side = Axis { input: 60, kernel: 3, padding: (1, 1), ..Axis::UNIT };
    let c = Conv { batch: 1, axes: [Axis::UNIT, side, side], channels: 32, outputs: 96, groups: 1, flip: false };
    check(&c, random, &isa::available()[..1], &[Dtype::Float32, Dtype::Bfloat16]);
}

#[test]
fn a_filter_for_each_channel_is_right() {
    let random = &mut Random(4);
    for (channels, multiplier) in [(2, 1), (19, 1), (300, 1), (64, 2), (5, 3)] {
        for input_dilation in [1, 2] {
            let side = Axis { input: 8, kernel: 3, padding: (1, 2), stride: 1, kernel_dilation: 1, input_dilation };
            let causal = Axis { input: 20, kernel: 4, padding: (3, 0), ..Axis::UNIT };
            for axes in [[Axis::UNIT, side, side], [Axis::UNIT, Axis::UNIT, causal]] {
                let outputs = channels * multiplier;
                let c = Conv { batch: 2, axes, channels, outputs, groups: channels, flip: multiplier == 2 };
                check(&c, random, &isa::available(), &FLOATS);
            }
        }
    }
}

#[test]
fn nothing_is_enough() {
    let random = &mut Random(5);
    let side = |input, kernel| Axis { input, kernel, padding: (0, 1), ..Axis::UNIT };
    for (batch, channels, outputs, input, kernel) in
        [(0, 3, 4, 5, 2), (2, 0, 4, 5, 2), (2, 3, 0, 5, 2), (1, 3, 4, 0, 1), (1, 3, 4, 2, 9), (2, 3, 4, 0, 2)]
    {
        let axes = [Axis::UNIT, Axis::UNIT, side(input, kernel)];
        check(&Conv { batch, axes, channels, outputs, groups: 1, flip: false }, random, &isa::available(), &FLOATS);
    }
}

#[test]
fn images_and_threads_change_nothing() {
    let random = &mut Random(6);
    let side = Axis { input: 14, kernel: 3, padding: (1, 1), ..Axis::UNIT };
    for groups in [1, 48] {
        let axes = [Axis::UNIT, side, side];
        let many = Conv { batch: 8, axes, channels: 48, outputs: 48, groups, flip: false };
        let one = Conv { batch: 1, ..many.clone() };
        let (inputs, weights, _) = sizes(&many);
        let (input, weight) =
            (encode(Dtype::Bfloat16, &random.values(inputs)), encode(Dtype::Bfloat16, &random.values(weights)));
        let isa = isa::available()[0];
        let all = run_on(isa, Dtype::Bfloat16, &many, &input, &weight);
        let first = run_on(isa, Dtype::Bfloat16, &one, &input[..input.len() / 8], &weight);
        assert_eq!(first[..], all[..first.len()]);
        for threads in [1, 2, 7] {
            let again = pool::with_threads(threads, || run_on(isa, Dtype::Bfloat16, &many, &input, &weight));
            assert!(again == all, "{threads} threads");
        }
    }
}
