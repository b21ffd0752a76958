//! Non-contiguous views that hold given values: a larger or permuted base, strides and an offset.

use crate::values::Values;

/// How the elements of an input lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// The base holds the axes in reverse order.
    Transposed,
    /// Every second element of the last axis of a base twice as wide.
    Strided,
    /// The base holds the elements backwards; all strides are negative.
    Reversed,
    /// The first axis has stride 0 (its rows are equal).
    Broadcast,
    /// The elements begin behind three others.
    Offset,
}

/// A base buffer and where the elements of the view are in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The base.
    pub bytes: Vec<u8>,
    /// Sizes of the view's axes.
    pub shape: Vec<usize>,
    /// Steps between neighbours along each axis, in elements.
    pub strides: Vec<isize>,
    /// The first element of the view, in elements.
    pub offset: usize,
}

/// Fills the gaps of a base: a valid bool, and no value that a case uses.
const FILLER: u8 = 1;

fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1;
    for (s, &d) in strides.iter_mut().zip(shape).rev() {
        *s = step;
        step *= d as isize;
    }
    strides
}

impl View {
    /// A view with the elements of `values`, laid out as `layout` says (row-major without one).
    pub fn new(values: &Values, layout: Option<Layout>) -> View {
        let (shape, size, n) = (values.shape.clone(), values.dtype.size(), values.len());
        let plain = row_major(&shape);
        let whole = |bytes, strides, offset| View { bytes, shape: shape.clone(), strides, offset };
        match layout {
            None => whole(values.bytes.clone(), plain, 0),
            Some(Layout::Offset) => {
                let mut bytes = vec![FILLER; 3 * size];
                bytes.extend(&values.bytes);
                bytes.extend(vec![FILLER; size]);
                whole(bytes, plain, 3)
            }
            Some(Layout::Reversed) => {
                let bytes = values.bytes.rchunks_exact(size).flatten().copied().collect();
                whole(bytes, plain.iter().map(|s| -s).collect(), n.saturating_sub(1))
            }
            Some(Layout::Strided) => {
                let mut bytes = Vec::with_capacity(2 * values.bytes.len());
                for element in values.bytes.chunks_exact(size) {
                    bytes.extend(element);
                    bytes.extend(vec![FILLER; size]);
                }
                whole(bytes, plain.iter().map(|s| 2 * s).collect(), 0)
            }
            Some(Layout::Transposed) => {
                let backwards: Vec<usize> = shape.iter().rev().copied().collect();
                let mut strides = row_major(&backwards);
                strides.reverse();
                let mut bytes = vec![0; values.bytes.len()];
                for (i, element) in values.bytes.chunks_exact(size).enumerate() {
                    let at = place(i, &shape, &strides) * size;
                    bytes[at..at + size].copy_from_slice(element);
                }
                whole(bytes, strides, 0)
            }
            Some(Layout::Broadcast) => {
                let rows = shape.first().copied().unwrap_or(1).max(1);
                let row = values.bytes.len() / rows;
                assert!(values.bytes.chunks_exact(row.max(1)).all(|r| r == &values.bytes[..row]), "rows differ");
                let mut strides = plain;
                if let Some(first) = strides.first_mut() {
                    *first = 0;
                }
                whole(values.bytes[..row].to_vec(), strides, 0)
            }
        }
    }
}

/// Where the flat row-major index `i` of `shape` lies under `strides` (none negative).
fn place(mut i: usize, shape: &[usize], strides: &[isize]) -> usize {
    let mut at = 0;
    for (&d, &s) in shape.iter().zip(strides).rev() {
        at += (i % d) * s as usize;
        i /= d;
    }
    at
}
