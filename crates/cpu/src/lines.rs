//! The lines of a tensor along one axis, one after the other in contiguous scratch.

use crate::pool;
use lapis_core::buffer::Tensor;
use smallvec::SmallVec;
use std::ops::Range;

/// All lines of a tensor along an axis.
pub(crate) struct Lines {
    ptr: usize,
    /// Elements of a line, and the distance between them.
    pub(crate) len: usize,
    step: isize,
    shape: SmallVec<[usize; 4]>,
    strides: SmallVec<[isize; 4]>,
}

impl Lines {
    pub(crate) fn new(t: &Tensor, axis: usize) -> Lines {
        let mut shape: SmallVec<[usize; 4]> = t.shape.clone();
        let mut strides: SmallVec<[isize; 4]> = t.strides.clone();
        let (len, step) = (shape.remove(axis), strides.remove(axis));
        Lines { ptr: t.ptr() as usize, len, step, shape, strides }
    }

    /// Number of lines.
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// First element of line `i`, in row-major order of the other axes.
    pub(crate) fn start<T>(&self, mut i: usize) -> *mut T {
        let mut offset = 0;
        for (&d, &s) in self.shape.iter().zip(&self.strides).rev() {
            offset += (i % d) as isize * s;
            i /= d;
        }
        (self.ptr as *mut T).wrapping_offset(offset)
    }

    /// Copies line `i` to `to`.
    ///
    /// # Safety
    /// `T` is the element type; nobody writes the tensor.
    pub(crate) unsafe fn read<T: Copy>(&self, i: usize, to: &mut Vec<T>) {
        // SAFETY: passed on.
        unsafe { self.read_part(i, 0..self.len, to) }
    }

    /// Copies the elements `part` of line `i` to `to`.
    ///
    /// # Safety
    /// `T` is the element type; nobody writes these elements; the line has them.
    pub(crate) unsafe fn read_part<T: Copy>(&self, i: usize, part: Range<usize>, to: &mut Vec<T>) {
        let p: *const T = self.start(i);
        to.clear();
        // SAFETY: the line lies in the tensor.
        unsafe {
            if self.step == 1 {
                to.extend_from_slice(std::slice::from_raw_parts(p.add(part.start), part.len()));
            } else {
                to.extend(part.map(|k| p.offset(k as isize * self.step).read()));
            }
        }
    }

    /// Writes `from` to line `i`.
    ///
    /// # Safety
    /// `T` is the element type; nobody else uses the line; `from` is as long as the line.
    pub(crate) unsafe fn write<T: Copy>(&self, i: usize, from: &[T]) {
        // SAFETY: passed on.
        unsafe { self.write_part(i, 0, from) }
    }

    /// Writes `from` to line `i` from element `first` on.
    ///
    /// # Safety
    /// `T` is the element type; nobody else uses these elements; the line has them.
    pub(crate) unsafe fn write_part<T: Copy>(&self, i: usize, first: usize, from: &[T]) {
        let p: *mut T = self.start(i);
        for (k, &v) in (first..).zip(from) {
            // SAFETY: the line lies in the tensor.
            unsafe { p.offset(k as isize * self.step).write(v) };
        }
    }
}

/// Calls `f` for ranges of `count` lines of `len` elements each, in parallel when that is much work.
pub(crate) fn for_lines(count: usize, len: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    if len > 0 {
        pool::for_each_chunk(count, (16usize << 10).div_ceil(len), f);
    }
}

/// Types as the line kernels see them: halves become f32.
pub(crate) trait Lane: Copy + Send + Sync + 'static {
    /// The type comparisons and sums are made in.
    type Wide: Copy + Default + PartialOrd + Send + Sync + 'static;
    fn wide(self) -> Self::Wide;
    fn is_nan(self) -> bool;
    /// Ordered, NaN last and all NaN equal.
    fn before(self, other: Self) -> bool {
        match (self.is_nan(), other.is_nan()) {
            (false, false) => self.wide() < other.wide(),
            (a, b) => !a & b,
        }
    }
}

macro_rules! plain {
    ($($t:ty: $nan:expr;)*) => {$(
        impl Lane for $t {
            type Wide = $t;
            #[inline(always)]
            fn wide(self) -> $t {
                self
            }
            #[inline(always)]
            #[allow(clippy::redundant_closure_call)]
            fn is_nan(self) -> bool {
                $nan(self)
            }
        }
    )*};
}
plain! {
    u8: |_| false; u16: |_| false; u32: |_| false; u64: |_| false;
    i8: |_| false; i16: |_| false; i32: |_| false; i64: |_| false;
    f32: |x: f32| x.is_nan(); f64: |x: f64| x.is_nan();
}

macro_rules! halves {
    ($($t:ty),*) => {$(
        impl Lane for $t {
            type Wide = f32;
            #[inline(always)]
            fn wide(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
        }
    )*};
}
halves!(half::f16, half::bf16);

/// A complex number ordered by real, then imaginary part.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Pair(pub(crate) f32, pub(crate) f32);

impl PartialOrd for Pair {
    fn partial_cmp(&self, o: &Pair) -> Option<std::cmp::Ordering> {
        (self.0, self.1).partial_cmp(&(o.0, o.1))
    }
}
impl Lane for Pair {
    type Wide = Pair;
    fn wide(self) -> Pair {
        self
    }
    fn is_nan(self) -> bool {
        self.0.is_nan() || self.1.is_nan()
    }
}

/// Calls `$f::<T>(...)` with the element type of a dtype.
macro_rules! with_lane {
    ($dtype:expr, $f:ident($($arg:expr),*)) => {
        match $dtype {
            Dtype::Bool | Dtype::Uint8 => $f::<u8>($($arg),*),
            Dtype::Uint16 => $f::<u16>($($arg),*),
            Dtype::Uint32 => $f::<u32>($($arg),*),
            Dtype::Uint64 => $f::<u64>($($arg),*),
            Dtype::Int8 => $f::<i8>($($arg),*),
            Dtype::Int16 => $f::<i16>($($arg),*),
            Dtype::Int32 => $f::<i32>($($arg),*),
            Dtype::Int64 => $f::<i64>($($arg),*),
            Dtype::Float16 => $f::<half::f16>($($arg),*),
            Dtype::Bfloat16 => $f::<half::bf16>($($arg),*),
            Dtype::Float32 => $f::<f32>($($arg),*),
            Dtype::Float64 => $f::<f64>($($arg),*),
            Dtype::Complex64 => $f::<$crate::lines::Pair>($($arg),*),
        }
    };
}
pub(crate) use with_lane;
