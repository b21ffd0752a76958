//! Laziness, fusion, donation, threads: what the graph promises.

use lapis::prelude::*;
use lapis::{Device, Stream, async_eval, clear_streams, graph};

#[test]
fn sum_of_vectors() {
    let c = array([1.0f32, 2.0, 3.0]) + array([10.0f32, 20.0, 30.0]);
    assert!(!c.is_evaluated());
    assert_eq!(c.to_vec::<f32>().unwrap(), [11.0, 22.0, 33.0]);
    assert!(c.is_evaluated());
}

#[test]
fn a_million_nodes_build_evaluate_and_drop() {
    let a = array([1i32, 2]);
    let mut z = a.clone();
    for _ in 0..1_000_000 {
        z = &z + &a;
    }
    assert_eq!(z.to_vec::<i32>().unwrap(), [1_000_001, 2_000_002]);
    let mut z = a.clone();
    for _ in 0..1_000_000 {
        z = &z * &a;
    }
    drop(z);
}

#[test]
fn wide_graphs_and_shared_values() {
    let x = ops::arange(0, 1000, 1, Some(Dtype::Float32)).unwrap();
    let parts: Vec<Array> = (0..100).map(|i| &x * i as f32 + 1.0).collect();
    let mut total = parts[0].clone();
    for p in &parts[1..] {
        total = total + p * p;
    }
    eval(parts.iter().chain([&total])).unwrap();
    let want: f32 = 1.0 + (1..100).map(|i| (3.0 * i as f32 + 1.0).powi(2)).sum::<f32>();
    assert_eq!(total.to_vec::<f32>().unwrap()[3], want);
}

#[test]
fn broadcasts_views_and_reductions() {
    let x = ops::arange(0, 24, 1, None).unwrap().reshape(&[2, 3, 4]);
    assert_eq!(x.dtype(), Dtype::Int32);
    assert_eq!(x.sum(1, false).to_vec::<i32>().unwrap(), [12, 15, 18, 21, 48, 51, 54, 57]);
    assert_eq!(x.sum([0, 2], false).to_vec::<i32>().unwrap(), [60, 92, 124]);
    let want: Vec<i32> = (0..12).map(|i| 12 + i % 3 * 4 + i / 3).collect();
    assert_eq!(x.t().max(-1, false).sum(-1, false).shape(), [4]);
    assert_eq!(x.t().max(-1, false).to_vec::<i32>().unwrap(), want);
    let y = x.transpose(&[2, 0, 1]) + array([100, 200, 300]);
    assert_eq!(y.shape(), [4, 2, 3]);
    assert_eq!(y.to_vec::<i32>().unwrap()[..6], [100, 204, 308, 112, 216, 320]);
    let s = (&x * 2).sum((), false);
    assert_eq!(s.item::<i32>().unwrap(), 2 * 276);
}

#[test]
fn transposed_elementwise_keeps_its_layout() {
    let x = ops::arange(0, 6, 1, None).unwrap().reshape(&[2, 3]).t() + 1;
    assert!(x.tensor().unwrap().is_col_contiguous());
    assert_eq!(x.to_vec::<i32>().unwrap(), [1, 4, 2, 5, 3, 6]);
}

#[test]
fn big_fused_work_matches_a_loop() {
    let n = 100_003;
    let g = ops::arange(0, n, 1, Some(Dtype::Float32)).unwrap() / 1000.0;
    let u = &g * 0.5 - 3.0;
    let y = (&g * ops::sigmoid(&g).unwrap()) * &u + 1.0;
    let y = y.to_vec::<f32>().unwrap();
    for i in (0..n).step_by(97) {
        let g = i as f32 / 1000.0;
        let want = g * (1.0 / (1.0 + (-f64::from(g)).exp())) as f32 * (g * 0.5 - 3.0) + 1.0;
        assert!((y[i] - want).abs() <= want.abs() * 1e-6, "{i}: {} {want}", y[i]);
    }
}

