//! What an update does to one row of elements: the inner loops of all windows and scatters.
//!
//! A row is `n` elements at fixed strides on both sides; scattered rows add an offset for each element. The functions
//! are chosen once a kernel and called through pointers; inside, the loops are compiled for every instruction set.

use crate::pool::{self, SendPtr};
use crate::simd::{self, Kernel, LANES32, Simd, Vector};
use lapis_core::dtype::{Dtype, bf16, c64, f16};
use lapis_core::ops::Combine;
use std::marker::PhantomData;

/// `dst[i * ds] = combine(dst[i * ds], src[i * ss])` for `i < n`; strides in elements.
pub(super) type RowFn = unsafe fn(dst: *mut u8, ds: isize, src: *const u8, ss: isize, n: usize);

/// `dst[offsets[i] + i * ds] = combine(that, src[i * ss])` for `i < n`, in order; offsets and strides in elements.
pub(super) type PutFn = unsafe fn(dst: *mut u8, ds: isize, offsets: *const isize, src: *const u8, ss: isize, n: usize);

/// `dst[i] = src[offsets[i] + i * ss]` for `i < n`.
pub(super) type PickFn = unsafe fn(dst: *mut u8, offsets: *const isize, src: *const u8, ss: isize, n: usize);

/// What two elements become.
trait Merge<T> {
    fn merge(old: T, new: T) -> T;
}

pub(super) struct Set;
pub(super) struct Sum;
pub(super) struct Prod;
pub(super) struct Max;
pub(super) struct Min;

impl<T> Merge<T> for Set {
    #[inline(always)]
    fn merge(_: T, new: T) -> T {
        new
    }
}

/// One byte, 0 or 1.
#[derive(Clone, Copy)]
struct Truth(u8);

macro_rules! merge {
    ($($t:ty: |$a:ident, $b:ident| $sum:expr, $prod:expr, $max:expr, $min:expr;)*) => {$(
        merge!(@ Sum $t, $a, $b, $sum);
        merge!(@ Prod $t, $a, $b, $prod);
        merge!(@ Max $t, $a, $b, $max);
        merge!(@ Min $t, $a, $b, $min);
    )*};
    (@ $op:ident $t:ty, $a:ident, $b:ident, $e:expr) => {
        impl Merge<$t> for $op {
            #[inline(always)]
            fn merge($a: $t, $b: $t) -> $t {
                $e
            }
        }
    };
}

macro_rules! integers {
    ($($t:ty)*) => { merge! { $($t: |a, b| a.wrapping_add(b), a.wrapping_mul(b), a.max(b), a.min(b);)* } };
}
integers!(u8 u16 u32 u64 i8 i16 i32 i64);

/// NaN when either is.
macro_rules! floats {
    ($($t:ty)*) => { merge! { $($t: |a, b|
        a + b,
        a * b,
        if a > b || a.is_nan() { a } else { b },
        if a < b || a.is_nan() { a } else { b };
    )* } };
}
floats!(f32 f64);

merge! {
    Truth: |a, b| Truth(a.0 | b.0), Truth(a.0 & b.0), Truth(a.0 | b.0), Truth(a.0 & b.0);
    c64: |a, b| a + b, a * b, if first(a, b) { b } else { a }, lesser(a, b);
}

fn is_nan(c: c64) -> bool {
    c.re.is_nan() || c.im.is_nan()
}

/// Whether `a` comes before `b`: by real, then by imaginary part; NaN comes last.
fn first(a: c64, b: c64) -> bool {
    !is_nan(a) && (is_nan(b) || a.re < b.re || (a.re == b.re && a.im < b.im))
}

/// The one that comes first, but NaN before all.
fn lesser(a: c64, b: c64) -> c64 {
    if !is_nan(b) && (is_nan(a) || first(a, b)) { a } else { b }
}

// ------------------------------------------------------------------ rows

struct Row<T, M> {
    dst: *mut T,
    ds: isize,
    src: *const T,
    ss: isize,
    n: usize,
    merge: PhantomData<M>,
}

