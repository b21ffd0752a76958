//! `Array`: a cheap, shareable handle to one output of a node, and how host data gets in and out.

use crate::backend;
use crate::buffer::{Buffer, HostVec, Tensor};
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::node::{Avals, Inputs, Node};
use crate::ops::Op;
use crate::ops::full::Constant;
use crate::shape::{self, show};
use crate::stream::Stream;
use crate::{ops, schedule};
use smallvec::SmallVec;
use std::sync::Arc;

/// An n-dimensional array, computed when it is needed.
///
/// Cloning copies a handle. An array never changes; ops give new ones. `Send + Sync`: build, evaluate and drop it
/// from any thread.
#[derive(Clone)]
pub struct Array {
    pub(crate) node: Arc<Node>,
    pub(crate) index: u32,
}

impl Array {
    // ------------------------------------------------------------------ building

    /// The outputs of `op` applied to `inputs`, on this thread's stream.
    ///
    /// # Errors
    /// Whatever the op's inference finds wrong with the inputs.
    pub fn apply(op: impl Into<Op>, inputs: Inputs) -> Result<SmallVec<[Array; 1]>> {
        let op = op.into();
        let outs = op.infer(&inputs)?;
        Ok(Array::outputs_of(op, inputs, outs))
    }

    /// The single output of `op` applied to `inputs`.
    ///
    /// # Errors
    /// As [`Array::apply`].
    pub fn apply1(op: impl Into<Op>, inputs: Inputs) -> Result<Array> {
        let op = op.into();
        let outs = op.infer(&inputs)?;
        Ok(Array::inferred(op, inputs, outs))
    }

    /// A node whose outputs the caller has inferred already.
    pub(crate) fn inferred(op: Op, inputs: Inputs, outs: Avals) -> Array {
        Array { node: Arc::new(Node::lazy(op, Stream::current(), outs, inputs)), index: 0 }
    }

    /// All outputs of a node whose outputs the caller has inferred already.
    pub(crate) fn outputs_of(op: Op, inputs: Inputs, outs: Avals) -> SmallVec<[Array; 1]> {
        let n = outs.len() as u32;
        let node = Arc::new(Node::lazy(op, Stream::current(), outs, inputs));
        (0..n).map(|index| Array { node: node.clone(), index }).collect()
    }

    /// An array that stands on memory that exists: a mapped file, a buffer of another library. Elements may lie at any
    /// byte: what cannot read them there works on a copy, each time; products with packed matrices and row gathers can.
    ///
    /// # Errors
    /// A value error when an element lies outside the buffer.
    pub fn from_tensor(tensor: Tensor) -> Result<Array> {
        let size = tensor.dtype.size();
        shape::elements("from_tensor", &tensor.shape)?;
        if tensor.shape.len() != tensor.strides.len() {
            return Err(Error::value("[from_tensor] shape and strides differ in length".to_string()));
        }
        if tensor.size() > 0 {
            let (mut lo, mut hi) = (tensor.offset as i128, tensor.offset as i128 + size as i128);
            for (&d, &s) in tensor.shape.iter().zip(&tensor.strides) {
                let reach = (d as i128 - 1) * s as i128 * size as i128;
                if reach < 0 { lo += reach } else { hi += reach }
            }
            if lo < 0 || hi > tensor.buffer.len() as i128 {
                return Err(Error::value(format!(
                    "[from_tensor] bytes {lo}..{hi} of a {} array of shape {} do not lie in {} bytes",
                    tensor.dtype,
                    show(&tensor.shape),
                    tensor.buffer.len()
                )));
            }
        }
        Ok(Array::ready(tensor))
    }

    pub(crate) fn ready(tensor: Tensor) -> Array {
        Array { node: Arc::new(Node::ready(Op::Constant(Constant), tensor)), index: 0 }
    }

    /// An array that takes over `data` without a copy.
    ///
    /// # Panics
    /// When `data.len()` is not the product of `shape`; [`Array::try_from_vec`] returns the error instead.
    #[track_caller]
    pub fn from_vec<T: Element>(data: Vec<T>, shape: &[usize]) -> Array {
        crate::or_panic(Array::try_from_vec(data, shape))
    }

