//! A multi-layer perceptron learns digits that are drawn on the spot: seven segments, moved, dimmed and noisy.
use lapis::prelude::*;
use lapis::{Result, random};
use lapis_nn::activations::relu;
use lapis_nn::losses::{CrossEntropy, Reduction, cross_entropy};
use lapis_nn::optim::{Adam, Optimizer};
use lapis_nn::{Layer, Linear, Module, value_and_grad};

const SIDE: usize = 12;

#[derive(Module, Clone)]
struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    fn new(sizes: &[usize]) -> Result<Mlp> {
        Ok(Mlp { layers: sizes.windows(2).map(|w| Linear::new(w[0], w[1], true)).collect::<Result<_>>()? })
    }
}

impl Layer for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (last, inner) = self.layers.split_last().expect("at least one layer");
        let mut x = x.clone();
        for layer in inner {
            x = relu(&layer.forward(&x)?)?;
        }
        last.forward(&x)
    }
}

/// The ten digits as images of ink, 7 rows of 4: top, upper sides, middle, lower sides, bottom.
fn glyphs() -> Vec<[[f32; 4]; 7]> {
    const SEGMENTS: [u8; 10] =
        [0b1110111, 0b0010010, 0b1011101, 0b1011011, 0b0111010, 0b1101011, 0b1101111, 0b1010010, 0b1111111, 0b1111011];
    let draw = |bits: u8| {
        let on = |i: u8| f32::from(bits >> (6 - i) & 1);
        let mut g = [[0.0f32; 4]; 7];
        for (row, segment) in [(0, 0), (3, 3), (6, 6)] {
            g[row].iter_mut().for_each(|p| *p = on(segment));
        }
        for (rows, left, right) in [(0..4, 1, 2), (3..7, 4, 5)] {
            for row in rows {
                g[row][0] = g[row][0].max(on(left));
                g[row][3] = g[row][3].max(on(right));
            }
        }
        g
    };
    SEGMENTS.map(draw).to_vec()
}

/// Images `[n, SIDE * SIDE]` and their digits `[n]`.
fn digits(n: usize, seed: u64) -> Result<(Array, Array)> {
    let key = |k: u64| random::key(seed * 10 + k);
    let labels = random::randint(0, 10, &[n], Dtype::Int32, Some(&key(0)))?;
    let places = random::randint(0, 4, &[n, 2], Dtype::Int32, Some(&key(1)))?.to_vec::<i32>()?;
    let glyphs = glyphs();
    let mut ink = vec![0.0f32; n * SIDE * SIDE];
    for (i, &digit) in labels.to_vec::<i32>()?.iter().enumerate() {
        for (y, row) in glyphs[digit as usize].iter().enumerate() {
            for (x, &p) in row.iter().enumerate() {
                let (y, x) = (y + places[2 * i] as usize, x + places[2 * i + 1] as usize);
                ink[(i * SIDE + y) * SIDE + x] = p;
            }
        }
    }
    let light = random::uniform(0.5, 1.0, &[n, 1], Dtype::Float32, Some(&key(2)))?;
    let noise = random::normal(&[n, SIDE * SIDE], Dtype::Float32, None, None, Some(&key(3)))?;
    Ok((Array::from_vec(ink, &[n, SIDE * SIDE]) * light + noise * 0.1, labels))
}

fn accuracy(model: &Mlp, x: &Array, y: &Array) -> Result<f32> {
    let guess = ops::argmax(&model.forward(x)?, Some(-1), false)?;
    ops::mean(&ops::astype(&ops::equal(&guess, y)?, Dtype::Float32)?, (), false)?.item()
}

fn main() -> Result<()> {
    random::seed(0);
    let steps = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1000);
    let mut model = Mlp::new(&[SIDE * SIDE, 128, 64, 10])?;
    let mut adam = Adam::new(3e-3);
    let (test_x, test_y) = digits(1000, 1)?;
    println!(
        "{} parameters; {:.1} % right before training",
        model.num_parameters(),
        100.0 * accuracy(&model, &test_x, &test_y)?
    );
    for step in 1..=steps {
        let (x, y) = digits(128, 1 + step)?;
        let (loss, grads) = value_and_grad(&model, |m| {
            cross_entropy(&m.forward(&x)?, &y, CrossEntropy { reduction: Reduction::Mean, ..Default::default() })
        })?;
        adam.update(&mut model, &grads)?;
        eval(model.parameters().values().chain(adam.state().values()))?;
        if step % 200 == 0 {
            println!("step {step:4}: loss {:.4}", loss.item::<f32>()?);
        }
    }
    let right = accuracy(&model, &test_x, &test_y)?;
    println!("{:.1} % of 1000 new digits right", 100.0 * right);
    assert!(steps < 1000 || right > 0.9, "the digits were not learned");
    Ok(())
}
