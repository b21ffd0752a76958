//! The Mersenne twister (Matsumoto and Nishimura 1998), as NumPy and Python seed and use it: orders and draws of theirs can
//! be had again.

use std::collections::HashSet;

const N: usize = 624;
const M: usize = 397;

/// The generator; its state is data, to be saved.
#[derive(Clone, Debug, PartialEq)]
pub struct Twister {
    key: Vec<u32>,
    at: usize,
}

impl Twister {
    /// Seeded as NumPy's legacy `RandomState(seed)`.
    pub fn new(seed: u64) -> Twister {
        let mut key = vec![0u32; N];
        let mut word = seed as u32;
        for (i, slot) in key.iter_mut().enumerate() {
            *slot = word;
            word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(i as u32 + 1);
        }
        Twister { key, at: N }
    }

    /// Seeded as Python's `random.Random(seed)`.
    pub fn python(seed: u64) -> Twister {
        let seed: &[u32] = &[seed as u32, (seed >> 32) as u32];
        let seed = if seed[1] == 0 { &seed[..1] } else { seed };
        let mut all = Twister::new(19_650_218);
        let key = &mut all.key;
        let (mut i, mut j) = (1, 0);
        let mixed =
            |key: &[u32], i: usize, factor: u32| key[i] ^ (key[i - 1] ^ (key[i - 1] >> 30)).wrapping_mul(factor);
        for _ in 0..N {
            key[i] = mixed(key, i, 1_664_525).wrapping_add(seed[j]).wrapping_add(j as u32);
            (i, j) = (i + 1, (j + 1) % seed.len());
            if i == N {
                key[0] = key[N - 1];
                i = 1;
            }
        }
        for _ in 1..N {
            key[i] = mixed(key, i, 1_566_083_941).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                key[0] = key[N - 1];
                i = 1;
            }
        }
        key[0] = 0x8000_0000;
        all
    }

    /// As numbers: the key, then the place in it.
    pub fn state(&self) -> Vec<u32> {
        self.key.iter().copied().chain([self.at as u32]).collect()
    }

    /// Of such numbers.
    pub fn from_state(state: &[u32]) -> Option<Twister> {
        let (&at, key) = state.split_last()?;
        (key.len() == N && at as usize <= N).then(|| Twister { key: key.to_vec(), at: at as usize })
    }

    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let y = (self.key[i] & 0x8000_0000) | (self.key[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.key[i] = self.key[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.key[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number from 0 to `max`, as NumPy's legacy generators draw it.
    fn up_to(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.bits() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// The numbers below `n` in some order: NumPy's `RandomState.permutation`.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            let j = self.up_to(i as u32) as usize;
            all.swap(i, j);
        }
        all
    }

    /// A number below `n`, which is 1 at least: Python's `randrange`.
    pub fn below(&mut self, n: usize) -> usize {
        let shift = (n as u32).leading_zeros();
        loop {
            let value = (self.bits() >> shift) as usize;
            if value < n {
                return value;
            }
        }
    }

    /// `k` of the numbers below `n`, each once; `n` of them at most: Python's `random.sample`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        let mut few = 21;
        if k > 5 {
            few += 4usize.pow((k as f64 * 3.0).log(4.0).ceil() as u32);
        }
        if n <= few {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect();
        }
        let mut seen = HashSet::new();
        let mut all = Vec::with_capacity(k);
        while all.len() < k {
            let j = self.below(n);
            if seen.insert(j) {
                all.push(j);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::Twister;

    /// `np.random.seed(s); np.random.permutation(n)`, twice.
    #[test]
    fn numpys_permutations() {
        let mut zero = Twister::new(0);
        assert_eq!(zero.permutation(10), [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]);
        assert_eq!(zero.permutation(7), [3, 1, 2, 6, 5, 0, 4]);
        let mut other = Twister::new(1234);
        let many = other.permutation(1000);
        assert_eq!(many[..6], [681, 990, 155, 768, 438, 363]);
        let mut again = Twister::from_state(&other.state()).unwrap();
        assert_eq!(again.permutation(50), other.permutation(50));
        assert_eq!(zero.permutation(1), [0]);
        assert!(zero.permutation(0).is_empty());
    }

    /// `r = random.Random(123); r.sample(range(10), 3)`, and so on.
    #[test]
    fn pythons_samples() {
        let mut r = Twister::python(123);
        assert_eq!(r.sample(10, 3), [0, 4, 1]);
        assert_eq!(r.sample(1000, 7), [787, 417, 272, 110, 858, 922, 895]);
        assert_eq!(r.sample(30, 6), [1, 12, 17, 27, 10, 25]);
        assert_eq!((r.below(1), r.sample(3, 9).len()), (0, 3));
        assert_eq!(Twister::python((1 << 33) + 5).sample(5000, 4), [2306, 1395, 4652, 4148]);
    }
}
