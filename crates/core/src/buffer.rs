//! Memory that arrays stand on, and how an array lies in it.
//!
//! Knows nothing of ops. Backends and file maps provide [`Memory`]; the scheduler alone decides who may write.

use crate::dtype::Dtype;
use crate::shape::{self, Shape, Strides};
use std::sync::Arc;

/// A block of bytes that stays where it is as long as it lives.
///
/// The contract with the scheduler: a kernel writes through [`Memory::ptr`] only into buffers that the scheduler
/// handed out as outputs, and the scheduler hands out only buffers that nobody else can read. So `bytes` of a
/// published array never changes.
pub trait Memory: Send + Sync + 'static {
    /// First byte. Null is allowed for empty memory.
    fn ptr(&self) -> *mut u8;
    /// Bytes.
    fn len(&self) -> usize;
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The whole block for reading.
    fn bytes(&self) -> &[u8];
    /// The whole block for writing; `None` where the host may not write.
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        None
    }
    /// Whether kernels may reuse it for outputs; false for mapped files and borrowed host data.
    fn reusable(&self) -> bool {
        false
    }
}

/// A shared handle to a block of memory.
#[derive(Clone)]
pub struct Buffer(Arc<dyn Memory>);

impl Buffer {
    /// A handle to `memory`.
    pub fn new(memory: impl Memory) -> Buffer {
        Buffer(Arc::new(memory))
    }

    /// First byte.
    pub fn ptr(&self) -> *mut u8 {
        self.0.ptr()
    }

    /// Bytes of the whole allocation.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, for reading on the host.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The bytes for writing on the host: `None` when others hold the memory too, or the host may not write to it.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.0)?.bytes_mut()
    }

    /// Whether this handle is the only one and the memory may be written: it can become an output.
    pub fn is_sole_and_reusable(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.0.reusable()
    }

    /// Whether two handles stand for the same memory.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Host data owned by an array: read in place, never written.
pub(crate) struct HostVec<T>(pub(crate) Vec<T>);

impl<T: crate::dtype::Element> Memory for HostVec<T> {
    fn ptr(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut().cast()
    }
    fn len(&self) -> usize {
        size_of_val(self.0.as_slice())
    }
    fn bytes(&self) -> &[u8] {
        T::as_bytes(&self.0)
    }
}

/// An evaluated array: where its elements lie.
#[derive(Clone)]
pub struct Tensor {
    /// The memory.
    pub buffer: Buffer,
    /// Byte position of the element with index 0 on every axis.
    pub offset: usize,
    /// Sizes.
    pub shape: Shape,
    /// Strides in elements.
    pub strides: Strides,
    /// Element type.
    pub dtype: Dtype,
}

impl Tensor {
    /// A row-major tensor at the start of `buffer`.
    pub fn row_major(buffer: Buffer, shape: Shape, dtype: Dtype) -> Tensor {
        let strides = shape::row_strides(&shape);
        Tensor { buffer, offset: 0, shape, strides, dtype }
    }

    /// Number of elements.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the elements (not of the allocation).
    pub fn nbytes(&self) -> usize {
        self.size() * self.dtype.size()
    }

    /// Pointer to the element with index 0 on every axis.
    pub fn ptr(&self) -> *mut u8 {
        self.buffer.ptr().wrapping_add(self.offset)
    }

    /// Whether elements lie at multiples of their size, as kernels want them. In files of other programs they may not.
    pub fn is_aligned(&self) -> bool {
        self.ptr().addr().is_multiple_of(self.dtype.size())
    }

    /// Row-major without gaps (axes of size 1 ignored).
    pub fn is_row_contiguous(&self) -> bool {
        shape::is_row_contiguous(&self.shape, &self.strides)
    }

    /// Column-major without gaps.
    pub fn is_col_contiguous(&self) -> bool {
        let shape: Shape = self.shape.iter().rev().copied().collect();
        let strides: Strides = self.strides.iter().rev().copied().collect();
        shape::is_row_contiguous(&shape, &strides)
    }

    /// No gaps and no repeats, in whatever order of axes.
    pub fn is_dense(&self) -> bool {
        let mut axes: Vec<usize> = (0..self.shape.len()).filter(|&i| self.shape[i] != 1).collect();
        axes.sort_unstable_by_key(|&i| self.strides[i]);
        let mut next = 1isize;
        for i in axes {
            if self.strides[i] != next {
                return self.size() == 0;
            }
            next *= self.shape[i] as isize;
        }
        true
    }

    /// The bytes of a row-contiguous tensor.
    pub fn contiguous_bytes(&self) -> &[u8] {
        debug_assert!(self.is_row_contiguous());
        &self.buffer.bytes()[self.offset..self.offset + self.nbytes()]
    }

    /// The bytes of a row-contiguous tensor that nobody else sees, as outputs of host kernels are; else `None`.
    pub fn contiguous_bytes_mut(&mut self) -> Option<&mut [u8]> {
        let range = self.offset..self.offset + self.nbytes();
        if self.is_row_contiguous() { self.buffer.bytes_mut()?.get_mut(range) } else { None }
    }
}
