//! The forms an index takes, and what host values become them. What they do is in [`lookup`](super::lookup).

use crate::array::{Array, array};
use smallvec::{SmallVec, smallvec};
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

/// One part of an index, as in `a[3, 1:5, ..., None, idx]`.
#[derive(Clone)]
pub enum Index {
    /// One index of an axis, which disappears. Negative counts from the end.
    At(i64),
    /// Python's `start:stop:step`: bounds clip, negative bounds count from the end, steps may be negative.
    Range {
        /// First index; the end of the axis that the step leaves from by default.
        start: Option<i64>,
        /// Where to stop, exclusive.
        stop: Option<i64>,
        /// Distance, not 0.
        step: i64,
    },
    /// As many whole axes as are not named otherwise.
    Ellipsis,
    /// A new axis of size 1.
    NewAxis,
    /// Integers: indices of one axis. Bool: a mask over as many axes as it has.
    Array(Array),
}

impl Index {
    /// Python's `start:stop:step`, for bounds that Rust's ranges spell badly: `Index::range(1, -1, 1)`.
    pub fn range(start: impl Into<Option<i64>>, stop: impl Into<Option<i64>>, step: i64) -> Index {
        Index::Range { start: start.into(), stop: stop.into(), step }
    }
}

/// All parts of an index.
pub type Indices = SmallVec<[Index; 4]>;

/// A new axis of size 1.
#[derive(Clone, Copy, Debug)]
pub struct NewAxis;

/// As many whole axes as are not named otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Ellipsis;

/// What can be one part of an index: integers, ranges (`..`, `1..5`, `(..).step(-1)`), [`NewAxis`], [`Ellipsis`],
/// arrays, and vectors of integers or bool.
pub trait IntoIndex {
    /// The part.
    fn into_index(self) -> Index;
}

/// What can be a whole index: one part, a tuple of up to eight parts, a slice or vector of [`Index`].
pub trait IntoIndices {
    /// The parts in order.
    fn into_indices(self) -> Indices;
}

impl<T: IntoIndex> IntoIndices for T {
    fn into_indices(self) -> Indices {
        smallvec![self.into_index()]
    }
}
impl IntoIndices for &[Index] {
    fn into_indices(self) -> Indices {
        self.into()
    }
}
impl<const N: usize> IntoIndices for &[Index; N] {
    fn into_indices(self) -> Indices {
        self.as_slice().into()
    }
}
impl IntoIndices for Vec<Index> {
    fn into_indices(self) -> Indices {
        self.into()
    }
}
impl IntoIndices for Indices {
    fn into_indices(self) -> Indices {
        self
    }
}
impl IntoIndices for () {
    fn into_indices(self) -> Indices {
        Indices::new()
    }
}

macro_rules! tuples {
    ($($($t:ident)*;)*) => {$(
        impl<$($t: IntoIndex),*> IntoIndices for ($($t,)*) {
            #[allow(non_snake_case)]
            fn into_indices(self) -> Indices {
                let ($($t,)*) = self;
                [$($t.into_index()),*].into_iter().collect()
            }
        }
    )*};
}
tuples! { A; A B; A B C; A B C D; A B C D E; A B C D E F; A B C D E F G; A B C D E F G H; }

impl IntoIndex for Index {
    fn into_index(self) -> Index {
        self
    }
}
impl IntoIndex for &Index {
    fn into_index(self) -> Index {
        self.clone()
    }
}
impl IntoIndex for NewAxis {
    fn into_index(self) -> Index {
        Index::NewAxis
    }
}
impl IntoIndex for Ellipsis {
    fn into_index(self) -> Index {
        Index::Ellipsis
    }
}
impl IntoIndex for Array {
    fn into_index(self) -> Index {
        Index::Array(self)
    }
}
impl IntoIndex for &Array {
    fn into_index(self) -> Index {
        Index::Array(self.clone())
    }
}
impl IntoIndex for RangeFull {
    fn into_index(self) -> Index {
        Index::Range { start: None, stop: None, step: 1 }
    }
}

/// Integers of the host; those beyond 64 signed bits fit no axis and stay the largest index there is.
pub trait HostInt: Copy {
    /// As a 64-bit index.
    fn index(self) -> i64;
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl HostInt for $t {
            fn index(self) -> i64 {
                i64::try_from(self).unwrap_or(i64::MAX)
            }
        }
        impl IntoIndex for $t {
            fn into_index(self) -> Index {
                Index::At(self.index())
            }
        }
    )*};
}
integers!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);

macro_rules! lists {
    ($($t:ty),*) => {$(
        impl IntoIndex for Vec<$t> {
            fn into_index(self) -> Index {
                Index::Array(array(self))
            }
        }
        impl IntoIndex for &[$t] {
            fn into_index(self) -> Index {
                Index::Array(array(self))
            }
        }
        impl<const N: usize> IntoIndex for [$t; N] {
            fn into_index(self) -> Index {
                Index::Array(array(self))
            }
        }
    )*};
}
lists!(bool, i32, i64, u32);

fn range(start: Option<i64>, stop: Option<i64>) -> Index {
    Index::Range { start, stop, step: 1 }
}

/// The exclusive bound after `last`: after -1, the last element, comes the end.
fn after(last: i64) -> Option<i64> {
    if last == -1 { None } else { Some(last.saturating_add(1)) }
}

impl<T: HostInt> IntoIndex for Range<T> {
    fn into_index(self) -> Index {
        range(Some(self.start.index()), Some(self.end.index()))
    }
}
impl<T: HostInt> IntoIndex for RangeFrom<T> {
    fn into_index(self) -> Index {
        range(Some(self.start.index()), None)
    }
}
impl<T: HostInt> IntoIndex for RangeTo<T> {
    fn into_index(self) -> Index {
        range(None, Some(self.end.index()))
    }
}
impl<T: HostInt> IntoIndex for RangeInclusive<T> {
    fn into_index(self) -> Index {
        range(Some(self.start().index()), after(self.end().index()))
    }
}
impl<T: HostInt> IntoIndex for RangeToInclusive<T> {
    fn into_index(self) -> Index {
        range(None, after(self.end.index()))
    }
}

/// Ranges with a step: `(1..9).step(2)` is Python's `1:9:2`, `(..).step(-1)` is `::-1`.
pub trait Step: IntoIndex + Sized {
    /// Every `step`-th index; negative steps run from the start bound down to the stop bound.
    fn step(self, step: i64) -> Index {
        match self.into_index() {
            Index::Range { start, stop, .. } => Index::Range { start, stop, step },
            other => other,
        }
    }
}
impl Step for RangeFull {}
impl<T: HostInt> Step for Range<T> {}
impl<T: HostInt> Step for RangeFrom<T> {}
impl<T: HostInt> Step for RangeTo<T> {}
