//! Scans, sorts, searches and statistics against plain loops.

use lapis::prelude::*;

fn sample(n: usize) -> Vec<f32> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) % 1000) as f32 / 8.0 - 60.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn sorting_is_stable_with_nan_last() {
    for n in [0, 1, 5, 1000, 200_000] {
        let mut data = sample(n);
        if n > 3 {
            data[1] = f32::NAN;
        }
        let a = Array::from_slice(&data, &[n]);
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(|&i, &j| {
            let (x, y) = (data[i as usize], data[j as usize]);
            x.is_nan().cmp(&y.is_nan()).then(x.partial_cmp(&y).unwrap_or(std::cmp::Ordering::Equal))
        });
        assert_eq!(ops::argsort(&a, Some(-1)).unwrap().to_vec::<u32>().unwrap(), order);
        let sorted = ops::sort(&a, Some(0)).unwrap().to_vec::<f32>().unwrap();
        for (s, &i) in sorted.iter().zip(&order) {
            assert!(s.to_bits() == data[i as usize].to_bits());
        }
    }
}

#[test]
fn partition_and_topk() {
    let a = Array::from_vec(sample(500), &[5, 100]);
    let part = ops::partition(&a, 30, Some(1)).unwrap().to_vec::<f32>().unwrap();
    for row in part.chunks(100) {
        assert!(row[..30].iter().all(|&x| x <= row[30]) && row[31..].iter().all(|&x| x >= row[30]));
    }
    let mut top = ops::topk(&a, 3, Some(1)).unwrap().to_vec::<f32>().unwrap()[..3].to_vec();
    let mut want = a.to_vec::<f32>().unwrap()[..100].to_vec();
    want.sort_by(|x, y| y.total_cmp(x));
    top.sort_by(|x, y| y.total_cmp(x));
    assert_eq!(top, want[..3]);
    assert!(ops::topk(&a, 101, Some(1)).is_err());
}

/// Lines of several lots: the first of equals wins, a NaN before all, whatever the dtype and the stride.
#[test]
fn the_first_best_of_a_long_line() {
    let place = |data: &[f32], max: bool| {
        let better = |x: f32, y: f32| if max { x > y } else { x < y };
        (0..data.len()).fold(0, |best, k| match data[best].is_nan() {
            false if data[k].is_nan() || better(data[k], data[best]) => k,
            _ => best,
        }) as u32
    };
    for n in [1, 1023, 1024, 1025, 5000] {
        for nan in [None, Some(n - 1), Some(n / 2)] {
            let mut data = sample(n);
            data[nan.unwrap_or(0)] = if nan.is_some() { f32::NAN } else { 60.0 };
            let a = Array::from_slice(&data, &[n, 1]);
            // Two columns: lines with gaps between their elements.
            let both = ops::concatenate(&[a.clone(), ops::negative(&a).unwrap()], 1).unwrap();
            for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16, Dtype::Float64] {
                let typed = both.astype(dtype);
                let seen = typed.astype(Dtype::Float32).to_vec::<f32>().unwrap();
                let columns: [Vec<f32>; 2] = [0, 1].map(|c| seen.iter().skip(c).step_by(2).copied().collect());
                let (most, least) = (ops::argmax(&typed, Some(0), false), ops::argmin(&typed, Some(0), false));
                let want = |max| columns.each_ref().map(|c| place(c, max));
                assert_eq!(most.unwrap().to_vec::<u32>().unwrap(), want(true), "{dtype} {n} {nan:?}");
                assert_eq!(least.unwrap().to_vec::<u32>().unwrap(), want(false), "{dtype} {n} {nan:?}");
            }
        }
    }
}

#[test]
fn scans_along_any_axis() {
    let a = ops::arange(1, 13, 1, None).unwrap().reshape(&[3, 4]);
    assert_eq!(a.cumsum(0).to_vec::<i32>().unwrap(), [1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 21, 24]);
    let r = ops::cumsum(&a, Some(1), true, false, None).unwrap();
    assert_eq!(r.to_vec::<i32>().unwrap()[..4], [9, 7, 4, 0]);
    let h = ops::cumsum(&ops::full(&[4096], 1.0, Some(Dtype::Bfloat16)).unwrap(), Some(0), false, true, None).unwrap();
    assert_eq!(h.astype(Dtype::Float32).to_vec::<f32>().unwrap()[4095], 4096.0);
}

#[test]
fn statistics() {
    let data = sample(997);
    let a = Array::from_slice(&data, &[997]);
    let mean = data.iter().map(|&x| f64::from(x)).sum::<f64>() / 997.0;
    let var = data.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 996.0;
    assert!((f64::from(a.mean((), false).item::<f32>().unwrap()) - mean).abs() < 1e-5);
    assert!((f64::from(a.var((), false, 1).item::<f32>().unwrap()) - var).abs() < var * 1e-6);
    let mut sorted = data.clone();
    sorted.sort_by(f32::total_cmp);
    assert_eq!(ops::median(&a, (), false).unwrap().item::<f32>().unwrap(), sorted[498]);
    let arg = a.argmax(None, false).item::<u32>().unwrap() as usize;
    assert_eq!(data[arg], sorted[996]);
    let where_ = ops::searchsorted(&Array::from_slice(&sorted, &[997]), &array(sorted[500]), true).unwrap();
    assert_eq!(where_.item::<u32>().unwrap() as usize, sorted.partition_point(|&x| x <= sorted[500]));
    let big = ops::full(&[10_000_000], 0.1f32, None).unwrap();
    let want = f64::from(0.1f32) * 1e7;
    assert!((f64::from(big.sum((), false).item::<f32>().unwrap()) - want).abs() < 1e-6 * want);
}
