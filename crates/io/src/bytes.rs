//! Bytes of our own, aligned for every element type and for whole cache lines.

use bytemuck::{Pod, Zeroable};
use lapis_core::error::{Error, Result};
use std::ops::{Deref, DerefMut};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A block of bytes at a multiple of 64.
pub struct Bytes {
    lines: Vec<Line>,
    len: usize,
}

impl Bytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// `Memory` when there is no room.
    pub fn zeroed(len: usize) -> Result<Bytes> {
        let lines = bytemuck::allocation::try_zeroed_vec(len.div_ceil(64));
        let lines = lines.map_err(|()| Error::memory(format!("[load] no memory for {len} bytes")))?;
        Ok(Bytes { lines, len })
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// As [`Bytes::zeroed`].
    pub fn copy(bytes: &[u8]) -> Result<Bytes> {
        let mut this = Bytes::zeroed(bytes.len())?;
        this.copy_from_slice(bytes);
        Ok(this)
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}
