//! Lapis in a minute: arrays are lazy, chains fuse, reading a value computes it.
use lapis::prelude::*;

fn main() -> Result<()> {
    // Nothing is computed here: `c` remembers what it is the sum of.
    let a = array([1.0f32, 2.0, 3.0]);
    let b = array([10.0f32, 20.0, 30.0]);
    let c = &a + &b;
    println!("before reading: evaluated = {}", c.is_evaluated());
    println!("{c}");
    Ok(())
}
