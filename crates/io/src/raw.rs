//! A tensor as files know it: name, dtype, shape, bytes. Knows no graph.

use crate::source::Source;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
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
    Owned(Arc<Vec<u8>>),
}

impl RawTensor {
    /// A tensor of bytes in memory. `bytes` must be exactly the size that shape and dtype ask for.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> RawTensor {
        assert_eq!(size_of(&shape, dtype), Some(bytes.len()), "[RawTensor::new] bytes for {shape:?} of {dtype}");
        RawTensor { name: name.into(), dtype, shape, column_major: false, data: Data::Owned(Arc::new(bytes)) }
    }

    /// A tensor in a file. The caller has checked that `range` fits the shape and the file.
    pub(crate) fn in_file(
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        source: &Arc<Source>,
        range: Range<u64>,
    ) -> Self {
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

    /// The mapped file and the place in it, when the bytes can be used where they are: mapped, and aligned for
    /// the dtype.
    ///
    /// # Errors
    /// As [`RawTensor::bytes`].
    pub fn mapped(&self) -> Result<Option<(&Arc<Source>, Range<u64>)>> {
        let Data::File { source, range } = &self.data else { return Ok(None) };
        let aligned = |b: &[u8]| b.as_ptr().addr().is_multiple_of(self.dtype.size());
        Ok(source.in_place(range.clone())?.is_some_and(aligned).then(|| (source, range.clone())))
    }

    /// Number of bytes.
    pub fn nbytes(&self) -> usize {
        match &self.data {
            Data::File { range, .. } => (range.end - range.start) as usize,
            Data::Owned(bytes) => bytes.len(),
        }
    }
}

/// Bytes that a tensor takes; `None` beyond the address space.
pub fn size_of(shape: &[usize], dtype: Dtype) -> Option<usize> {
    let size = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d))?;
    (size <= isize::MAX as usize).then_some(size)
}