impl<T: Copy, M: Merge<T>> Kernel for Row<T, M> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Row { dst, ds, src, ss, n, .. } = self;
        // SAFETY: whoever made this vouches for `n` elements on both sides, which do not overlap.
        unsafe {
            if ds == 1 && ss == 1 {
                for i in 0..n {
                    dst.add(i).write(M::merge(dst.add(i).read(), src.add(i).read()));
                }
            } else if ds == 1 && ss == 0 {
                let value = src.read();
                for i in 0..n {
                    dst.add(i).write(M::merge(dst.add(i).read(), value));
                }
            } else {
                for i in 0..n as isize {
                    let d = dst.offset(i * ds);
                    d.write(M::merge(d.read(), src.offset(i * ss).read()));
                }
            }
        }
    }
}

unsafe fn row<T: Copy, M: Merge<T>>(dst: *mut u8, ds: isize, src: *const u8, ss: isize, n: usize) {
    let (dst, src) = (dst.cast::<T>(), src.cast::<T>());
    simd::dispatch(Row::<T, M> { dst, ds, src, ss, n, merge: PhantomData });
}

unsafe fn copy<T: Copy>(dst: *mut u8, ds: isize, src: *const u8, ss: isize, n: usize) {
    // SAFETY: the caller vouches for `n` elements on both sides, which do not overlap.
    unsafe {
        if ds == 1 && ss == 1 && n > 8 {
            std::ptr::copy_nonoverlapping(src.cast::<T>(), dst.cast::<T>(), n);
            return;
        }
        let (dst, src) = (dst.cast::<T>(), src.cast::<T>());
        if ds == 1 && ss == 0 {
            let value = src.read();
            for i in 0..n {
                dst.add(i).write(value);
            }
        } else {
            for i in 0..n as isize {
                dst.offset(i * ds).write(src.offset(i * ss).read());
            }
        }
    }
}

/// Halves go through f32.
unsafe fn half_row<H: Half, M: Merge<f32>>(dst: *mut u8, ds: isize, src: *const u8, ss: isize, n: usize) {
    let (dst, src) = (dst.cast::<H>(), src.cast::<H>());
    let mut wide = [0f32; LOT];
    for start in (0..n).step_by(LOT) {
        let (n, at) = (LOT.min(n - start), start as isize);
        // SAFETY: the caller vouches for both sides; a lot of elements fits `wide`.
        unsafe {
            widen::<H, Set>(dst.offset(at * ds), ds, n, &mut wide);
            widen::<H, M>(src.offset(at * ss), ss, n, &mut wide);
            narrow(&wide, dst.offset(at * ds), ds, n);
        }
    }
}

/// The function that copies a row of elements of `size` bytes, wherever they lie.
pub(super) fn copy_fn(size: usize) -> RowFn {
    match size {
        1 => copy::<u8>,
        2 => copy::<[u8; 2]>,
        4 => copy::<[u8; 4]>,
        _ => copy::<[u8; 8]>,
    }
}

/// The function that applies `combine` to a row of `dtype`.
pub(super) fn row_fn(combine: Combine, dtype: Dtype) -> RowFn {
    match combine {
        Combine::Set => copy_fn(dtype.size()),
        Combine::Sum => row_of::<Sum>(dtype),
        Combine::Prod => row_of::<Prod>(dtype),
        Combine::Max => row_of::<Max>(dtype),
        Combine::Min => row_of::<Min>(dtype),
    }
}

macro_rules! for_dtype {
    ($dtype:expr, $f:ident, $half:ident, $m:ident) => {
        match $dtype {
            Dtype::Bool => $f::<Truth, $m>,
            Dtype::Uint8 => $f::<u8, $m>,
            Dtype::Uint16 => $f::<u16, $m>,
            Dtype::Uint32 => $f::<u32, $m>,
            Dtype::Uint64 => $f::<u64, $m>,
            Dtype::Int8 => $f::<i8, $m>,
            Dtype::Int16 => $f::<i16, $m>,
            Dtype::Int32 => $f::<i32, $m>,
            Dtype::Int64 => $f::<i64, $m>,
            Dtype::Float16 => $half::<f16, $m>,
            Dtype::Float32 => $f::<f32, $m>,
            Dtype::Float64 => $f::<f64, $m>,
            Dtype::Bfloat16 => $half::<bf16, $m>,
            Dtype::Complex64 => $f::<c64, $m>,
        }
    };
}

