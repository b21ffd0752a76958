//! complex64 as a real product of twice the width and depth: a row of `a` is read as reals `re, im, re, im, ...` (2k of
//! them), and every element of `b` becomes the 2 x 2 block `[[re, im], [-im, re]]`. The f32 kernels then do exactly the
//! four multiplications an element needs.

use super::driver::{self, Product};
use super::finish::Target;
use super::micro::{F32, MAX_COLS};
use super::pack;
use super::{Entry, Geometry, Layout, Scale, grouped, lanes};
use crate::isa::Isa;
use smallvec::SmallVec;
use std::ops::Range;

/// The rows of all `rows` entries times their common right side.
struct Group<'a> {
    g: &'a Geometry,
    rows: &'a [Entry],
}

/// See [`super::gemm_batched`].
pub(super) unsafe fn run(isa: Isa, layout: &Layout, entries: &[Entry]) {
    // Turned over, the two products of an imaginary part would be added in the other order.
    let (g, _) = Geometry::new(layout, false);
    let entries = grouped(entries, false);
    let jobs: SmallVec<[_; 4]> = entries.chunk_by(|x, y| x.b == y.b).map(|rows| Group { g: &g, rows }).collect();
    // SAFETY: handed on.
    unsafe { driver::run::<F32>(isa, &jobs) }
}

impl Product<F32> for Group<'_> {
    fn size(&self) -> (usize, usize, usize) {
        (self.rows.len() * self.g.m, 2 * self.g.n, 2 * self.g.k)
    }

    unsafe fn pack_lhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut f32) {
        let (rs, cs) = self.g.a;
        let row = |l: usize| {
            let (r, m) = (lane + l, self.g.m);
            // SAFETY: a row inside the matrix.
            unsafe { self.rows[r / m].a.cast::<f32>().offset(2 * (r % m) as isize * rs) }
        };
        // SAFETY: rows and steps inside the matrices.
        unsafe {
            if cs == 1 {
                let lanes = lanes(count, |l| row(l).add(ks.start));
                return pack::pack::<F32, f32>(isa, &lanes, false, 1, ks.len(), count, w, dst);
            }
            for l in 0..count {
                for (step, k) in ks.clone().enumerate() {
                    *dst.add(step * w + l) = *row(l).offset((k / 2) as isize * 2 * cs + (k % 2) as isize);
                }
            }
        }
    }

    unsafe fn pack_rhs(&self, _: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut f32) {
        let (rs, cs) = self.g.b;
        let base = self.rows[0].b.cast::<f32>();
        for l in 0..w {
            let col = lane + if l < count { l } else { 0 };
            // SAFETY: columns and steps inside the matrix.
            unsafe {
                let column = base.offset((col / 2) as isize * 2 * cs);
                for (step, k) in ks.clone().enumerate() {
                    let element = column.offset((k / 2) as isize * 2 * rs);
                    *dst.add(step * w + l) = match (k % 2, col % 2) {
                        (0, 0) => *element,
                        (0, _) => *element.add(1),
                        (_, 0) => -*element.add(1),
                        _ => *element,
                    };
                }
            }
        }
    }

    unsafe fn put(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, acc: *const f32, ld: usize) {
        let mut line = [0.0; MAX_COLS];
        for (i, r) in rows.enumerate() {
            let (entry, row) = (&self.rows[r / self.g.m], (r % self.g.m) as isize);
            // Blocks begin at an even column of reals and have an even number of them.
            let col = (cols.start / 2) as isize;
            // SAFETY: the block lies inside output and `c`.
            unsafe {
                let out = entry.out.cast::<f32>().offset(2 * (row * self.g.out.0 + col));
                let (c, scale) = match &self.g.scale {
                    None => (std::ptr::null(), None),
                    Some(Scale { alpha, beta, c: (rs, cs) }) => {
                        let c = entry.c.cast::<[f32; 2]>().offset(row * rs + col * cs);
                        for j in 0..cols.len() / 2 {
                            [line[2 * j], line[2 * j + 1]] = *c.offset(j as isize * cs);
                        }
                        (line.as_ptr(), Some((*alpha, *beta)))
                    }
                };
                Target { out: (out, 0, 1), c: (c, 0, 1), scale }.put(isa, acc.add(i * ld), ld, 1, cols.len());
            }
        }
    }
}
