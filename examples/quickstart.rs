//! lapis in a minute: arrays are lazy, chains fuse, weights can be quantized.
use lapis::prelude::*;
use lapis::{memory, random};

fn main() -> Result<()> {
    // Nothing is computed here: `c` remembers what it is the sum of. Printing reads it, so then it is.
    let a = array([1.0f32, 2.0, 3.0]);
    let b = array([10.0f32, 20.0, 30.0]);
    let c = &a + &b;
    println!("evaluated before printing: {}", c.is_evaluated());
    println!("{c}");
    println!("evaluated after printing: {}\n", c.is_evaluated());

    // Three steps, one pass over memory: no array is made for what lies between them.
    let n = 4 << 20;
    let g = random::normal(&[n], Dtype::Float32, None, None, Some(&random::key(0)))?;
    let u = random::normal(&[n], Dtype::Float32, None, None, Some(&random::key(1)))?;
    eval([&g, &u])?;
    memory::reset_peak();
    let before = memory::active();
    let y = (&g * g.sigmoid()) * &u + 1.0;
    println!("silu(g) * u + 1: {y}");
    println!("memory beside the inputs: {} MiB, the result itself\n", (memory::peak() - before) >> 20);

    // Weights in 4 bits a number, one scale and bias for 64 of them; the product reads them as they are.
    let w = random::normal(&[1024, 1024], Dtype::Float32, None, None, Some(&random::key(2)))?;
    let x = random::normal(&[1, 1024], Dtype::Float32, None, None, Some(&random::key(3)))?;
    let q = ops::quantize(&w, ops::Format::affine(4, 64)?, None)?;
    let exact = x.matmul(&w.t());
    let close = ops::quantized_matmul(&x, &q, true)?;
    let error = ops::abs(&(&exact - &close))?.mean((), false) / ops::abs(&exact)?.mean((), false);
    let bytes = q.packed.nbytes() + q.scales.nbytes() * 2;
    println!("{} KiB of weights in {} KiB; mean error of the product {error}", w.nbytes() >> 10, bytes >> 10);
    Ok(())
}
