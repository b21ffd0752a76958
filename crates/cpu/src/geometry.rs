//! Loops over several strided operands at once: axes merged where all operands allow, in the order of one of them.

use smallvec::SmallVec;

/// A loop nest: sizes, and the strides of each operand in elements.
#[derive(Clone, Debug)]
pub(crate) struct Loops {
    /// Sizes, outermost first; at least one.
    pub(crate) shape: SmallVec<[usize; 6]>,
    /// For each operand, strides parallel to `shape`.
    pub(crate) strides: SmallVec<[SmallVec<[isize; 6]>; 6]>,
}

impl Loops {
    /// The nest over `shape` for operands with these strides, outermost axis first by the strides of the first
    /// operand, neighbouring axes merged where every operand is evenly spaced across both.
    pub(crate) fn new(shape: &[usize], operands: &[&[isize]]) -> Loops {
        let mut order: SmallVec<[usize; 6]> = (0..shape.len()).filter(|&i| shape[i] != 1).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(operands[0][i].unsigned_abs()));
        let mut out = Loops { shape: SmallVec::new(), strides: SmallVec::new() };
        out.strides.resize(operands.len(), SmallVec::new());
        for i in order {
            let d = shape[i];
            let merges = !out.shape.is_empty()
                && operands.iter().zip(&out.strides).all(|(op, s)| s[s.len() - 1] == op[i] * d as isize);
            let at = out.shape.len();
            if merges {
                out.shape[at - 1] *= d;
            } else {
                out.shape.push(d);
            }
            for (op, s) in operands.iter().zip(&mut out.strides) {
                if merges {
                    s[at - 1] = op[i];
                } else {
                    s.push(op[i]);
                }
            }
        }
        if out.shape.is_empty() {
            out.shape.push(1);
            out.strides.iter_mut().for_each(|s| s.push(0));
        }
        out
    }

    /// Exchanges two loops.
    pub(crate) fn swap(&mut self, a: usize, b: usize) {
        self.shape.swap(a, b);
        self.strides.iter_mut().for_each(|s| s.swap(a, b));
    }

    /// Takes the innermost loop away.
    pub(crate) fn drop_inner(&mut self) {
        self.shape.pop();
        self.strides.iter_mut().for_each(|s| s.truncate(self.shape.len()));
    }

    /// Whether operand `i` is visited without gaps in loop order.
    pub(crate) fn is_flat(&self, i: usize) -> bool {
        let mut next = 1;
        self.shape.iter().zip(&self.strides[i]).rev().all(|(&d, &s)| {
            let fits = s == next || d == 1;
            next *= d as isize;
            fits
        })
    }

    /// Whether operand `i` stays on one element.
    pub(crate) fn is_constant(&self, i: usize) -> bool {
        self.strides[i].iter().all(|&s| s == 0)
    }

    /// Calls `row(first, offset, len)` for each run of the innermost loop that lies in the flat range
    /// `start..start + len`: `first` counts from 0, `offset` is the element offset of operand `i` there.
    #[inline]
    pub(crate) fn rows(&self, i: usize, start: usize, len: usize, mut row: impl FnMut(usize, isize, usize)) {
        self.rows_of([i], start, len, |first, [offset], n| row(first, offset, n));
    }

    /// [`Loops::rows`] with the offsets of several operands.
    #[inline]
    pub(crate) fn rows_of<const N: usize>(
        &self,
        operands: [usize; N],
        start: usize,
        len: usize,
        mut row: impl FnMut(usize, [isize; N], usize),
    ) {
        let strides = operands.map(|i| self.strides[i].as_slice());
        let outer = self.shape.len() - 1;
        let inner = self.shape[outer];
        let mut index: SmallVec<[usize; 6]> = SmallVec::from_elem(0, outer);
        let mut rest = start / inner;
        let mut column = start % inner;
        let mut offset = [0isize; N];
        for d in (0..outer).rev() {
            index[d] = rest % self.shape[d];
            rest /= self.shape[d];
            for (o, s) in offset.iter_mut().zip(strides) {
                *o += index[d] as isize * s[d];
            }
        }
        let mut done = 0;
        while done < len {
            let n = (inner - column).min(len - done);
            let mut at = offset;
            for (a, s) in at.iter_mut().zip(strides) {
                *a += column as isize * s[outer];
            }
            row(done, at, n);
            done += n;
            column = 0;
            for d in (0..outer).rev() {
                index[d] += 1;
                let back = index[d] == self.shape[d];
                for (o, s) in offset.iter_mut().zip(strides) {
                    *o += s[d] - if back { s[d] * self.shape[d] as isize } else { 0 };
                }
                if !back {
                    break;
                }
                index[d] = 0;
            }
        }
    }
}
