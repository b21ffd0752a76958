//! Random words and the functions inside the distributions, bit by bit, at every level.

use lapis_cpu::isa::{self, Isa};
use lapis_cpu::math::{Unary, unary_slice};
use lapis_cpu::pool;
use lapis_cpu::random::{random_bits, threefry};

fn lines() -> impl Iterator<Item = Vec<&'static str>> {
    include_str!("../testdata/random.txt").lines().filter(|l| !l.starts_with('#')).map(|l| l.split(' ').collect())
}

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text, 16).expect("a bit pattern")
}

fn bits(level: Isa, key: [u32; 2], n: usize) -> Vec<u32> {
    let mut out = vec![0; n];
    random_bits(level, key, &mut out);
    out
}

#[test]
fn known_hashes() {
    assert_eq!(threefry([0, 0], 0, 0), [0x6b200159, 0x99ba4efe]);
    assert_eq!(threefry([u32::MAX; 2], u32::MAX, u32::MAX), [0x1cb996fc, 0xbb002be7]);
}

#[test]
fn words_of_a_key() {
    for line in lines().filter(|l| l[0] == "bits") {
        let want: Vec<u32> = line[4..].iter().map(|w| hex(w)).collect();
        for level in isa::available() {
            assert_eq!(bits(level, [hex(line[1]), hex(line[2])], want.len()), want, "{}", level.name());
        }
    }
    // The three keys that come from splitting key 0.
    let split = [2467461003, 428148500, 3186719485, 3840466878, 2562233961, 1946702221];
    assert_eq!(bits(isa::isa(), [0, 0], 6), split);
}

#[test]
fn words_do_not_depend_on_threads_or_level() {
    for n in [0, 1, 100_000, 100_001] {
        let want: Vec<u32> = {
            let (half, odd) = (n / 2, n % 2);
            let hash = |i: usize| threefry([3, 4], i as u32, (i + half + odd) as u32);
            let middle = (odd == 1).then(|| threefry([3, 4], half as u32, 0)[0]);
            (0..half).map(|i| hash(i)[0]).chain(middle).chain((0..half).map(|i| hash(i)[1])).collect()
        };
        for level in isa::available() {
            for threads in [1, 2, 5] {
                assert!(pool::with_threads(threads, || bits(level, [3, 4], n)) == want);
            }
        }
    }
}

#[test]
fn functions_repeat_every_bit() {
    for (name, f) in
        [("log", Unary::RandomLog), ("exp", Unary::RandomExp), ("erf", Unary::RandomErf), ("erfinv", Unary::Erfinv)]
    {
        let rows: Vec<_> = lines().filter(|l| l[0] == name).map(|l| (hex(l[1]), hex(l[2]))).collect();
        assert!(rows.len() > 200);
        let x: Vec<f32> = rows.iter().map(|r| f32::from_bits(r.0)).collect();
        for level in isa::available() {
            let mut y = vec![0.0; x.len()];
            unary_slice(level, f, &x, &mut y);
            for (&y, &(x, want)) in y.iter().zip(&rows) {
                let (x, want) = (f32::from_bits(x), f32::from_bits(want));
                let same = y.to_bits() == want.to_bits() || y.is_nan() && want.is_nan();
                assert!(same, "{name}({x:e}) = {y:e} at {}, want {want:e}", level.name());
            }
        }
    }
}
