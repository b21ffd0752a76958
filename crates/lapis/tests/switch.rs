//! The switch that turns compilation off: one for the process, so that no other test stands here.

use lapis::prelude::*;
use lapis::transforms::{compile, disable_compile, enable_compile};
use std::cell::Cell;

#[test]
fn disabled_compilation_calls_the_function_each_time() -> Result<()> {
    let calls = Cell::new(0);
    let f = compile(|x: &Array| {
        calls.set(calls.get() + 1);
        x + 1
    });
    let x = array([1, 2]);
    disable_compile();
    assert_eq!(f.call(&x)?.to_vec::<i32>()?, [2, 3]);
    assert_eq!(f.call(&x)?.to_vec::<i32>()?, [2, 3]);
    assert_eq!((calls.get(), f.traces()), (2, 0));
    enable_compile();
    f.call(&x)?;
    assert_eq!(f.call(&x)?.to_vec::<i32>()?, [2, 3]);
    assert_eq!((calls.get(), f.traces()), (3, 1));
    Ok(())
}
