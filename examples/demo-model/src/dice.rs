//! Draws for the text: the same for the same seed and place, on any machine. Knows no text.

use lapis::random;

/// Draws of one place of the text.
pub(crate) struct Dice {
    key: u64,
    drawn: Vec<u32>,
    blocks: u64,
}

impl Dice {
    /// The draws of `place` under `seed`.
    pub(crate) fn new(seed: u64, place: u64) -> Dice {
        Dice { key: mixed(mixed(seed) ^ place), drawn: Vec::new(), blocks: 0 }
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        if self.drawn.is_empty() {
            let key = random::key(mixed(self.key ^ self.blocks));
            self.drawn = random::bits(&[64], Some(&key)).and_then(|b| b.to_vec::<u32>()).expect("64 words of bits");
            self.blocks += 1;
        }
        let bits = self.drawn.pop().unwrap_or(0);
        ((u64::from(bits) * n as u64) >> 32) as usize
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `all`, which is not empty.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): neighbouring numbers to unrelated ones.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
