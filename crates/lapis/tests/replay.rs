//! Computations that are run again with other inputs.

use lapis::{Array, Dtype, Replay, Result, array, eval, ops};

fn recorded(y: &Array, inputs: &[&Array]) -> Replay {
    let ids: Vec<_> = inputs.iter().map(|a| a.id()).collect();
    Replay::record(&[y], &ids).unwrap().unwrap()
}

#[test]
fn other_inputs_give_what_a_graph_of_them_gives() -> Result<()> {
    let w = Array::from_vec((0..12).map(|i| i as f32 - 4.5).collect(), &[4, 3]);
    let f = |x: &Array, rows: &Array| -> Result<Array> {
        let y = ops::matmul(&ops::take(x, rows, 0)?, &w)?;
        ops::add(&ops::exp(&y)?, ops::sum(&y, -1, true)?)
    };
    let (x, rows) = (ops::full(&[5, 4], 0.25, Some(Dtype::Float32))?, array([1, 4]));
    eval([&x, &rows])?;
    let y = f(&x, &rows)?;
    let mut replay = recorded(&y, &[&x, &rows]);
    assert_eq!(y.to_vec::<f32>()?, f(&x, &rows)?.to_vec::<f32>()?);
    for round in 0..4 {
        let x = Array::from_vec((0..20).map(|i| (i * round) as f32 / 16.0).collect(), &[5, 4]);
        let rows = array([round, 4 - round]);
        let want = f(&x, &rows)?.to_vec::<f32>()?;
        let got = replay.run(vec![x, rows], |_| {})?;
        assert_eq!(got[0].to_vec::<f32>()?, want, "round {round}");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_and_harms_no_later_run() -> Result<()> {
    let (table, rows) = (array([[1.0f32, 2.0], [3.0, 4.0]]), array([1]));
    let y = ops::take(&table, &rows, 0)?;
    let mut replay = recorded(&y, &[&rows]);
    let refused = |inputs: Vec<Array>, replay: &mut Replay| replay.run(inputs, |_| {}).err().map(|e| e.to_string());
    for wrong in [vec![], vec![array([1, 0])], vec![array([1.0f32])], vec![array([1]), array([1])]] {
        let error = refused(wrong, &mut replay).unwrap();
        assert!(error.contains("[replay]"), "{error}");
    }
    assert_eq!(replay.run(vec![array([0])], |_| {})?[0].to_vec::<f32>()?, [1.0, 2.0]);
    Ok(())
}

#[test]
fn an_array_nobody_else_holds_is_written_in_place() -> Result<()> {
    let (all, new) = (ops::zeros::<f32>(&[64, 8])?, ops::ones::<f32>(&[1, 8])?);
    eval([&all, &new])?;
    let put = |all: &Array, new: &Array| ops::slice_update(all, new, &[(Some(3), Some(4), 1)]);
    let y = put(&all, &new)?;
    let mut replay = recorded(&y, &[&all, &new]);
    assert_eq!(all.to_vec::<f32>()?, [0.0; 512], "held here, so not written");
    let place = y.tensor()?.ptr();
    let two = ops::full(&[1, 8], 2.0, Some(Dtype::Float32))?;
    let next = replay.run(vec![y, two], |_| {})?.remove(0);
    assert_eq!(next.tensor()?.ptr(), place);
    assert_eq!(next.to_vec::<f32>()?[24..32], [2.0; 8]);
    // Longer along the last axis but one: what the update starts from alone may be.
    let longer = ops::zeros::<f32>(&[128, 8])?;
    let grown = replay.run(vec![longer, ops::ones::<f32>(&[1, 8])?], |_| {})?.remove(0);
    assert_eq!(grown.shape(), [128, 8]);
    assert_eq!(grown.to_vec::<f32>()?.iter().sum::<f32>(), 8.0);
    let wider = vec![ops::zeros::<f32>(&[64, 16])?, ops::ones::<f32>(&[1, 8])?];
    assert!(replay.run(wider, |_| {}).is_err());
    Ok(())
}

#[test]
fn what_was_given_stays_and_places_are_shared_by_turns() -> Result<()> {
    // Values that die at different times, views of them, numbers, reductions, results in the middle and seen through a view.
    let w = Array::from_vec((0..64).map(|i| (i % 7) as f32 - 3.0).collect(), &[8, 8]);
    let f = |x: &Array| -> Result<Vec<Array>> {
        let mut h = ops::matmul(x, &w)?;
        let (mut all, mut sums) = (Vec::new(), Vec::new());
        for round in 0..5 {
            let turned = ops::transpose(&h, Some(&[1, 0]))?;
            let a = ops::multiply(&ops::tanh(&h)?, &ops::full(&[4, 8], 0.5 + round as f32, Some(Dtype::Float32))?)?;
            let b = ops::matmul(&a, &w)?;
            sums.push(ops::sum(&turned, 0, false)?);
            h = ops::add(&ops::transpose(&ops::negative(&turned)?, Some(&[1, 0]))?, &ops::softmax(&b, -1)?)?;
            if round == 2 {
                all.push(ops::slice(&b, &[(Some(1), Some(3), 1)])?);
            }
        }
        all.push(ops::reshape(&h, &[32])?);
        all.push(ops::concatenate(&sums, 0)?);
        Ok(all)
    };
    let of = |seed: i32| Array::from_vec((0..32).map(|i| ((i * seed) % 11) as f32 / 8.0).collect(), &[4, 8]);
    let values = |all: &[Array]| all.iter().map(|a| a.to_vec::<f32>()).collect::<Result<Vec<_>>>();
    let x = of(1);
    eval([&x])?;
    let roots = f(&x)?;
    let mut replay = Replay::record(&roots.iter().collect::<Vec<_>>(), &[x.id()])?.unwrap();
    let mut given = vec![roots];
    for seed in 2..6 {
        given.push(replay.run(vec![of(seed)], |_| {})?);
    }
    for (seed, got) in (1..).zip(&given) {
        assert_eq!(values(got)?, values(&f(&of(seed))?)?, "seed {seed}");
    }
    Ok(())
}

#[test]
fn kernels_that_belong_to_no_backend_write_into_memory_of_their_own() -> Result<()> {
    let shift = ops::multiply(&ops::eye(3, None, 0, None)?, array(4.0f32))?;
    eval([&shift])?;
    let f = |x: &Array| -> Result<Array> {
        let inverse = lapis::linalg::inv(&ops::add(x, &shift)?)?;
        ops::abs(&lapis::fft::rfft(&inverse, None, -1, lapis::fft::FftNorm::Backward)?)
    };
    let of = |seed: i32| Array::from_vec((0..9).map(|i| ((i * seed) % 5) as f32 / 8.0).collect(), &[3, 3]);
    let x = of(1);
    eval([&x])?;
    let y = f(&x)?;
    let mut replay = recorded(&y, &[&x]);
    for seed in 2..5 {
        let got = replay.run(vec![of(seed)], |_| {})?.remove(0);
        assert_eq!(got.to_vec::<f32>()?, f(&of(seed))?.to_vec::<f32>()?, "seed {seed}");
    }
    Ok(())
}
