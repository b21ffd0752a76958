//! Groups of processes. Without a launcher there is one process: collectives give back what they are given, and
//! talking to others is an error.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Processes that compute together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group(());

/// The group of this process (`mx.distributed.init`): itself, until a launcher exists.
///
/// # Errors
/// With `strict`, a device error: there is nobody to talk to.
pub fn init(strict: bool) -> Result<Group> {
    if strict {
        return Err(Error::device("[distributed] no launcher started this process, so there is no group to join"));
    }
    Ok(Group(()))
}

/// Whether processes can talk to each other.
pub fn is_available() -> bool {
    false
}

impl Group {
    /// The number of this process in the group.
    pub fn rank(self) -> usize {
        0
    }

    /// How many processes there are.
    pub fn size(self) -> usize {
        1
    }

    /// The sum over the group.
    ///
    /// # Errors
    /// None for one process.
    pub fn all_sum(self, a: &Array) -> Result<Array> {
        Ok(a.clone())
    }

    /// The largest over the group, element by element.
    ///
    /// # Errors
    /// None for one process.
    pub fn all_max(self, a: &Array) -> Result<Array> {
        Ok(a.clone())
    }

    /// The smallest over the group, element by element.
    ///
    /// # Errors
    /// None for one process.
    pub fn all_min(self, a: &Array) -> Result<Array> {
        Ok(a.clone())
    }

    /// The arrays of the group joined along axis 0.
    ///
    /// # Errors
    /// None for one process.
    pub fn all_gather(self, a: &Array) -> Result<Array> {
        Ok(a.clone())
    }

    /// The sum over the group, of which each process keeps its part along axis 0.
    ///
    /// # Errors
    /// None for one process.
    pub fn sum_scatter(self, a: &Array) -> Result<Array> {
        Ok(a.clone())
    }

    /// Sends to process `to`.
    ///
    /// # Errors
    /// Always, for one process.
    pub fn send(self, _: &Array, to: usize) -> Result<Array> {
        Err(alone("send", to))
    }

    /// Receives an array of this shape and dtype from process `from`.
    ///
    /// # Errors
    /// Always, for one process.
    pub fn recv(self, _shape: &[usize], _dtype: Dtype, from: usize) -> Result<Array> {
        Err(alone("recv", from))
    }

    /// Receives an array like `a` from process `from`.
    ///
    /// # Errors
    /// Always, for one process.
    pub fn recv_like(self, _: &Array, from: usize) -> Result<Array> {
        Err(alone("recv", from))
    }

    /// A part of the group.
    ///
    /// # Errors
    /// Always, for one process.
    pub fn split(self, color: usize) -> Result<Group> {
        Err(alone("split", color))
    }
}

fn alone(op: &str, with: usize) -> Error {
    Error::device(format!("[{op}] {with}: the group has one process"))
}
