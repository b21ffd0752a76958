//! A tensor as files know it: name, dtype, shape, bytes; and how it becomes an array.

use crate::bytes::Bytes;
use crate::source::Source;
use lapis_core::array::Array;
use lapis_core::buffer::{Buffer, Memory, Tensor};
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::memory;
use lapis_core::shape::{Strides, row_strides};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A named tensor whose bytes lie in a file or in memory, little-endian and dense.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// The name; any text at all, never a path.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// Whether the first axis varies fastest (npy's `fortran_order`); usually the last does.
    pub column_major: bool,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    File { source: Arc<Source>, range: Range<u64> },
    Owned(Arc<Bytes>),
}

impl RawTensor {
    /// A tensor of bytes in memory.
    ///
    /// # Errors
    /// `Value` when the bytes are not of the size that shape and dtype ask for.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: Vec<usize>, bytes: Bytes) -> Result<RawTensor> {
        let name = name.into();
        if size_of(&shape, dtype) != Some(bytes.len()) {
            let what = format!("[tensor] {name:?}: {} bytes for {shape:?} of {dtype}", bytes.len());
            return Err(Error::value(what));
        }
        Ok(RawTensor { name, dtype, shape, column_major: false, data: Data::Owned(Arc::new(bytes)) })
    }

    /// A tensor in a file. The caller has checked that `range` fits the shape and the file.
    pub(crate) fn in_file(
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        source: &Arc<Source>,
        range: Range<u64>,
    ) -> RawTensor {
        debug_assert_eq!(size_of(&shape, dtype).map(|n| n as u64), Some(range.end - range.start));
        RawTensor { name, dtype, shape, column_major: false, data: Data::File { source: source.clone(), range } }
    }

    /// The bytes; copied only when they have to be read from a file that is not mapped.
    ///
    /// # Errors
    /// `Io` when the file has become shorter or cannot be read.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        match &self.data {
            Data::File { source, range } => source.bytes(range.clone()),
            Data::Owned(bytes) => Ok(Cow::Borrowed(bytes)),
        }
    }

    /// The array. It points into the file when that is in memory and the elements are aligned; else it owns a copy. The
    /// words of packed matrices (uint32) are left where they are in any case: kernels read them byte by byte, and files
    /// that MLX writes are rarely aligned.
    ///
    /// # Errors
    /// As [`RawTensor::bytes`], and `Memory`.
    pub fn to_array(&self) -> Result<Array> {
        let strides = if self.column_major {
            let reversed: Vec<usize> = self.shape.iter().rev().copied().collect();
            row_strides(&reversed).into_iter().rev().collect::<Strides>()
        } else {
            row_strides(&self.shape)
        };
        let buffer = self.buffer()?;
        Array::from_tensor(Tensor {
            buffer,
            offset: 0,
            shape: self.shape.as_slice().into(),
            strides,
            dtype: self.dtype,
        })
    }

    fn buffer(&self) -> Result<Buffer> {
        // Kernels count on bools of 0 and 1, other programs do not.
        let fit = |b: &[u8]| {
            (self.dtype == Dtype::Uint32 || b.as_ptr().addr().is_multiple_of(self.dtype.size()))
                && (self.dtype != Dtype::Bool || b.iter().all(|&b| b < 2))
        };
        match &self.data {
            Data::Owned(bytes) if fit(bytes) => return Charged::buffer(bytes.clone()),
            Data::File { source, range } if source.in_place(range.clone())?.is_some_and(fit) => {
                return Ok(Buffer::new(Mapped { source: source.clone(), range: range.clone() }));
            }
            _ => {}
        }
        let mut bytes = match &self.data {
            Data::Owned(bytes) => Bytes::copy(bytes)?,
            Data::File { source, range } => source.read(range.clone())?,
        };
        if self.dtype == Dtype::Bool {
            bytes.iter_mut().for_each(|b| *b = u8::from(*b != 0));
        }
        Charged::buffer(Arc::new(bytes))
    }
}

/// Bytes that a tensor takes; `None` beyond the address space.
pub fn size_of(shape: &[usize], dtype: Dtype) -> Option<usize> {
    let size = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))?;
    (size <= isize::MAX as usize).then_some(size)
}

/// Part of a file that is in memory.
struct Mapped {
    source: Arc<Source>,
    range: Range<u64>,
}

impl Memory for Mapped {
    fn ptr(&self) -> *mut u8 {
        self.bytes().as_ptr().cast_mut()
    }
    fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }
    fn bytes(&self) -> &[u8] {
        self.source.resident(self.range.clone())
    }
}

/// A copy, counted with the memory of arrays.
struct Charged(Arc<Bytes>);

impl Charged {
    fn buffer(bytes: Arc<Bytes>) -> Result<Buffer> {
        memory::charge(bytes.len())?;
        Ok(Buffer::new(Charged(bytes)))
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        memory::release(self.0.len());
    }
}

impl Memory for Charged {
    fn ptr(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}
