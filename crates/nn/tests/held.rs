//! What a step of an optimiser holds, by the counters of the process: no other test stands here.

use lapis::{Dtype, eval, memory, ops};
use lapis_nn::Params;
use lapis_nn::optim::{Adam, Optimizer};

/// State costs nothing before the first step; then a step needs no memory beside parameters, gradients and state.
#[test]
fn optim_steps_work_in_place() {
    const BYTES: usize = 16 << 20;
    const SLACK: usize = 1 << 20;
    let full = |x: f64| Params::from([("w".to_string(), ops::full(&[BYTES / 4], x, Some(Dtype::Float32)).unwrap())]);
    let (mut w, g) = (full(1.0), full(0.5));
    eval(w.values().chain(g.values())).unwrap();
    let mut adam = Adam::new(0.1);
    adam.init(&w).unwrap();
    let before = memory::active();
    eval(adam.state().values()).unwrap();
    assert!(memory::active() < before + SLACK);
    for t in 0..4 {
        w = adam.apply(&g, &w).unwrap();
        memory::reset_peak();
        eval(w.values().chain(adam.state().values())).unwrap();
        // One number repeated at first, w and the gradient are no more than that in memory; then w, m and v are whole.
        assert!(memory::peak() <= before + 3 * BYTES + SLACK, "step {t}");
    }
}