    /// An array that takes over `data` without a copy.
    ///
    /// # Errors
    /// A shape error when `data.len()` is not the product of `shape`.
    pub fn try_from_vec<T: Element>(data: Vec<T>, shape: &[usize]) -> Result<Array> {
        if shape::elements("array", shape)? != data.len() {
            return Err(Error::shape(format!("[array] {} values do not fill shape {}", data.len(), show(shape))));
        }
        let buffer = Buffer::new(HostVec(data));
        Ok(Array::ready(Tensor::row_major(buffer, shape.into(), T::DTYPE)))
    }

    /// An array with a copy of `data`. Large copies lie in the backend's memory, which suits kernels better than a
    /// `Vec` does.
    ///
    /// # Panics
    /// When `data.len()` is not the product of `shape`, or the memory limit is reached.
    #[track_caller]
    pub fn from_slice<T: Element>(data: &[T], shape: &[usize]) -> Array {
        const LARGE: usize = 1 << 20;
        if size_of_val(data) >= LARGE && backend::find(Stream::current().device()).is_ok() {
            return crate::or_panic(Array::from_bytes(T::as_bytes(data), shape, T::DTYPE));
        }
        Array::from_vec(data.to_vec(), shape)
    }

    /// An array of `dtype` from the bytes of its elements, row-major, in this machine's byte order. Copies.
    ///
    /// # Errors
    /// A shape error when the bytes do not fill the shape.
    pub fn from_bytes(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Result<Array> {
        let n = shape::elements("from_bytes", shape)?;
        if n * dtype.size() != bytes.len() {
            return Err(Error::shape(format!(
                "[from_bytes] {} bytes do not fill shape {} of {dtype}",
                bytes.len(),
                show(shape)
            )));
        }
        let backend = backend::find(Stream::current().device())?;
        let buffer = if dtype == Dtype::Bool {
            backend.upload(&bytes.iter().map(|&b| u8::from(b != 0)).collect::<Vec<_>>())?
        } else {
            backend.upload(bytes)?
        };
        Ok(Array::ready(Tensor::row_major(buffer, shape.into(), dtype)))
    }

    // ------------------------------------------------------------------ asking

    /// Sizes of the axes.
    #[inline]
    pub fn shape(&self) -> &[usize] {
        &self.node.outs[self.index as usize].shape
    }

    /// Element type.
    #[inline]
    pub fn dtype(&self) -> Dtype {
        self.node.outs[self.index as usize].dtype
    }

    /// Number of axes.
    #[inline]
    pub fn ndim(&self) -> usize {
        self.shape().len()
    }

    /// Number of elements.
    pub fn size(&self) -> usize {
        self.shape().iter().product()
    }

    /// Bytes of one element.
    pub fn itemsize(&self) -> usize {
        self.dtype().size()
    }

    /// Bytes of all elements.
    pub fn nbytes(&self) -> usize {
        self.size() * self.itemsize()
    }

    /// The size of `axis`; negative axes count from the end.
    ///
    /// # Panics
    /// When the axis is out of range.
    #[track_caller]
    pub fn dim(&self, axis: i32) -> usize {
        self.shape()[crate::or_panic(shape::axis("dim", axis, self.ndim()))]
    }

    /// Tells arrays apart: handles of one array have the same, others never do.
    pub fn id(&self) -> (u64, u32) {
        (self.node.id, self.index)
    }

    /// Whether the values are there already.
    pub fn is_evaluated(&self) -> bool {
        self.node.done().is_some()
    }

    /// Whether two handles stand for the same value of the same node.
    pub fn is_same(&self, other: &Array) -> bool {
        Arc::ptr_eq(&self.node, &other.node) && self.index == other.index
    }

    // ------------------------------------------------------------------ reading

    /// Computes the values now.
    ///
    /// # Errors
    /// Faults found while computing: memory, indices out of range, singular matrices, unreadable files.
    pub fn eval(&self) -> Result<()> {
        if self.node.done().is_none() {
            schedule::eval([self])?;
        }
        self.tensor().map(|_| ())
    }

    /// Where the values lie; evaluates first.
    ///
    /// # Errors
    /// As [`Array::eval`].
    pub fn tensor(&self) -> Result<&Tensor> {
        if self.node.done().is_none() {
            schedule::eval([self])?;
        }
        self.node.tensor(self.index as usize)
    }

    fn expect_dtype<T: Element>(&self, op: &str) -> Result<()> {
        if self.dtype() == T::DTYPE {
            return Ok(());
        }
        Err(Error::dtype(format!(
            "[{op}] the array holds {}, {} was asked for; cast it with astype",
            self.dtype(),
            T::DTYPE
        )))
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// A dtype error when `T` is not the array's type; else as [`Array::eval`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect_dtype::<T>("to_vec")?;
        let tensor = self.tensor()?;
        if tensor.is_row_contiguous() {
            return Ok(T::read(tensor.contiguous_bytes()));
        }
        let copy = ops::contiguous(self, false)?;
        Ok(T::read(copy.tensor()?.contiguous_bytes()))
    }

    /// The elements in place, row-major. Only for arrays that lie row-major in memory; bool has no slice form.
    ///
    /// # Errors
    /// A dtype error as [`Array::to_vec`]; a value error when the array is strided (use [`ops::contiguous`])
    /// or its elements are not aligned.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.expect_dtype::<T>("as_slice")?;
        let tensor = self.tensor()?;
        let whole = tensor.is_row_contiguous().then(|| tensor.contiguous_bytes()).and_then(T::try_cast);
        whole.ok_or_else(|| {
            Error::value("[as_slice] the array is not row-major in memory, or not aligned; use contiguous or to_vec")
        })
    }