/// Ops on every type; halves count as f32.
trait MergeAny:
    Merge<Truth>
    + Merge<u8>
    + Merge<u16>
    + Merge<u32>
    + Merge<u64>
    + Merge<i8>
    + Merge<i16>
    + Merge<i32>
    + Merge<i64>
    + Merge<f32>
    + Merge<f64>
    + Merge<c64>
{
}
impl MergeAny for Sum {}
impl MergeAny for Prod {}
impl MergeAny for Max {}
impl MergeAny for Min {}

fn row_of<M: MergeAny>(dtype: Dtype) -> RowFn {
    for_dtype!(dtype, row, half_row, M)
}

// ------------------------------------------------------------------ scattered elements

unsafe fn put<T: Copy, M: Merge<T>>(
    dst: *mut u8,
    ds: isize,
    offsets: *const isize,
    src: *const u8,
    ss: isize,
    n: usize,
) {
    let (dst, src) = (dst.cast::<T>(), src.cast::<T>());
    for i in 0..n {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let d = dst.offset(offsets.add(i).read() + i as isize * ds);
            d.write(M::merge(d.read(), src.offset(i as isize * ss).read()));
        }
    }
}

unsafe fn half_put<H: Half, M: Merge<f32>>(
    dst: *mut u8,
    ds: isize,
    offsets: *const isize,
    src: *const u8,
    ss: isize,
    n: usize,
) {
    let (dst, src) = (dst.cast::<H>(), src.cast::<H>());
    for i in 0..n {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let d = dst.offset(offsets.add(i).read() + i as isize * ds);
            d.write(H::from_f32(M::merge(d.read().to_f32(), src.offset(i as isize * ss).read().to_f32())));
        }
    }
}

/// Updates of a half type merged into places of f32.
unsafe fn wide_put<H: Half, M: Merge<f32>>(
    dst: *mut u8,
    ds: isize,
    offsets: *const isize,
    src: *const u8,
    ss: isize,
    n: usize,
) {
    let (dst, src) = (dst.cast::<f32>(), src.cast::<H>());
    for i in 0..n {
        // SAFETY: the caller vouches for every place.
        unsafe {
            let d = dst.offset(offsets.add(i).read() + i as isize * ds);
            d.write(M::merge(d.read(), src.offset(i as isize * ss).read().to_f32()));
        }
    }
}

/// The function that applies `combine` to scattered elements of `dtype`.
pub(super) fn put_fn(combine: Combine, dtype: Dtype) -> PutFn {
    match combine {
        Combine::Set => match dtype.size() {
            1 => put::<u8, Set>,
            2 => put::<u16, Set>,
            4 => put::<u32, Set>,
            _ => put::<u64, Set>,
        },
        Combine::Sum => put_of::<Sum>(dtype),
        Combine::Prod => put_of::<Prod>(dtype),
        Combine::Max => put_of::<Max>(dtype),
        Combine::Min => put_of::<Min>(dtype),
    }
}

fn put_of<M: MergeAny>(dtype: Dtype) -> PutFn {
    for_dtype!(dtype, put, half_put, M)
}

/// The function that merges updates of a half type into f32, for the combinations that accumulate.
pub(super) fn wide_put_fn(combine: Combine, half: Dtype) -> PutFn {
    match (combine, half) {
        (Combine::Prod, Dtype::Float16) => wide_put::<f16, Prod>,
        (Combine::Prod, _) => wide_put::<bf16, Prod>,
        (_, Dtype::Float16) => wide_put::<f16, Sum>,
        _ => wide_put::<bf16, Sum>,
    }
}

