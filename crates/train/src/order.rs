//! The order of batches: NumPy's legacy `RandomState(seed).permutation`, so that a run can be compared with mlx-lm's.
//!
//! A Mersenne twister (Matsumoto and Nishimura 1998), seeded as its authors do, and a shuffle that draws masked numbers until
//! one is in range.

const N: usize = 624;
const M: usize = 397;

/// The generator; its state is data, to be saved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Order {
    key: Vec<u32>,
    at: usize,
}

impl Order {
    pub(crate) fn new(seed: u64) -> Order {
        let mut key = vec![0u32; N];
        let mut word = seed as u32;
        for (i, slot) in key.iter_mut().enumerate() {
            *slot = word;
            word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(i as u32 + 1);
        }
        Order { key, at: N }
    }

    /// As numbers: the key, then the place in it.
    pub(crate) fn state(&self) -> Vec<u32> {
        self.key.iter().copied().chain([self.at as u32]).collect()
    }

    /// Of such numbers.
    pub(crate) fn from_state(state: &[u32]) -> Option<Order> {
        let (&at, key) = state.split_last()?;
        (key.len() == N && at as usize <= N).then(|| Order { key: key.to_vec(), at: at as usize })
    }

    fn next(&mut self) -> u32 {
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

    /// A number from 0 to `max`.
    fn up_to(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// The numbers below `n` in some order.
    pub(crate) fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            let j = self.up_to(i as u32) as usize;
            all.swap(i, j);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::Order;

    /// `np.random.seed(s); np.random.permutation(n)`, twice.
    #[test]
    fn numpys_permutations() {
        let mut zero = Order::new(0);
        assert_eq!(zero.permutation(10), [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]);
        assert_eq!(zero.permutation(7), [3, 1, 2, 6, 5, 0, 4]);
        let mut other = Order::new(1234);
        let many = other.permutation(1000);
        assert_eq!(many[..6], [681, 990, 155, 768, 438, 363]);
        let mut again = Order::from_state(&other.state()).unwrap();
        assert_eq!(again.permutation(50), other.permutation(50));
        assert_eq!(zero.permutation(1), [0]);
        assert!(zero.permutation(0).is_empty());
    }
}
