//! What the transforms promise, on small functions whose derivatives are known.

use lapis::prelude::*;
use lapis::random;
use lapis::transforms::{
    Lane, checkpoint, compile, compile_with_state, custom_function, grad, jvp, value_and_grad, vjp, vmap, vmap_axes,
};
use std::cell::Cell;
use std::collections::BTreeMap;

fn scalar(x: f32) -> Array {
    array(x)
}

#[test]
fn the_gradient_of_a_square_is_twice_the_argument() -> Result<()> {
    let g = grad(|x: &Array| x.square().sum((), false))(&array([1.0f32, -2.0, 3.0]))?;
    assert_eq!(g.to_vec::<f32>()?, [2.0, -4.0, 6.0]);
    Ok(())
}

#[test]
fn gradients_of_gradients() -> Result<()> {
    let f = |x: &Array| x * x * x;
    let third = grad(grad_of(grad_of(f)));
    assert_eq!(third(&scalar(2.0))?.item::<f32>()?, 6.0);
    fn grad_of<F: Fn(&Array) -> R, R: lapis::transforms::Outcome>(f: F) -> impl Fn(&Array) -> Result<Array> {
        grad(f)
    }
    let sin = |x: &Array| ops::sin(x);
    let fourth = grad(grad_of(grad_of(grad_of(sin))));
    assert!((fourth(&scalar(0.5))?.item::<f32>()? - 0.5f32.sin()).abs() < 1e-6);
    Ok(())
}

#[test]
fn trees_of_arguments_and_results() -> Result<()> {
    let parameters = BTreeMap::from([("w", array([[1.0f32, 2.0], [3.0, 4.0]])), ("b", array([0.5f32, -0.5]))]);
    let x = array([1.0f32, 1.0]);
    let f = value_and_grad(|p: &BTreeMap<&str, Array>| -> Result<(Array, Array)> {
        let y = ops::matmul(&x, &p["w"])? + &p["b"];
        Ok((y.sum((), false), y))
    });
    let ((loss, y), grads) = f(&parameters)?;
    assert_eq!(loss.item::<f32>()?, 10.0);
    assert_eq!(y.to_vec::<f32>()?, [4.5, 5.5]);
    assert_eq!(grads["w"].to_vec::<f32>()?, [1.0; 4]);
    assert_eq!(grads["b"].to_vec::<f32>()?, [1.0; 2]);
    Ok(())
}

#[test]
fn values_may_be_read_inside_a_gradient() -> Result<()> {
    let f = |x: &Array| -> Result<Array> {
        let y = x.square();
        if y.item::<f32>()? > 4.0 { ops::multiply(&y, 3) } else { Ok(y) }
    };
    assert_eq!(grad(f)(&scalar(1.0))?.item::<f32>()?, 2.0);
    assert_eq!(grad(f)(&scalar(3.0))?.item::<f32>()?, 18.0);
    assert_eq!(grad(grad(f))(&scalar(3.0))?.item::<f32>()?, 6.0);
    Ok(())
}

#[test]
fn products_with_cotangents_and_tangents() -> Result<()> {
    let f = |(a, b): &(Array, Array)| ops::matmul(a, b);
    let at = (array([[1.0f32, 2.0], [3.0, 4.0]]), array([[5.0f32], [6.0]]));
    let (y, (ga, gb)) = vjp(f, &at, &array([[1.0f32], [10.0]]))?;
    assert_eq!(y.to_vec::<f32>()?, [17.0, 39.0]);
    assert_eq!(ga.to_vec::<f32>()?, [5.0, 6.0, 50.0, 60.0]);
    assert_eq!(gb.to_vec::<f32>()?, [31.0, 42.0]);
    let along = (array([[1.0f32, 0.0], [0.0, 1.0]]), array([[0.0f32], [1.0]]));
    let (y, t) = jvp(f, &at, &along)?;
    assert_eq!(y.to_vec::<f32>()?, [17.0, 39.0]);
    assert_eq!(t.to_vec::<f32>()?, [7.0, 10.0]);
    Ok(())
}

