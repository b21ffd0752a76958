//! What is held at once, and when a transform is over, by the counters of the process: its one test takes all in turn.

use lapis::prelude::*;
use lapis::transforms::{checkpoint, grad};
use lapis::{memory, transforms};
use std::cell::RefCell;

/// 4 MiB.
fn large() -> Result<Array> {
    let a = ops::full(&[1 << 20], 1.0, Some(Dtype::Float32))? + ops::arange(0.0, (1 << 20) as f64, 1.0, None)?;
    a.eval()?;
    Ok(a)
}

#[test]
fn memory_is_counted_held_and_limited() -> Result<()> {
    memory_of_a_long_chain_stays_small()?;
    values_read_inside_a_gradient_hold_nothing_afterwards()?;
    what_is_above_the_limit_is_an_error()
}

fn memory_of_a_long_chain_stays_small() -> Result<()> {
    let x = ops::zeros::<f32>(&[1 << 20])?;
    let mut z = &x + 1.0;
    for i in 0..200 {
        z = (z.reshape(&[1 << 10, 1 << 10]).t() + i as f32).reshape(&[-1]);
    }
    let before = memory::active();
    memory::reset_peak();
    z.eval()?;
    assert!(memory::peak() - before <= 6 * (4 << 20), "{}", memory::peak() - before);
    Ok(())
}

fn what_is_above_the_limit_is_an_error() -> Result<()> {
    let old = memory::set_limit(memory::active() + (1 << 20));
    let e = (ops::zeros::<f32>(&[1 << 22])? + array([1.0f32])).eval().unwrap_err();
    memory::set_limit(old);
    assert_eq!(e.kind(), lapis::ErrorKind::Memory);
    (ops::zeros::<f32>(&[1 << 22])? + array([1.0f32])).eval()
}

fn values_read_inside_a_gradient_hold_nothing_afterwards() -> Result<()> {
    let read = RefCell::new(Vec::new());
    let before = memory::active();
    for _ in 0..3 {
        let x = large()?;
        let loss = |x: &Array| -> Result<Array> {
            let y = ops::square(&ops::sin(x)?)?;
            let loss = ops::sum(&y, (), false)?;
            loss.eval()?;
            read.borrow_mut().push(loss.clone());
            Ok(loss)
        };
        grad(loss)(&x)?.eval()?;
        let saved = checkpoint(loss);
        grad(|x: &Array| saved(x))(&x)?.eval()?;
        transforms::vjp(loss, &x, &array(1.0f32))?.1.eval()?;
        // Values stay readable, and gradients of gradients know the way through what was read.
        let twice = grad(|x: &Array| Ok(grad(loss)(x)?.sum((), false)))(&x)?;
        let wanted = ops::multiply(2, &ops::cos(&ops::multiply(&x, 2)?)?)?;
        assert!(ops::allclose(&twice, &wanted, 1e-3, 1e-3, false)?.item::<bool>()?);
    }
    assert!(read.borrow().iter().all(|loss| loss.item::<f32>().is_ok_and(f32::is_finite)));
    let held = memory::active() - before;
    assert!(held < 1 << 20, "{} losses hold {held} bytes", read.borrow().len());
    Ok(())
}
