//! Copies between layouts, in blocks of the two innermost loops.
//!
//! Moves every element once in and once out: rows at memory speed. Where one side is contiguous along another axis
//! than the other (a transpose), square tiles keep the lines of both in the first-level cache; with 4- and 8-byte
//! elements they reach two thirds of memory speed, with 1-byte ones a sixth.

use super::window::GRAIN;
use crate::geometry::Loops;
use crate::pool::{self, SendPtr};
use crate::simd::{self, Kernel, Simd};
use lapis_core::buffer::Tensor;

/// Side of a tile, in elements.
const TILE: usize = 64;

/// Copies `src` to `dst`, which has its shape and size of elements; both with any strides.
pub(crate) fn copy(dst: &Tensor, src: &Tensor) {
    if dst.size() == 0 {
        return;
    }
    let mut loops = Loops::new(&dst.shape, &[&dst.strides, &src.strides]);
    let inner = loops.shape.len() - 1;
    // The axis along which the source is contiguous comes second.
    if loops.strides[1][inner] != 1
        && let Some(axis) = (0..inner).rev().find(|&i| loops.strides[1][i] == 1)
    {
        loops.swap(axis, inner - 1);
    }
    let columns = Side { len: loops.shape[inner], ds: loops.strides[0][inner], ss: loops.strides[1][inner] };
    let size = dst.dtype.size();
    if inner == 0 || (columns.is_contiguous() && columns.len * size >= GRAIN) {
        return lines(&loops, size, dst, src);
    }
    loops.drop_inner();
    let row = Side { len: 0, ds: loops.strides[0][inner - 1], ss: loops.strides[1][inner - 1] };
    let block: BlockFn = match size {
        1 => block::<u8, 8>,
        2 => block::<u16, 4>,
        4 => block::<u32, 4>,
        _ => block::<u64, 2>,
    };
    let (to, from) = (SendPtr(dst.ptr()), SendPtr(src.ptr()));
    let rows = loops.shape.iter().product();
    let grain = (GRAIN / (columns.len * size)).max(1).next_multiple_of(TILE);
    pool::for_each_chunk(rows, grain, &|range| {
        loops.rows_of([0, 1], range.start, range.len(), |_, [d, s], len| {
            let (d, s) = (d * size as isize, s * size as isize);
            // SAFETY: the nest stays inside both tensors; chunks share no element of `dst`.
            unsafe { block(to.get().offset(d), from.get().offset(s), Side { len, ..row }, columns) }
        });
    });
}

/// Long lines, cut among tasks.
fn lines(loops: &Loops, size: usize, dst: &Tensor, src: &Tensor) {
    let inner = loops.shape.len() - 1;
    let (ds, ss) = (loops.strides[0][inner], loops.strides[1][inner]);
    let line = super::combine::copy_fn(size);
    let (to, from) = (SendPtr(dst.ptr()), SendPtr(src.ptr()));
    pool::for_each_chunk(loops.shape.iter().product(), GRAIN / size, &|range| {
        loops.rows_of([0, 1], range.start, range.len(), |_, [d, s], len| {
            let (d, s) = (d * size as isize, s * size as isize);
            // SAFETY: the nest stays inside both tensors; chunks share no element of `dst`.
            unsafe { line(to.get().offset(d), ds, from.get().offset(s), ss, len) }
        });
    });
}

/// One loop of a block: how often, and the strides in elements.
#[derive(Clone, Copy)]
struct Side {
    len: usize,
    ds: isize,
    ss: isize,
}

impl Side {
    fn is_contiguous(self) -> bool {
        self.ds == 1 && self.ss == 1
    }
}

type BlockFn = unsafe fn(*mut u8, *const u8, Side, Side);

/// Copies a block of rows and columns; transposes go by panels of `K` columns.
///
/// # Safety
/// All its elements can be read and written, and the two sides do not overlap.
unsafe fn block<T: Copy + Default, const K: usize>(dst: *mut u8, src: *const u8, rows: Side, columns: Side) {
    let (dst, src) = (dst.cast::<T>(), src.cast::<T>());
    // The caller vouches for rows times columns elements on both sides.
    if columns.is_contiguous() && columns.len > 8 {
        for r in 0..rows.len as isize {
            // SAFETY: as said above.
            unsafe { std::ptr::copy_nonoverlapping(src.offset(r * rows.ss), dst.offset(r * rows.ds), columns.len) };
        }
    } else if rows.ss == 1 && columns.ds == 1 && columns.ss != 0 && columns.len >= 8 {
        simd::dispatch(Transpose::<T, K> {
            dst,
            ds: rows.ds,
            src,
            ss: columns.ss,
            rows: rows.len,
            columns: columns.len,
        });
    } else {
        for r in 0..rows.len as isize {
            for c in 0..columns.len as isize {
                // SAFETY: as said above.
                unsafe {
                    let value = src.offset(r * rows.ss + c * columns.ss).read();
                    dst.offset(r * rows.ds + c * columns.ds).write(value);
                }
            }
        }
    }
}

/// A column-major block written row by row: rows of `dst` are `ds` apart, columns of `src` `ss`.
///
/// Tiles pass through panels of `K` columns, which the compiler interleaves with shuffles, and whose lines do not
/// collide in the cache as those of a stride of a power of two do.
struct Transpose<T, const K: usize> {
    dst: *mut T,
    ds: isize,
    src: *const T,
    ss: isize,
    rows: usize,
    columns: usize,
}

impl<T: Copy + Default, const K: usize> Kernel for Transpose<T, K> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let mut panels = [[[T::default(); K]; TILE]; TILE];
        let panels = &mut panels[..TILE / K];
        for c0 in (0..self.columns).step_by(TILE) {
            for r0 in (0..self.rows).step_by(TILE) {
                let (width, height) = (TILE.min(self.columns - c0), TILE.min(self.rows - r0));
                let src = self.src.wrapping_offset(c0 as isize * self.ss).wrapping_add(r0);
                let dst = self.dst.wrapping_offset(r0 as isize * self.ds).wrapping_add(c0);
                // SAFETY: the tile lies inside the block, for which whoever made this vouches.
                unsafe {
                    if width < TILE || height < TILE {
                        for r in 0..height {
                            for c in 0..width {
                                let value = src.offset(c as isize * self.ss).add(r).read();
                                dst.offset(r as isize * self.ds).add(c).write(value);
                            }
                        }
                        continue;
                    }
                    for (p, panel) in panels.iter_mut().enumerate() {
                        let columns: [*const T; K] =
                            std::array::from_fn(|k| src.wrapping_offset((p * K + k) as isize * self.ss));
                        for r in 0..TILE {
                            for k in 0..K {
                                panel[r][k] = columns[k].add(r).read();
                            }
                        }
                    }
                    for r in 0..TILE {
                        let row = dst.offset(r as isize * self.ds);
                        for (p, panel) in panels.iter().enumerate() {
                            row.add(p * K).cast::<[T; K]>().write_unaligned(panel[r]);
                        }
                    }
                }
            }
        }
    }
}