    /// The bytes of the elements in row-major order.
    ///
    /// # Errors
    /// As [`Array::eval`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let tensor = self.tensor()?;
        if tensor.is_row_contiguous() {
            return Ok(tensor.contiguous_bytes().to_vec());
        }
        Ok(ops::contiguous(self, false)?.tensor()?.contiguous_bytes().to_vec())
    }

    /// The only element of an array of size 1.
    ///
    /// # Errors
    /// A value error for other sizes, a dtype error for another type; else as [`Array::eval`].
    pub fn item<T: Element>(&self) -> Result<T> {
        if self.size() != 1 {
            return Err(Error::value(format!("[item] needs an array of size 1; the shape is {}", show(self.shape()))));
        }
        Ok(self.to_vec::<T>()?[0])
    }
}

/// Anything the host can turn into an array: numbers, vectors, nested arrays.
pub trait IntoArray {
    /// The array.
    fn into_array(self) -> Array;
}

impl<T: Element> IntoArray for T {
    fn into_array(self) -> Array {
        Array::from_vec(vec![self], &[])
    }
}
impl<T: Element> IntoArray for Vec<T> {
    fn into_array(self) -> Array {
        let n = self.len();
        Array::from_vec(self, &[n])
    }
}
impl<T: Element> IntoArray for &[T] {
    fn into_array(self) -> Array {
        Array::from_slice(self, &[self.len()])
    }
}
impl<T: Element, const N: usize> IntoArray for [T; N] {
    fn into_array(self) -> Array {
        Array::from_slice(&self, &[N])
    }
}
impl<T: Element, const N: usize, const M: usize> IntoArray for [[T; M]; N] {
    fn into_array(self) -> Array {
        Array::from_slice(self.as_flattened(), &[N, M])
    }
}
impl<T: Element, const N: usize, const M: usize, const L: usize> IntoArray for [[[T; L]; M]; N] {
    fn into_array(self) -> Array {
        Array::from_slice(self.as_flattened().as_flattened(), &[N, M, L])
    }
}

/// An array of the given host data: `array([1, 2, 3])`, `array([[1.0f32, 2.0], [3.0, 4.0]])`, `array(1.5f32)`.
pub fn array(data: impl IntoArray) -> Array {
    data.into_array()
}
