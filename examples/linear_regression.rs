//! Linear regression by gradient descent: what `value_and_grad` is for, in one screen.
use lapis::prelude::*;
use lapis::random;
use lapis::transforms::value_and_grad;

fn main() -> Result<()> {
    // A hidden line in 8 dimensions, seen through noise.
    let (examples, features) = (512, 8);
    let draw = |shape: &[usize], seed| random::normal(shape, Dtype::Float32, None, None, Some(&random::key(seed)));
    let hidden = draw(&[features], 0)?;
    let x = draw(&[examples, features], 1)?;
    let y = x.matmul(&hidden) + draw(&[examples], 2)? * 0.01 + 3.0;

    // The loss is a function of a tree of arrays; so is its gradient.
    let loss = |(w, b): &(Array, Array)| (x.matmul(w) + b - &y).square().mean((), false);
    let step = value_and_grad(loss);

    let (mut w, mut b) = (ops::zeros::<f32>(&[features])?, ops::zeros::<f32>(&[])?);
    for i in 0..=100 {
        let (loss, (dw, db)) = step(&(w.clone(), b.clone()))?;
        if i % 20 == 0 {
            println!("step {i:3}: loss {:.5}", loss.item::<f32>()?);
        }
        (w, b) = (w - dw * 0.1, b - db * 0.1);
        // Computes both and drops the graph behind them.
        eval([&w, &b])?;
    }
    let error = (&w - &hidden).square().sum((), false).sqrt().item::<f32>()?;
    println!("distance from the hidden weights: {error:.4}; bias {:.3}, hidden 3", b.item::<f32>()?);
    assert!(error < 0.01, "the line was not found");
    Ok(())
}
