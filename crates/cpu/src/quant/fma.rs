//! f32 products of a few rows with a panel of decoded weights `[k][64]`.
//!
//! Each output is one chain of fused multiply-adds over `k` in ascending order, so a result depends neither on how many
//! rows there are nor on how they are tiled. With AVX-512 a tile is 6 rows x 64 columns, 24 accumulators: 10 loads for
//! 24 FMAs.

use super::panel::COLUMNS;
use crate::isa::Isa;

/// The largest number of rows in a tile.
pub(super) const ROWS: usize = 6;

/// Adds the products of `rows` (at most [`ROWS`]; `depth` unaligned f32 each) with a panel to `acc`, `[row][64]`.
///
/// # Safety
/// The pointers reach as far as the sizes say.
pub(super) unsafe fn tile(isa: Isa, panel: *const f32, depth: usize, rows: &[*const f32], acc: *mut f32) {
    // SAFETY: as the caller promises; the levels are present (they were passed).
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Avx512 => return x86::avx512(panel, depth, rows, acc),
            Isa::Avx2 => return x86::avx2(panel, depth, rows, acc),
            _ => {}
        }
        let _ = isa;
        for (r, row) in rows.iter().enumerate() {
            let acc = &mut *acc.add(r * COLUMNS).cast::<[f32; COLUMNS]>();
            for k in 0..depth {
                let (x, w) = (row.add(k).read_unaligned(), &*panel.add(k * COLUMNS).cast::<[f32; COLUMNS]>());
                for c in 0..COLUMNS {
                    acc[c] += x * w[c];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::COLUMNS;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(panel: *const f32, depth: usize, rows: &[*const f32], acc: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            match *rows {
                [a] => tile512(panel, depth, [a], acc),
                [a, b] => tile512(panel, depth, [a, b], acc),
                [a, b, c] => tile512(panel, depth, [a, b, c], acc),
                [a, b, c, d] => tile512(panel, depth, [a, b, c, d], acc),
                [a, b, c, d, e] => tile512(panel, depth, [a, b, c, d, e], acc),
                [a, b, c, d, e, f] => tile512(panel, depth, [a, b, c, d, e, f], acc),
                _ => {}
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn tile512<const R: usize>(panel: *const f32, depth: usize, rows: [*const f32; R], acc: *mut f32) {
        const V: usize = COLUMNS / 16;
        // SAFETY: as the caller promises.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            for r in 0..R {
                for v in 0..V {
                    sums[r][v] = _mm512_loadu_ps(acc.add(r * COLUMNS + 16 * v));
                }
            }
            for k in 0..depth {
                let mut w = [_mm512_setzero_ps(); V];
                for v in 0..V {
                    w[v] = _mm512_loadu_ps(panel.add(k * COLUMNS + 16 * v));
                }
                for r in 0..R {
                    let x = _mm512_set1_ps(rows[r].add(k).read_unaligned());
                    for v in 0..V {
                        sums[r][v] = _mm512_fmadd_ps(x, w[v], sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    _mm512_storeu_ps(acc.add(r * COLUMNS + 16 * v), sums[r][v]);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(panel: *const f32, depth: usize, rows: &[*const f32], acc: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe {
            for (i, rows) in rows.chunks(3).enumerate() {
                let acc = acc.add(3 * i * COLUMNS);
                match *rows {
                    [a] => tile256(panel, depth, [a], acc),
                    [a, b] => tile256(panel, depth, [a, b], acc),
                    [a, b, c] => tile256(panel, depth, [a, b, c], acc),
                    _ => {}
                }
            }
        }
    }

    /// `R` rows, 32 columns at a time.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile256<const R: usize>(panel: *const f32, depth: usize, rows: [*const f32; R], acc: *mut f32) {
        const V: usize = 4;
        // SAFETY: as the caller promises.
        unsafe {
            for half in 0..COLUMNS / (8 * V) {
                let (panel, acc) = (panel.add(8 * V * half), acc.add(8 * V * half));
                let mut sums = [[_mm256_setzero_ps(); V]; R];
                for r in 0..R {
                    for v in 0..V {
                        sums[r][v] = _mm256_loadu_ps(acc.add(r * COLUMNS + 8 * v));
                    }
                }
                for k in 0..depth {
                    let mut x = [_mm256_setzero_ps(); R];
                    for r in 0..R {
                        x[r] = _mm256_set1_ps(rows[r].add(k).read_unaligned());
                    }
                    for v in 0..V {
                        let w = _mm256_loadu_ps(panel.add(k * COLUMNS + 8 * v));
                        for r in 0..R {
                            sums[r][v] = _mm256_fmadd_ps(x[r], w, sums[r][v]);
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        _mm256_storeu_ps(acc.add(r * COLUMNS + 8 * v), sums[r][v]);
                    }
                }
            }
        }
    }
}
