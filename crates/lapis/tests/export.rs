//! Functions in files: what users of `export_function` and `import_function` rely on.

use lapis::io::save_function;
use lapis::ops::fast::{AttentionMask, AttentionOptions, scaled_dot_product_attention};
use lapis::prelude::*;
use lapis::transforms::{Function, checkpoint, compile, custom_function, grad, vmap};
use lapis::{export_function, import_function, random};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lapis-export-{}-{name}", std::process::id()))
}

fn bits(arrays: &[Array]) -> Result<Vec<Vec<u8>>> {
    arrays.iter().map(Array::to_bytes).collect()
}

/// A network that captures weights: lazy ones, transposed ones, broadcast ones.
fn network() -> Result<impl Fn(&Array) -> Result<Vec<Array>>> {
    let key = random::key(7);
    let w = random::normal(&[8, 4], Dtype::Float32, None, None, Some(&key))?;
    let b = ops::arange(0.0, 8.0, 1.0, Some(Dtype::Float32))?;
    let keep = random::key(9);
    Ok(move |x: &Array| {
        let h = ops::add(ops::matmul(x, &ops::transpose(&w, None)?)?, &b)?;
        let h = ops::fast::rms_norm(&ops::tanh(&h)?, None, 1e-5)?;
        let kept = random::bernoulli(0.5, None, Some(&keep))?;
        Ok(vec![ops::softmax(&h, -1)?, ops::argmax(&h, Some(-1), false)?, ops::select(&kept, &h, &(&h * 2.0))?])
    })
}

fn input() -> Result<Array> {
    random::normal(&[3, 4], Dtype::Float32, None, None, Some(&random::key(1)))
}

#[test]
fn a_file_gives_the_same_bits_in_another_process() -> Result<()> {
    const NAME: &str = "LAPIS_TEST_IMPORT";
    if let Some(path) = std::env::var_os(NAME) {
        let imported = import_function(PathBuf::from(path))?;
        println!("bits {:?} of {}", bits(&imported.call(&input()?)?)?, imported.metadata);
        return Ok(());
    }
    let path = scratch("network");
    let mut function = Function::new();
    function.metadata = "a network".into();
    function.trace(network()?, &input()?)?;
    save_function(&path, &function)?;
    let wanted = bits(&network()?(&input()?)?)?;
    let run = std::process::Command::new(std::env::current_exe().expect("the path of this test"))
        .args(["a_file_gives_the_same_bits_in_another_process", "--exact", "--nocapture"])
        .env(NAME, &path)
        .output()
        .expect("a second process");
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && text.contains(&format!("bits {wanted:?} of a network")), "{text}");
    std::fs::remove_file(&path).expect("the file is there");
    Ok(())
}

#[test]
fn imported_functions_go_through_transforms() -> Result<()> {
    let path = scratch("transforms");
    let w = array([[0.5f32, -1.0], [2.0, 0.25]]);
    let f = |x: &Array| ops::sum(&ops::tanh(&ops::matmul(x, &w)?)?, (), false);
    let x = array([1.0f32, -0.5]);
    export_function(&path, f, &x)?;
    let imported = import_function(&path)?;
    let g = |x: &Array| -> Result<Array> { Ok(imported.call(x)?.remove(0)) };
    assert_eq!(grad(g)(&x)?.to_vec::<f32>()?, grad(f)(&x)?.to_vec::<f32>()?);
    let rows = array([[1.0f32, 2.0], [3.0, -4.0], [0.0, 1.0]]);
    assert_eq!(vmap(g)(&rows)?.to_vec::<f32>()?, vmap(f)(&rows)?.to_vec::<f32>()?);
    assert_eq!(compile(g).call(&x)?.to_vec::<f32>()?, f(&x)?.to_vec::<f32>()?);
    // What was imported can be exported again, in a step of a training loop as well.
    let step = |x: &Array| -> Result<Array> { ops::subtract(x, ops::multiply(&grad(g)(x)?, 0.1)?) };
    let again = scratch("again");
    export_function(&again, step, &x)?;
    assert_eq!(import_function(&again)?.call(&x)?[0].to_vec::<f32>()?, step(&x)?.to_vec::<f32>()?);
    std::fs::remove_file(path).and(std::fs::remove_file(again)).expect("the files are there");
    Ok(())
}

