//! A convolutional autoencoder presses pictures of discs into 8 numbers and draws them again.
use lapis::prelude::*;
use lapis::{Result, random};
use lapis_nn::activations::relu;
use lapis_nn::losses::{Reduction, mse_loss};
use lapis_nn::optim::{Adam, Optimizer};
use lapis_nn::{Conv2d, ConvOptions, ConvTranspose2d, ConvTransposeOptions, Layer, Linear, Module, value_and_grad};

const SIDE: usize = 16;
const CODE: usize = 8;

#[derive(Module, Clone)]
struct Autoencoder {
    shrink: Vec<Conv2d>,
    press: Linear,
    open: Linear,
    grow: Vec<ConvTranspose2d>,
}

impl Autoencoder {
    fn new() -> Result<Autoencoder> {
        let half = ConvOptions { stride: [2; 2], padding: [1; 2], ..Default::default() };
        let twice = ConvTransposeOptions { stride: [2; 2], padding: [1; 2], ..Default::default() };
        Ok(Autoencoder {
            shrink: vec![Conv2d::with(1, 8, [4; 2], half)?, Conv2d::with(8, 16, [4; 2], half)?],
            press: Linear::new(16 * 16, CODE, true)?,
            open: Linear::new(CODE, 16 * 16, true)?,
            grow: vec![ConvTranspose2d::with(16, 8, [4; 2], twice)?, ConvTranspose2d::with(8, 1, [4; 2], twice)?],
        })
    }

    fn encode(&self, x: &Array) -> Result<Array> {
        let mut x = x.clone();
        for layer in &self.shrink {
            x = relu(&layer.forward(&x)?)?;
        }
        self.press.forward(&ops::flatten(&x, 1, -1)?)
    }

    fn decode(&self, code: &Array) -> Result<Array> {
        let x = relu(&self.open.forward(code)?)?;
        let x = ops::reshape(&x, &[-1, 4, 4, 16])?;
        let x = relu(&self.grow[0].forward(&x)?)?;
        self.grow[1].forward(&x)
    }
}

/// Pictures `[n, SIDE, SIDE, 1]` of one disc each, with soft edges.
fn discs(n: usize) -> Result<Array> {
    let draw = |low: f64, high: f64| random::uniform(low, high, &[n, 1, 1, 1], Dtype::Float32, None);
    let (x, y, radius) = (draw(4.0, 12.0)?, draw(4.0, 12.0)?, draw(2.0, 4.0)?);
    let axis = ops::arange(0.0, SIDE as f64, 1.0, Some(Dtype::Float32))?;
    let (across, down) = (axis.reshape(&[1, 1, SIDE, 1]), axis.reshape(&[1, SIDE, 1, 1]));
    let distance = ((across - x).square() + (down - y).square()).sqrt();
    ops::sigmoid(&((radius - distance) * 3.0))
}

/// A picture as text, darker letters for more light.
fn show(picture: &Array) -> Result<Vec<String>> {
    let light = picture.to_vec::<f32>()?;
    let letter = |v: &f32| b" .:-=+*#%@"[(v.clamp(0.0, 0.999) * 10.0) as usize] as char;
    Ok(light.chunks(SIDE).map(|row| row.iter().map(letter).collect()).collect())
}

fn main() -> Result<()> {
    random::seed(0);
    let steps: usize = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(800);
    let mut model = Autoencoder::new()?;
    let mut adam = Adam::new(2e-3).bias_correction(true);
    let mut last = f32::NAN;
    for step in 1..=steps {
        let x = discs(32)?;
        let (loss, grads) = value_and_grad(&model, |m| mse_loss(&m.decode(&m.encode(&x)?)?, &x, Reduction::Mean))?;
        adam.update(&mut model, &grads)?;
        eval(model.parameters().values().chain(adam.state().values()))?;
        if step % 200 == 0 || step == steps {
            last = loss.item()?;
            println!("step {step:4}: mean squared error {last:.5}");
        }
    }
    let x = discs(1)?;
    let code = model.encode(&x)?;
    println!("\n{} pixels as {code}\n", SIDE * SIDE);
    for (a, b) in show(&x)?.iter().zip(show(&model.decode(&code)?)?) {
        println!("{a}   {b}");
    }
    assert!(steps < 800 || last < 0.01, "the discs were not learned");
    Ok(())
}
