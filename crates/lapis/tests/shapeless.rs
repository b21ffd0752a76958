//! One trace for every size: the values of each call are those of the function itself.

use lapis::io::save_function;
use lapis::ops::fast::{AttentionMask, AttentionOptions, scaled_dot_product_attention};
use lapis::prelude::*;
use lapis::transforms::{Function, checkpoint, compile_shapeless, grad};
use lapis::{import_function, random};

fn normal(shape: &[usize]) -> Array {
    random::normal(shape, Dtype::Float32, None, None, Some(&random::key(shape.iter().sum::<usize>() as u64))).unwrap()
}

/// `f` traced once and called with other shapes.
fn follows(name: &str, f: &dyn Fn(&Array) -> Result<Array>, shapes: &[&[usize]]) {
    let compiled = compile_shapeless(f);
    for shape in shapes {
        let x = normal(shape);
        let got = compiled.call(&x).unwrap_or_else(|e| panic!("{name} {shape:?}: {e}"));
        let want = f(&x).unwrap();
        assert_eq!(got.shape(), want.shape(), "{name} {shape:?}");
        assert_eq!(got.to_bytes().unwrap(), want.to_bytes().unwrap(), "{name} {shape:?}");
    }
    assert_eq!(compiled.traces(), 1, "{name}");
}

#[test]
fn shapes_of_calls_are_followed() {
    let rows: [&[usize]; 4] = [&[3, 5], &[7, 5], &[2, 11], &[600, 3]];
    follows("numbers", &|x| ops::add(ops::multiply(x, 2)?, 0.5), &rows);
    follows("softmax", &|x| ops::softmax(x, -1), &rows);
    follows("softmax of columns", &|x| ops::softmax(x, 0), &rows);
    follows("mean", &|x| ops::mean(x, 0, false), &rows);
    follows("variance", &|x| ops::var(x, (), false, 1), &rows);
    follows("norm", &|x| ops::fast::layer_norm(x, None, None, 1e-5), &rows);
    follows(
        "standardised",
        &|x| ops::divide(ops::subtract(x, ops::mean(x, 0, true)?)?, ops::std(x, 0, true, 0)?),
        &rows,
    );
    follows("products", &|x| ops::matmul(x, &ops::transpose(x, None)?), &rows);
    follows("flat", &|x| ops::reshape(x, &[-1]), &rows);
    follows("windows", &|x| ops::slice(x, &[(Some(1), None, 1), (None, Some(-1), 1)]), &rows);
    follows("mask", &|x| ops::tril(&ops::matmul(x, &ops::transpose(x, None)?)?, 0), &rows);
    follows("padded", &|x| ops::pad(x, [(1, 2), (0, 3)], ops::PadMode::Constant, 0), &rows);
    follows("running sums", &|x| ops::cumsum(x, Some(0), true, false, None), &rows);
    follows("sizes read", &|x| ops::multiply(x, (3 * x.shape()[0] + 1) as f64), &rows);
    follows("loops", &|x| ops::concatenate(&[x.clone(), ops::exp(x)?], 0), &rows);
    let slope = |x: &Array| grad(|x: &Array| ops::mean(&ops::square(&ops::tanh(x)?)?, (), false))(x);
    follows("gradients", &slope, &rows);
    let layer = checkpoint(|x: &Array| ops::tanh(&ops::multiply(x, x)?));
    let twice = checkpoint(|x: &Array| layer(&layer(x)?));
    follows("checkpoints", &twice, &rows);
    follows("their gradients", &|x| grad(|x: &Array| ops::sum(&twice(x)?, (), false))(x), &rows);
}

