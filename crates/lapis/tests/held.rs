//! What is held when a transform is over, by the counters of the process: no other test stands here.

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