#[test]
fn forward_over_reverse_is_a_hessian_product() -> Result<()> {
    // f = sum(x^3): the Hessian is diag(6x).
    let slope = grad(|x: &Array| (x * x * x).sum((), false));
    let (_, h) = jvp(|x: &Array| slope(x), &array([1.0f32, 2.0]), &array([1.0f32, -1.0]))?;
    assert_eq!(h.to_vec::<f32>()?, [6.0, -12.0]);
    Ok(())
}

#[test]
fn mapping_is_a_loop() -> Result<()> {
    let f = |(a, b): &(Array, Array)| ops::matmul(a, b);
    let a = array([[[1.0f32, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]]);
    let b = array([[1.0f32], [10.0]]);
    let y = vmap_axes(f, [Some(0), None], 0)(&(a.clone(), b))?;
    assert_eq!((y.shape(), y.to_vec::<f32>()?), (&[3, 1, 1][..], vec![21.0, 43.0, 65.0]));
    let sums = vmap_axes(|x: &Array| x.sum((), false), 1, 0)(&array([[1.0f32, 2.0, 3.0], [10.0, 20.0, 30.0]]))?;
    assert_eq!(sums.to_vec::<f32>()?, [11.0, 22.0, 33.0]);
    // The Jacobian, a row each lane.
    let x = array([1.0f32, 2.0]);
    let row = |g: &Array| vjp(|x: &Array| x.square(), &x, g).map(|(_, g)| g);
    let jacobian = vmap(row)(&ops::eye(2, None, 0, None)?)?;
    assert_eq!(jacobian.to_vec::<f32>()?, [2.0, 0.0, 0.0, 4.0]);
    // Gradients of each example, and the gradient of a mapped function.
    let each = vmap(|x: &Array| grad(|x: &Array| x.square().sum((), false))(x))(&a)?;
    assert_eq!(each.to_vec::<f32>()?, [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
    let all = grad(|a: &Array| Ok(vmap(|x: &Array| x.square().sum((), false))(a)?.sum((), false)))(&a)?;
    assert_eq!(all.to_vec::<f32>()?, [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
    Ok(())
}

#[test]
fn compiled_functions_trace_once_for_each_shape() -> Result<()> {
    let traced = Cell::new(0);
    let f = compile(|x: &Array| {
        traced.set(traced.get() + 1);
        (x * 2.0 + 1.0).tanh()
    });
    for _ in 0..3 {
        let x = array([0.25f32, -1.5, 3.0]);
        assert_eq!(f.call(&x)?.to_vec::<f32>()?, (&x * 2.0 + 1.0).tanh().to_vec::<f32>()?);
    }
    assert_eq!(traced.get(), 1);
    f.call(&array([[1.0f32]]))?;
    assert_eq!((traced.get(), f.traces()), (2, 2));
    let slope = grad(|x: &Array| Ok(f.call(x)?.sum((), false)))(&array([0.0f32]))?;
    assert!((slope.item::<f32>()? - 2.0 * (1.0 - 1f32.tanh().powi(2))).abs() < 1e-6);
    let steps = compile(|x: &Array| grad(|x: &Array| x.square().sum((), false))(x));
    assert_eq!(steps.call(&array([1.5f32]))?.item::<f32>()?, 3.0);
    Ok(())
}

#[test]
fn values_inside_compile_and_vmap_are_errors() {
    let read = |x: &Array| -> Result<Array> { Ok(array(x.sum((), false).item::<f32>()?)) };
    let e = compile(read).call(&array([1.0f32])).unwrap_err().to_string();
    assert!(e.contains("[compile]") && e.contains("inside"), "{e}");
    let e = vmap(read)(&array([1.0f32])).unwrap_err().to_string();
    assert!(e.contains("[vmap]") && e.contains("inside"), "{e}");
}

#[test]
fn checkpoints_change_no_value_and_no_gradient() -> Result<()> {
    let w = array([[0.5f32, -1.0], [2.0, 0.25]]);
    let layer = |(x, w): &(Array, Array)| -> Result<Array> { ops::tanh(&ops::matmul(x, w)?) };
    let x = array([[1.0f32, 2.0]]);
    let plain = grad(|p: &(Array, Array)| -> Result<Array> { Ok(layer(&(layer(p)?, p.1.clone()))?.sum((), false)) });
    let saved = grad(|p: &(Array, Array)| -> Result<Array> {
        let once = checkpoint(layer)(p)?;
        // The weight is captured here.
        Ok(checkpoint(|x: &Array| layer(&(x.clone(), p.1.clone())))(&once)?.sum((), false))
    });
    let (a, b) = (plain(&(x.clone(), w.clone()))?, saved(&(x, w))?);
    assert_eq!(a.0.to_vec::<f32>()?, b.0.to_vec::<f32>()?);
    assert_eq!(a.1.to_vec::<f32>()?, b.1.to_vec::<f32>()?);
    Ok(())
}

#[test]
fn custom_rules_are_used_in_every_mode() -> Result<()> {
    let f = custom_function(|x| Ok(vec![x[0].square()]))
        .vjp(|x, g, _| Ok(vec![ops::multiply(&ops::multiply(&g[0], &x[0])?, 10)?]));
    let one = |x: &Array| -> Result<Array> { Ok(f.call(std::slice::from_ref(x))?.remove(0)) };
    assert_eq!(one(&scalar(3.0))?.item::<f32>()?, 9.0);
    assert_eq!(grad(one)(&scalar(3.0))?.item::<f32>()?, 30.0);
    // What is not given follows from the function (the numbers of MLX).
    assert_eq!(jvp(one, &scalar(3.0), &scalar(1.0))?.1.item::<f32>()?, 6.0);
    let x = array([1.0f32, 2.0]);
    assert_eq!(vmap(|x: &Array| grad(one)(x))(&x)?.to_vec::<f32>()?, [10.0, 20.0]);
    let mapped = grad(|x: &Array| Ok(vmap(one)(x)?.sum((), false)))(&x)?;
    assert_eq!(mapped.to_vec::<f32>()?, [10.0, 20.0]);
    let compiled = compile(one);
    assert_eq!(grad(|x: &Array| compiled.call(x))(&scalar(3.0))?.item::<f32>()?, 30.0);

    let g = custom_function(|x| Ok(vec![x[0].square()])).jvp(|x, t| Ok(vec![ops::multiply(&t[0], &x[0])?]));
    let one = |x: &Array| -> Result<Array> { Ok(g.call(std::slice::from_ref(x))?.remove(0)) };
    assert_eq!(grad(one)(&scalar(3.0))?.item::<f32>()?, 6.0);
    assert_eq!(jvp(one, &scalar(3.0), &scalar(2.0))?.1.item::<f32>()?, 6.0);
    let mapped = jvp(vmap(one), &x, &array([1.0f32, 10.0]))?.1;
    assert_eq!(mapped.to_vec::<f32>()?, [1.0, 20.0]);

    // Each mode has its own, also where one cannot be the other's.
    let h = custom_function(|x| Ok(vec![x[0].square()]))
        .vjp(|_, g, _| Ok(vec![ops::minimum(&g[0], 0.5)?]))
        .jvp(|x, t| Ok(vec![ops::multiply(&t[0], &x[0])?]))
        .vmap(|lanes, _| Ok(vec![Lane { array: &lanes[0].array * 100.0, mapped: true }]));
    let one = |x: &Array| -> Result<Array> { Ok(h.call(std::slice::from_ref(x))?.remove(0)) };
    assert_eq!(grad(one)(&scalar(3.0))?.item::<f32>()?, 0.5);
    assert_eq!(jvp(one, &scalar(3.0), &scalar(2.0))?.1.item::<f32>()?, 6.0);
    assert_eq!(vmap(one)(&x)?.to_vec::<f32>()?, [100.0, 200.0]);
    // The rule of the reverse mode, moved forward, is not the rule of the forward mode.
    assert_eq!(jvp(|x: &Array| grad(one)(x), &scalar(3.0), &scalar(2.0))?.1.item::<f32>()?, 0.0);
    Ok(())
}

#[test]
fn rules_of_the_user_that_give_something_else_are_errors() {
    let called = |rule: fn(&[Lane]) -> Vec<Lane>| {
        let f = custom_function(|x| Ok(vec![x[0].square()])).vmap(move |lanes, _| Ok(rule(lanes)));
        let mapped =
            vmap(|x: &Array| Ok::<_, Error>(f.call(std::slice::from_ref(x))?.remove(0)))(&array([1.0f32, 2.0]));
        mapped.unwrap_err().to_string()
    };
    let e = called(|_| Vec::new());
    assert!(e.contains("[custom_function] needs one output of the vmap rule for each array, 1 in all; got 0"), "{e}");
    let e = called(|_| vec![Lane { array: array([1.0f32, 2.0, 3.0]), mapped: true }]);
    assert!(e.contains("output of the vmap rule 0 has shape (3,)") && e.contains("(2,)"), "{e}");
}

#[test]
fn a_compiled_step_reads_and_writes_its_state() -> Result<()> {
    let traced = Cell::new(0);
    type State = (BTreeMap<&'static str, Array>, Array);
    let body = |(weights, key): &mut State, x: &Array| -> Result<Array> {
        traced.set(traced.get() + 1);
        random::set_state(key.clone());
        let noise = random::normal(&[2], Dtype::Float32, None, None, None)?;
        let near = |w: &Array| Ok::<_, Error>((ops::multiply(w, x)? + &noise).square().sum((), false));
        let (loss, g) = value_and_grad(near)(&weights["w"])?;
        weights.insert("w", &weights["w"] - g * 0.1);
        *key = random::state();
        Ok(loss)
    };
    let start = || -> State { (BTreeMap::from([("w", array([1.0f32, -2.0]))]), random::key(5)) };
    let (mut state, mut plain) = (start(), start());
    random::seed(77);
    let before = random::state().to_vec::<u32>()?;
    let step = compile_with_state(body);
    for i in 0..4 {
        let x = array([0.5f32, i as f32]);
        let loss = step(&mut state, &x)?;
        // The keys that a trace works with stay in it.
        assert_eq!(random::state().to_vec::<u32>()?, before);
        let wanted = body(&mut plain, &x)?;
        random::seed(77);
        assert_eq!(loss.to_bytes()?, wanted.to_bytes()?);
        assert_eq!(state.0["w"].to_bytes()?, plain.0["w"].to_bytes()?);
        assert_eq!(state.1.to_vec::<u32>()?, plain.1.to_vec::<u32>()?);
    }
    assert_eq!(traced.get(), 1 + 4, "traced once");
    // A call that fails changes nothing.
    let kept = state.0["w"].clone();
    assert!(step(&mut state, &array([1.0f32, 2.0, 3.0])).is_err());
    assert!(state.0["w"].is_same(&kept));
    assert_eq!(random::state().to_vec::<u32>()?, before);
    let noisy = |key: &Array| {
        random::set_state(key.clone());
        random::normal(&[1], Dtype::Float32, None, None, None)
    };
    vmap(noisy)(&random::split(&random::key(1), 2)?)?;
    assert_eq!(random::state().to_vec::<u32>()?, before);
    Ok(())
}

#[test]
fn axes_are_given_for_arrays_or_for_arguments() -> Result<()> {
    let model = BTreeMap::from([("b", array([1.0f32, 2.0])), ("w", ops::ones::<f32>(&[3, 2])?)]);
    let x = ops::ones::<f32>(&[5, 3])?;
    let f = |(m, x): &(BTreeMap<&str, Array>, Array)| Ok::<_, Error>(ops::matmul(x, &m["w"])? + &m["b"]);
    for axes in [vec![None, Some(0)], vec![None, None, Some(0)]] {
        let y = vmap_axes(f, axes, 0)(&(model.clone(), x.clone()))?;
        assert_eq!((y.shape(), y.to_vec::<f32>()?), (&[5, 2][..], [4.0f32, 5.0].repeat(5)));
    }
    let e = vmap_axes(f, vec![Some(0)], 0)(&(model.clone(), x.clone())).unwrap_err().to_string();
    assert!(e.contains("[vmap] 1 input axes were given for 3 arrays in 2 arguments"), "{e}");
    let both = |x: &Array| (x.clone(), vec![x * 2.0, x * 3.0]);
    let (a, rest) = vmap_axes(both, 0, [Some(-1), Some(0)])(&x)?;
    assert_eq!((a.shape(), rest[1].shape()), (&[3, 5][..], &[5, 3][..]));
    for bad in [2, -3] {
        let e = vmap_axes(|x: &Array| x * 2.0, 0, bad)(&x).unwrap_err().to_string();
        assert!(e.contains(&format!("[vmap] axis {bad}")) && e.contains("output 0, of shape (3,)"), "{e}");
    }
    let e = vmap_axes(|x: &Array| x * 2.0, 0, [None])(&x).unwrap_err().to_string();
    assert!(e.contains("[vmap] output 0 is given no axis"), "{e}");
    Ok(())
}

#[test]
fn gradients_stop_where_they_are_told_to() -> Result<()> {
    let f = |x: &Array| -> Result<Array> { ops::multiply(x, &ops::stop_gradient(x)?) };
    assert_eq!(grad(f)(&scalar(3.0))?.item::<f32>()?, 3.0);
    let compiled = compile(f);
    assert_eq!(grad(|x: &Array| compiled.call(x))(&scalar(3.0))?.item::<f32>()?, 3.0);
    let ints = grad(|x: &Array| (x * 2).sum((), false))(&array([1, 2]))?;
    assert_eq!(ints.to_vec::<i32>()?, [2, 2]);
    Ok(())
}

#[test]
fn mistakes_say_what_and_where() {
    let message = |r: Result<Array>| r.unwrap_err().to_string();
    let e = message(grad(|x: &Array| x.square())(&array([1.0f32, 2.0])));
    assert!(e.contains("[grad]") && e.contains("(2,)") && e.contains("scalar"), "{e}");
    let e = message(vmap_axes(|x: &Array| x.square(), 3, 0)(&array([1.0f32])));
    assert!(e.contains("[vmap] axis 3") && e.contains("array 0 has shape (1,)"), "{e}");
    let e = message(vjp(|x: &Array| x.square(), &array([1.0f32]), &array([1.0f32, 2.0])).map(|(y, _)| y));
    assert!(e.contains("[vjp]") && e.contains("(2,)") && e.contains("(1,)"), "{e}");
    let sizes = |(a, b): &(Array, Array)| ops::add(a, b);
    let e = message(vmap(sizes)(&(array([1.0f32]), array([1.0f32, 2.0]))));
    assert!(e.contains("[vmap]") && e.contains("2 lanes"), "{e}");
}

#[test]
fn a_long_chain_differentiates_without_recursion() -> Result<()> {
    let f = |x: &Array| {
        let mut y = x.clone();
        for _ in 0..100_000 {
            y = y + 1.0;
        }
        y
    };
    assert_eq!(grad(f)(&scalar(1.0))?.item::<f32>()?, 1.0);
    Ok(())
}