/// A row of a half type merged into one of f32, as [`wide_put_fn`].
pub(super) fn wide_row_fn(combine: Combine, half: Dtype) -> RowFn {
    unsafe fn row<H: Half, M: Merge<f32>>(dst: *mut u8, ds: isize, src: *const u8, ss: isize, n: usize) {
        let (dst, src) = (dst.cast::<f32>(), src.cast::<H>());
        for i in 0..n as isize {
            // SAFETY: the caller vouches for every place.
            unsafe {
                let d = dst.offset(i * ds);
                d.write(M::merge(d.read(), src.offset(i * ss).read().to_f32()));
            }
        }
    }
    match (combine, half) {
        (Combine::Prod, Dtype::Float16) => row::<f16, Prod>,
        (Combine::Prod, _) => row::<bf16, Prod>,
        (_, Dtype::Float16) => row::<f16, Sum>,
        _ => row::<bf16, Sum>,
    }
}

/// The function that gathers elements of `size` bytes, wherever they lie.
pub(super) fn pick_fn(size: usize) -> PickFn {
    unsafe fn pick<T: Copy>(dst: *mut u8, offsets: *const isize, src: *const u8, ss: isize, n: usize) {
        let (dst, src) = (dst.cast::<T>(), src.cast::<T>());
        for i in 0..n {
            // SAFETY: the caller vouches for every place.
            unsafe { dst.add(i).write(src.offset(offsets.add(i).read() + i as isize * ss).read()) };
        }
    }
    match size {
        1 => pick::<u8>,
        2 => pick::<[u8; 2]>,
        4 => pick::<[u8; 4]>,
        _ => pick::<[u8; 8]>,
    }
}

// ------------------------------------------------------------------ halves

/// Elements of half precision that are held as f32 at once.
pub(super) const LOT: usize = 256;

pub(super) trait Half: Copy {
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F32;
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::F32);
}

macro_rules! half {
    ($t:ident $load:ident $store:ident) => {
        impl Half for $t {
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                $t::from_f32(x)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F32 {
                // SAFETY: the caller vouches for one vector.
                unsafe { s.$load(from) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::F32) {
                // SAFETY: the caller vouches for one vector.
                unsafe { s.$store(to, v) }
            }
        }
    };
}
half!(f16 load_f16 store_f16);
half!(bf16 load_bf16 store_bf16);

struct Widen<'a, H, M> {
    src: *const H,
    ss: isize,
    n: usize,
    wide: &'a mut [f32; LOT],
    merge: PhantomData<M>,
}

impl<H: Half, M: Merge<f32>> Kernel for Widen<'_, H, M> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut vector = [0f32; LANES32];
        let whole = if self.ss == 1 { self.n / LANES32 } else { 0 };
        let (lots, rest) = self.wide[..self.n].split_at_mut(whole * LANES32);
        for (i, lot) in lots.chunks_exact_mut(LANES32).enumerate() {
            // SAFETY: whoever made this vouches for `n` elements; `vector` holds one vector.
            unsafe { H::load(s, self.src.add(i * LANES32)).store(vector.as_mut_ptr()) };
            for (w, &v) in lot.iter_mut().zip(&vector) {
                *w = M::merge(*w, v);
            }
        }
        for (i, w) in rest.iter_mut().enumerate() {
            // SAFETY: as above.
            let v = unsafe { self.src.offset((whole * LANES32 + i) as isize * self.ss).read() };
            *w = M::merge(*w, v.to_f32());
        }
    }
}

/// Merges `n` <= [`LOT`] elements at stride `ss` into the first of `wide`.
unsafe fn widen<H: Half, M: Merge<f32>>(src: *const H, ss: isize, n: usize, wide: &mut [f32; LOT]) {
    simd::dispatch(Widen::<H, M> { src, ss, n, wide, merge: PhantomData });
}

struct Narrow<'a, H> {
    wide: &'a [f32; LOT],
    dst: *mut H,
    ds: isize,
    n: usize,
}

impl<H: Half> Kernel for Narrow<'_, H> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = if self.ds == 1 { self.n / LANES32 } else { 0 };
        // SAFETY: whoever made this vouches for `n` elements; `wide` holds as many.
        unsafe {
            for i in (0..whole * LANES32).step_by(LANES32) {
                H::store(s, self.dst.add(i), S::F32::load(s, self.wide.as_ptr().add(i)));
            }
            for i in whole * LANES32..self.n {
                self.dst.offset(i as isize * self.ds).write(H::from_f32(self.wide[i]));
            }
        }
    }
}

