//! Collectives among processes that `mpirun` starts: each test starts itself again, two and three times over. Without `mpirun`
//! they say so and pass.

use half::{bf16, f16};
use lapis::distributed::{self, Group};
use lapis::transforms::{grad, jvp};
use lapis::{Array, Dtype, array, ops};
use lapis_mpi as _;
use std::process::Command;

/// Runs `body` in each of `n` processes.
fn together(name: &str, n: usize, body: impl Fn(Group)) {
    if std::env::var_os("OMPI_COMM_WORLD_SIZE").is_some() {
        let group = distributed::init(true).unwrap();
        assert_eq!(group.size().to_string(), std::env::var("OMPI_COMM_WORLD_SIZE").unwrap());
        body(group);
        return distributed::leave();
    }
    assert_eq!(distributed::init(false).unwrap().size(), 1);
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["-n", &n.to_string(), "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]);
    mpirun.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    mpirun.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--test-threads", "1"]);
    match mpirun.output() {
        Err(e) => eprintln!("{name} is not tried: mpirun: {e}"),
        Ok(done) => {
            let told = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success() && told.matches("1 passed").count() == n, "{told}");
        }
    }
}

/// Numbers of a process without a pattern, between -1 and 1.
fn numbers(rank: usize, n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(rank as u64 + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn sums_are_added_in_the_order_of_ranks() {
    together("sums_are_added_in_the_order_of_ranks", 3, |group| {
        let (rank, n) = (group.rank(), group.size());
        // One exchange; several parts with a rest; more than one round.
        for length in [0, 1, 5, 100_003, 4_500_001] {
            let mut sums = numbers(0, length);
            for other in 1..n {
                sums.iter_mut().zip(numbers(other, length)).for_each(|(sum, x)| *sum += x);
            }
            let own = Array::from_vec(numbers(rank, length), &[length]);
            let sum = group.all_sum(&own).unwrap().to_vec::<f32>().unwrap();
            assert!(sum.iter().zip(&sums).all(|(a, b)| a.to_bits() == b.to_bits()), "{length}");
        }
    });
}

#[test]
fn every_type_and_kind() {
    together("every_type_and_kind", 3, |group| {
        let (rank, n) = (group.rank(), group.size());
        let own = array([rank as f32 + 1.0, -(rank as f32), 100.0]);
        for dtype in [
            Dtype::Uint8,
            Dtype::Uint16,
            Dtype::Uint32,
            Dtype::Uint64,
            Dtype::Int8,
            Dtype::Int16,
            Dtype::Int32,
            Dtype::Int64,
            Dtype::Float16,
            Dtype::Bfloat16,
            Dtype::Float32,
            Dtype::Float64,
            Dtype::Complex64,
        ] {
            let signed = !matches!(dtype, Dtype::Uint8 | Dtype::Uint16 | Dtype::Uint32 | Dtype::Uint64);
            let own = ops::astype(&if signed { own.clone() } else { own.abs() }, dtype).unwrap();
            let f32 = |a: Array| ops::astype(&a, Dtype::Float32).unwrap().to_vec::<f32>().unwrap();
            let third = if matches!(dtype, Dtype::Int8 | Dtype::Uint8) { 44.0 } else { 300.0 };
            let least = if signed { -2.0 } else { 0.0 };
            let sum = if signed { -3.0 } else { 3.0 };
            assert_eq!(f32(group.all_sum(&own).unwrap()), [6.0, sum, third], "{dtype}");
            if !dtype.is_complex() {
                assert_eq!(f32(group.all_max(&own).unwrap()), [3.0, if signed { 0.0 } else { 2.0 }, 100.0], "{dtype}");
                assert_eq!(f32(group.all_min(&own).unwrap()), [1.0, least, 100.0], "{dtype}");
            }
            let all = group.all_gather(&own).unwrap();
            assert_eq!(all.shape(), [3 * n]);
            assert_eq!(f32(all)[3..6], [2.0, if signed { -1.0 } else { 1.0 }, 100.0], "{dtype}");
        }
        let truth = array([rank == 1, false]);
        assert_eq!(group.all_sum(&truth).unwrap().to_vec::<bool>().unwrap(), [true, false]);
        // Half precision is added in f32 and rounded once.
        let tiny = f16::from_f32(if rank == 0 { 1.0 } else { 2f32.powi(-11) });
        let sum = group.all_sum(&Array::from_vec(vec![tiny], &[1])).unwrap().to_vec::<f16>().unwrap();
        assert_eq!(sum[0].to_f32(), 1.0 + 2f32.powi(-10));
        let tiny = bf16::from_f32(if rank == 0 { 1.0 } else { 2f32.powi(-8) });
        let sum = group.all_sum(&Array::from_vec(vec![tiny], &[1])).unwrap().to_vec::<bf16>().unwrap();
        assert_eq!(sum[0].to_f32(), 1.0 + 2f32.powi(-7));
        let nan = array([if rank == 1 { f32::NAN } else { 1.0 }]);
        assert!(group.all_max(&nan).unwrap().item::<f32>().unwrap().is_nan());
        assert!(group.all_min(&nan).unwrap().item::<f32>().unwrap().is_nan());
    });
}

#[test]
fn arrays_travel() {
    together("arrays_travel", 3, |group| {
        let (rank, n) = (group.rank(), group.size());
        // Strides are those of a view.
        let own = ops::transpose(&Array::from_vec(numbers(rank, 6), &[2, 3]), None).unwrap();
        let all = group.all_gather(&own).unwrap();
        assert_eq!(all.shape(), [3 * n, 2]);
        let theirs = ops::transpose(&Array::from_vec(numbers(2, 6), &[2, 3]), None).unwrap();
        assert_eq!(all.to_vec::<f32>().unwrap()[12..], theirs.to_vec::<f32>().unwrap());
        // 17 MB each: more than one round.
        let long = 4_300_000;
        let all = group.all_gather(&Array::from_vec(numbers(rank, long), &[long])).unwrap().to_vec::<f32>().unwrap();
        assert!((0..n).all(|r| all[r * long..(r + 1) * long] == numbers(r, long)));
        let part = group.sum_scatter(&Array::from_vec((0..6).map(|i| (i * (rank as i32 + 1)) as f32).collect(), &[6]));
        assert_eq!(part.unwrap().to_vec::<f32>().unwrap(), [12.0 * rank as f32, 6.0 + 12.0 * rank as f32]);
        let e = group.sum_scatter(&array([1.0f32, 2.0])).unwrap_err();
        assert!(e.message().contains("does not divide among 3"), "{e}");
        let told = group.broadcast(&array([rank as i32 + 7]), 1).unwrap();
        assert_eq!(told.to_vec::<i32>().unwrap(), [8]);
        // Around in a ring.
        let (next, before) = ((rank + 1) % n, (rank + n - 1) % n);
        let own = array([rank as f64, 0.5]);
        if rank == 0 {
            group.send(&own, next).unwrap().eval().unwrap();
        }
        let got = group.recv_like(&own, before).unwrap().to_vec::<f64>().unwrap();
        if rank > 0 {
            group.send(&own, next).unwrap().eval().unwrap();
        }
        assert_eq!(got, [before as f64, 0.5]);
        assert!(group.send(&own, rank).is_err() && group.recv_like(&own, 3).is_err());
        // 0 and 2, then 1.
        let half = group.split(rank % 2).unwrap();
        assert_eq!((half.size(), half.rank()), if rank == 1 { (1, 0) } else { (2, rank / 2) });
        assert_eq!(half.all_sum(&array(rank as i32)).unwrap().item::<i32>().unwrap(), if rank == 1 { 1 } else { 2 });
        group.barrier().unwrap();
    });
}

#[test]
fn gradients_pass_as_in_mlx() {
    together("gradients_pass_as_in_mlx", 2, |group| {
        let rank = group.rank();
        let x = array([1.0f32, 2.0]);
        // A sum passes them as they are, a gathered array gives each its part.
        let g = grad(move |x: &Array| (group.all_sum(x).unwrap() * array([3.0f32, 5.0])).sum((), false))(&x).unwrap();
        assert_eq!(g.to_vec::<f32>().unwrap(), [3.0, 5.0]);
        let weights = array([1.0f32, 2.0, 3.0, 4.0]);
        let g = grad(move |x: &Array| (group.all_gather(x).unwrap() * &weights).sum((), false))(&x).unwrap();
        assert_eq!(g.to_vec::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]][rank]);
        let e = jvp(move |x: &Array| group.all_sum(x).unwrap(), &x, &x).unwrap_err();
        assert!(e.message().contains("no forward mode"), "{e}");
    });
}