#[test]
fn gradients_of_attention_are_exported_compiled_and_checkpointed() -> Result<()> {
    let x = random::normal(&[2, 2, 5, 8], Dtype::Float32, None, None, Some(&random::key(3)))?;
    let options = AttentionOptions { scale: 0.3, mask: AttentionMask::Causal, ..AttentionOptions::default() };
    let attend = |x: &Array| scaled_dot_product_attention(x, &ops::tanh(x)?, &ops::sin(x)?, &options);
    let loss = |x: &Array| ops::sum(&ops::square(&attend(x)?)?, (), false);
    let saved = |x: &Array| ops::sum(&ops::square(&checkpoint(attend)(x)?)?, (), false);
    let want = bits(&[grad(loss)(&x)?])?;
    assert_eq!(bits(&[grad(saved)(&x)?])?, want);
    assert_eq!(bits(&[compile(grad(loss)).call(&x)?])?, want);
    let path = scratch("attention");
    export_function(&path, grad(loss), &x)?;
    assert_eq!(bits(&import_function(&path)?.call(&x)?)?, want);
    std::fs::remove_file(path).expect("the file is there");
    Ok(())
}

#[test]
fn arguments_choose_the_trace() -> Result<()> {
    let mut f = Function::new();
    let (two, three) = (array([1.0f32, 2.0]), array([1.0f32, 2.0, 3.0]));
    f.trace(|x: &Array| x + 1.0, &two)?;
    f.trace(|x: &Array| x + 2.0, &three)?;
    f.trace(|x: &Array| x + 3, &array([1, 2]))?;
    f.trace(|(x, y): &(Array, Array)| x + y, &(two.clone(), two.clone()))?;
    type Named = BTreeMap<&'static str, Array>;
    f.trace(|m: &Named| &m["a"] - &m["b"], &BTreeMap::from([("a", two.clone()), ("b", two.clone())]))?;
    let path = scratch("traces");
    save_function(&path, &f)?;
    let f = import_function(&path)?;
    std::fs::remove_file(path).expect("the file is there");
    let first = |arrays: Vec<Array>| arrays[0].to_vec::<f32>();
    assert_eq!(first(f.call(&two)?)?, [2.0, 3.0]);
    assert_eq!(first(f.call(&three)?)?, [3.0, 4.0, 5.0]);
    assert_eq!(f.call(&array([1, 2]))?[0].to_vec::<i32>()?, [4, 5]);
    assert_eq!(first(f.call(&vec![two.clone(), two.clone()])?)?, [2.0, 4.0]);
    assert_eq!(first(f.call(&BTreeMap::from([("b", two.clone()), ("a", &two + &two)]))?)?, [1.0, 2.0]);

    let e = f.call(&array([true])).unwrap_err().to_string();
    let wanted =
        ["no trace takes (0: bool (1,))", "(0: float32 (3,))", "(0: int32 (2,))", "(a: float32 (2,), b: float32 (2,))"];
    assert!(wanted.iter().all(|w| e.contains(w)), "{e}");
    let mut f = f;
    let e = f.trace(|x: &Array| x * 2.0, &two).unwrap_err().to_string();
    assert!(e.contains("(0: float32 (2,)) were traced already"), "{e}");
    Ok(())
}

#[test]
fn what_is_code_cannot_be_exported() -> Result<()> {
    let x = array([1.0f32, 2.0]);
    let ruled = custom_function(|x| Ok(vec![x[0].square()])).vjp(|_, g, _| Ok(vec![g[0].clone()]));
    let e = Function::new().trace(|x: &Array| ruled.call(std::slice::from_ref(x)), &x).unwrap_err().to_string();
    assert!(e.contains("[export_function]") && e.contains("custom_function"), "{e}");
    let e = Function::new().trace(|x: &Array| Ok(array(x.sum((), false).item::<f32>()?)), &x).unwrap_err().to_string();
    assert!(e.contains("[export_function]") && e.contains("inside"), "{e}");
    let mut f = Function::new();
    f.trace(checkpoint(|x: &Array| x.exp()), &x)?;
    assert_eq!(f.call(&x)?[0].to_vec::<f32>()?, x.exp().to_vec::<f32>()?);
    Ok(())
}