#[test]
fn sizes_that_the_function_insists_on_stay() -> Result<()> {
    let (w, b) = (normal(&[4, 6]), normal(&[6]));
    let f = |x: &Array| ops::sigmoid(&ops::add(ops::matmul(x, &w)?, &b)?);
    follows("a layer with operators", &|x| Ok((x.matmul(&w) + &b).sigmoid()), &[&[3, 4], &[5, 4]]);
    follows("a layer", &f, &[&[3, 4], &[5, 4], &[2, 4]]);
    let g = |x: &Array| ops::sum(&ops::logsumexp(&f(x)?, -1, false)?, (), false);
    follows("its gradient", &|x| grad(g)(x), &[&[3, 4], &[5, 4], &[9, 4]]);
    let e = compile_shapeless(f).call(&normal(&[3, 5])).unwrap_err().to_string();
    assert!(e.contains("[matmul]"), "{e}");
    let attention = |x: &Array| {
        let options = AttentionOptions { scale: 0.5, mask: AttentionMask::Causal, ..Default::default() };
        scaled_dot_product_attention(x, x, x, &options)
    };
    follows("attention", &attention, &[&[2, 3, 5, 8], &[4, 3, 6, 8], &[3, 9, 7, 16]]);
    let loss = |x: &Array| ops::sum(&ops::square(&attention(x)?)?, (), false);
    follows("its gradient", &|x| grad(loss)(x), &[&[2, 3, 5, 8], &[4, 3, 6, 8], &[3, 9, 7, 16]]);
    let heads = |x: &Array| -> Result<Array> {
        let (b, t) = (x.shape()[0], x.shape()[1]);
        let split = ops::reshape(x, &[b as i64, t as i64, 2, -1])?;
        ops::reshape(&ops::transpose(&split, Some(&[0, 2, 1, 3]))?, &[(b * 2) as i64, t as i64, -1])
    };
    follows("heads", &heads, &[&[3, 5, 8], &[2, 7, 8]]);
    Ok(())
}

#[test]
fn equal_sizes_are_one_and_others_another_trace() -> Result<()> {
    let f = compile_shapeless(|(x, y): &(Array, Array)| x.sum((), false) * y);
    for (n, m, traces) in [(3, 3, 1), (5, 5, 1), (4, 7, 2), (2, 9, 2), (6, 6, 2)] {
        let (x, y) = (normal(&[n]), normal(&[m]));
        let want = x.sum((), false) * &y;
        assert_eq!(f.call(&(x, y))?.to_vec::<f32>()?, want.to_vec::<f32>()?);
        assert_eq!(f.traces(), traces, "{n} {m}");
    }
    let ones = compile_shapeless(|(x, y): &(Array, Array)| x + y);
    for shapes in [[[1, 3], [2, 3]], [[1, 5], [4, 5]], [[4, 5], [4, 5]]] {
        let (x, y) = (normal(&shapes[0]), normal(&shapes[1]));
        assert_eq!(ones.call(&(x.clone(), y.clone()))?.to_vec::<f32>()?, (x + y).to_vec::<f32>()?);
    }
    Ok(())
}

#[test]
fn what_does_not_follow_is_refused() {
    let refused = |f: &dyn Fn(&Array) -> Result<Array>| {
        let e = compile_shapeless(f).call(&normal(&[3, 5])).unwrap_err().to_string();
        assert!(e.contains("[compile] the function cannot be traced for any size"), "{e}");
        e
    };
    let e = refused(&|x| ops::divide(x, (x.shape()[0] as f64).sqrt()));
    assert!(e.contains("full has a number"), "{e}");
    refused(&|x| ops::add(x, if x.shape()[0] > 100 { 1 } else { 2 }));
    refused(&|x| if x.shape()[1] > 100 { ops::exp(x) } else { Ok(x + 1) });
    refused(&|x| ops::multiply(x, &array(x.shape()[0] as f32)));
    refused(&|x| ops::add(x, random::uniform(0, 1, &[], Dtype::Float32, None)?));
}

#[test]
fn files_hold_traces_of_any_size() -> Result<()> {
    let w = normal(&[4, 6]);
    let f = |x: &Array| -> Result<Array> {
        ops::softmax(&ops::matmul(&ops::subtract(x, ops::mean(x, 0, true)?)?, &w)?, -1)
    };
    let mut function = Function::new();
    function.trace_shapeless(f, &normal(&[3, 4]))?;
    let path = std::env::temp_dir().join(format!("lapis-shapeless-{}", std::process::id()));
    save_function(&path, &function)?;
    let imported = import_function(&path)?;
    std::fs::remove_file(path).expect("the file is there");
    for n in [3, 8, 1, 300] {
        let x = normal(&[n, 4]);
        assert_eq!(imported.call(&x)?[0].to_vec::<f32>()?, f(&x)?.to_vec::<f32>()?);
    }
    let e = imported.call(&normal(&[3, 5])).unwrap_err().to_string();
    assert!(e.contains("(0: float32 (n0,4))"), "{e}");
    Ok(())
}