#[test]
fn half_precision_sums_in_single() {
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        let s = ops::full(&[4096], 1.0, Some(dtype)).unwrap().sum((), false);
        assert_eq!(s.astype(Dtype::Float32).item::<f32>().unwrap(), 4096.0);
    }
}

#[test]
fn streams_and_threads_agree() {
    let s = Stream::new(lapis::Device::CPU).unwrap();
    let x = ops::arange(0, 1000, 1, Some(Dtype::Float32)).unwrap();
    let y = s.scope(|| &x * 2.0);
    let z = &y + &x;
    let w = s.scope(|| &z * &y);
    async_eval([&w]);
    let handles: Vec<_> = (0..4)
        .map(|_| {
            let (z, w) = (z.clone(), w.clone());
            std::thread::spawn(move || (z.sum((), false).item::<f32>().unwrap(), w.to_vec::<f32>().unwrap()[10]))
        })
        .collect();
    for h in handles {
        assert_eq!(h.join().unwrap(), (3.0 * 499_500.0, 600.0));
    }
}

#[test]
fn errors_name_op_and_shapes() {
    let e = ops::add(array([1, 2]), array([1, 2, 3])).unwrap_err();
    assert_eq!(e.message(), "[add] shapes (2,) and (3,) cannot be broadcast");
    assert!(ops::add(&array([1u8]), 300).unwrap_err().message().contains("300"));
    assert!(ops::reshape(&array([1, 2, 3]), &[2, -1]).is_err());
    assert!(ops::full(&[usize::MAX, 2], 0, None).is_err());
}

#[test]
fn widening_inside_a_fused_group_keeps_its_arguments() {
    let widened = |a: &Array| ops::sum(&(a * a), -1, false).unwrap();
    let chosen = |a: &Array| (ops::select(&a.greater(1), a * a, 0).unwrap() + 1).sum(-1, false);
    for dtype in [Dtype::Int8, Dtype::Uint8, Dtype::Int16] {
        assert_eq!(widened(&array([1, 2, 3]).astype(dtype)).astype(Dtype::Int32).item::<i32>().unwrap(), 14);
    }
    assert_eq!(chosen(&array([1i64, 2, 3])).item::<i64>().unwrap(), 16);
    assert_eq!(chosen(&array([1.0f64, 2.0, 3.0])).item::<f64>().unwrap(), 16.0);
}

#[test]
fn a_stream_works_on_after_its_thread_was_ended() {
    let stream = Stream::new(Device::CPU).unwrap();
    let a = array([1.0f32, 2.0]);
    for _ in 0..100 {
        let b = stream.scope(|| &a + 1.0);
        async_eval([&b]);
        clear_streams();
        assert_eq!(b.to_vec::<f32>().unwrap(), [2.0, 3.0]);
    }
}

#[test]
fn the_graph_as_text() {
    let a = array([1.0f32, 2.0]);
    let b = a.exp();
    let c = &b * &b;
    let text = "digraph {
  n0 [label=\"array\\nfloat32 (2,)\", shape=ellipse];
  n1 [label=\"exp\\nfloat32 (2,)\", shape=box];
  n0 -> n1;
  n2 [label=\"multiply\\nfloat32 (2,)\", shape=box];
  n1 -> n2;
  n1 -> n2;
  o0 [label=\"a \\\"c\\\"\", shape=plaintext];
  n2 -> o0;
}
";
    assert_eq!(graph::to_dot(&[("a \"c\"", &c)]), text);
    assert!(!c.is_evaluated());
}

#[test]
fn evaluated_nodes_of_several_outputs_are_leaves_like_others() -> Result<()> {
    let one = array([-1.0f32]);
    assert_eq!(one.abs().to_vec::<f32>()?, [1.0]);
    // The same plan but for the second output of what is evaluated already.
    let a = Array::from_vec(vec![-2.0f32], &[1, 1, 1]);
    let (sign, logarithm) = lapis::linalg::slogdet(&a)?;
    sign.eval()?;
    assert_eq!(sign.abs().to_vec::<f32>()?, [1.0]);
    assert_eq!(logarithm.abs().to_vec::<f32>()?, [2f32.ln()]);
    Ok(())
}