/// Rounds the first `n` of `wide` to places at stride `ds`.
unsafe fn narrow<H: Half>(wide: &[f32; LOT], dst: *mut H, ds: isize, n: usize) {
    simd::dispatch(Narrow { wide, dst, ds, n });
}

/// A row of half precision held as f32: opened, merged into several times, closed.
#[derive(Clone, Copy)]
pub(super) struct WideRow {
    open: unsafe fn(*const u8, isize, usize, &mut [f32; LOT]),
    merge: unsafe fn(*const u8, isize, usize, &mut [f32; LOT]),
    close: unsafe fn(&[f32; LOT], *mut u8, isize, usize),
}

impl WideRow {
    /// For the combinations that accumulate, sum and product.
    pub(super) fn new(combine: Combine, half: Dtype) -> WideRow {
        fn of<H: Half, M: Merge<f32>>() -> WideRow {
            WideRow {
                // SAFETY: the caller of the pointer vouches for `n` elements.
                open: |src, ss, n, wide| unsafe { widen::<H, Set>(src.cast(), ss, n, wide) },
                // SAFETY: as above.
                merge: |src, ss, n, wide| unsafe { widen::<H, M>(src.cast(), ss, n, wide) },
                // SAFETY: as above.
                close: |wide, dst, ds, n| unsafe { narrow::<H>(wide, dst.cast(), ds, n) },
            }
        }
        match (combine, half) {
            (Combine::Prod, Dtype::Float16) => of::<f16, Prod>(),
            (Combine::Prod, _) => of::<bf16, Prod>(),
            (_, Dtype::Float16) => of::<f16, Sum>(),
            _ => of::<bf16, Sum>(),
        }
    }

    /// Merges the rows at `sources`, all of `n` <= [`LOT`] elements at stride `ss`, into the one at `dst` and rounds
    /// once.
    ///
    /// # Safety
    /// All elements lie in memory that may be read, those of `dst` in memory that may be written.
    pub(super) unsafe fn run(
        self,
        dst: *mut u8,
        ds: isize,
        sources: impl Iterator<Item = *const u8>,
        ss: isize,
        n: usize,
    ) {
        let mut wide = [0f32; LOT];
        // SAFETY: the caller vouches for all rows.
        unsafe {
            (self.open)(dst, ds, n, &mut wide);
            for src in sources {
                (self.merge)(src, ss, n, &mut wide);
            }
            (self.close)(&wide, dst, ds, n);
        }
    }
}

/// Widens `n` halves.
pub(super) fn widen_all(half: Dtype, src: *const u8, wide: *mut f32, n: usize) {
    let row = WideRow::new(Combine::Sum, half);
    let (src, wide) = (SendPtr(src.cast_mut()), SendPtr(wide));
    in_lots(n, &|at, n| {
        let mut lot = [0f32; LOT];
        // SAFETY: both sides hold as many elements as are asked for; lots do not overlap.
        unsafe {
            (row.open)(src.get().add(at * 2), 1, n, &mut lot);
            std::ptr::copy_nonoverlapping(lot.as_ptr(), wide.get().add(at), n);
        }
    });
}

/// Rounds `n` numbers to halves.
pub(super) fn narrow_all(half: Dtype, wide: *const f32, dst: *mut u8, n: usize) {
    let row = WideRow::new(Combine::Sum, half);
    let (wide, dst) = (SendPtr(wide.cast_mut()), SendPtr(dst));
    in_lots(n, &|at, n| {
        let mut lot = [0f32; LOT];
        // SAFETY: both sides hold as many elements as are asked for; lots do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(wide.get().add(at), lot.as_mut_ptr(), n);
            (row.close)(&lot, dst.get().add(at * 2), 1, n);
        }
    });
}

fn in_lots(n: usize, f: &(dyn Fn(usize, usize) + Sync)) {
    pool::for_each_chunk(n, 64 * LOT, &|range| {
        range.clone().step_by(LOT).for_each(|at| f(at, LOT.min(range.end - at)));
    });
}
