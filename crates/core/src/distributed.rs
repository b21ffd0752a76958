//! Groups of processes. Without a launcher there is one process: collectives give back what they are given, and
//! talking to others is an error.
//!
//! Who starts processes is linked in, like a backend: it adds an entry to [`LAUNCHERS`] and host kernels for
//! [`Collective`]. Nothing here knows how bytes travel.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::collective::{Collective, Kind};
use crate::ops::{contiguous, zeros};
use linkme::distributed_slice;
use smallvec::smallvec;
use std::sync::OnceLock;

/// What starts processes that can talk to each other.
pub trait Launcher: Sync {
    /// Whether it is here, and could have started this process.
    fn is_available(&self) -> bool;

    /// The group of all processes that it started, if it started this one.
    ///
    /// # Errors
    /// The others cannot be reached.
    fn join(&self) -> Result<Option<Group>>;

    /// The processes of a group that say the same number, in the order of their ranks; all of them ask at once.
    ///
    /// # Errors
    /// The others cannot be reached.
    fn split(&self, group: Group, color: usize) -> Result<Group>;

    /// Says that this process ends well; the others may go on without it.
    fn leave(&self);

    /// Ends all processes, with this exit code.
    fn abort(&self, code: u8) -> !;
}

/// Those that are linked in.
#[distributed_slice]
pub static LAUNCHERS: [&'static dyn Launcher];

/// Processes that compute together. All of them have to ask for the same collectives, and to evaluate them, in the same order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Group {
    id: u32,
    rank: u32,
    size: u32,
}

type Joined = Option<(&'static dyn Launcher, Group)>;

static JOINED: OnceLock<Result<Joined>> = OnceLock::new();

/// Who started this process, found out once.
fn joined() -> Result<&'static Joined> {
    let join = || {
        for &launcher in LAUNCHERS.iter() {
            if let Some(group) = launcher.join()? {
                return Ok(Some((launcher, group)));
            }
        }
        Ok(None)
    };
    JOINED.get_or_init(join).as_ref().map_err(Clone::clone)
}

/// The group that this process was started in (`mx.distributed.init`), or itself alone.
///
/// # Errors
/// The others cannot be reached. With `strict`, a device error where nobody started this process.
pub fn init(strict: bool) -> Result<Group> {
    match joined()? {
        Some((_, group)) => Ok(*group),
        None if strict => {
            Err(Error::device("[distributed] no launcher started this process, so there is no group to join"))
        }
        None => Ok(Group { id: 0, rank: 0, size: 1 }),
    }
}

/// Whether processes can talk to each other (`mx.distributed.is_available`).
pub fn is_available() -> bool {
    LAUNCHERS.iter().any(|launcher| launcher.is_available())
}

/// Says that this process ends well. Of a process that joined a group and ends without, the launcher takes it that it failed,
/// and ends the others.
pub fn leave() {
    if let Some(Ok(Some((launcher, _)))) = JOINED.get() {
        launcher.leave();
    }
}

/// Ends all processes of the group that this process joined, this one too; comes back where it joined none.
pub fn abort(code: u8) {
    if let Some(Ok(Some((launcher, _)))) = JOINED.get() {
        launcher.abort(code);
    }
}

impl Group {
    /// A group that a launcher knows by `id`; `id` 0 is a process alone.
    pub fn new(id: u32, rank: usize, size: usize) -> Group {
        Group { id, rank: rank as u32, size: size as u32 }
    }

    /// By what its launcher knows it.
    pub fn id(self) -> u32 {
        self.id
    }

    /// The number of this process in the group.
    pub fn rank(self) -> usize {
        self.rank as usize
    }

    /// How many processes there are.
    pub fn size(self) -> usize {
        self.size as usize
    }

    fn collect(self, kind: Kind, a: &Array) -> Result<Array> {
        if self.size == 1 {
            return Ok(a.clone());
        }
        Array::apply1(Collective { kind, group: self }, smallvec![contiguous(a, false)?])
    }

    /// The sum over the group, of the same bits on all processes: it is added in the order of ranks, half precision in float32.
    ///
    /// # Errors
    /// None for valid arrays. At evaluation, faults of communication; so with all that follow.
    pub fn all_sum(self, a: &Array) -> Result<Array> {
        self.collect(Kind::Sum, a)
    }

    /// The largest over the group, element by element.
    ///
    /// # Errors
    /// Complex numbers.
    pub fn all_max(self, a: &Array) -> Result<Array> {
        self.collect(Kind::Max, a)
    }

    /// The smallest over the group, element by element.
    ///
    /// # Errors
    /// Complex numbers.
    pub fn all_min(self, a: &Array) -> Result<Array> {
        self.collect(Kind::Min, a)
    }

    /// The arrays of the group, of one shape, joined along axis 0.
    ///
    /// # Errors
    /// A shape too large.
    pub fn all_gather(self, a: &Array) -> Result<Array> {
        self.collect(Kind::Gather, a)
    }

    /// The sum over the group, of which each process keeps its part along axis 0.
    ///
    /// # Errors
    /// An axis 0 that does not divide among the processes.
    pub fn sum_scatter(self, a: &Array) -> Result<Array> {
        self.collect(Kind::Scatter, a)
    }

    /// The array of process `from`; that of the others, of the same shape and dtype, is not looked at.
    ///
    /// # Errors
    /// A process that there is not.
    pub fn broadcast(self, a: &Array, from: usize) -> Result<Array> {
        self.collect(Kind::Broadcast(self.other("broadcast", from, true)?), a)
    }

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// Faults of communication.
    pub fn barrier(self) -> Result<()> {
        self.all_sum(&zeros::<i32>(&[])?)?.eval()
    }

    /// Sends to process `to` when the result, which is `a`, is evaluated.
    ///
    /// # Errors
    /// A process that there is not, or this one.
    pub fn send(self, a: &Array, to: usize) -> Result<Array> {
        self.collect(Kind::Send(self.other("send", to, false)?), a)
    }

    /// Receives an array of this shape and dtype from process `from`.
    ///
    /// # Errors
    /// A process that there is not, or this one.
    pub fn recv(self, shape: &[usize], dtype: Dtype, from: usize) -> Result<Array> {
        let kind = Kind::Receive(shape.into(), dtype, self.other("recv", from, false)?);
        Array::apply1(Collective { kind, group: self }, smallvec![])
    }

    /// Receives an array like `a` from process `from`.
    ///
    /// # Errors
    /// A process that there is not, or this one.
    pub fn recv_like(self, a: &Array, from: usize) -> Result<Array> {
        self.recv(a.shape(), a.dtype(), from)
    }

    /// The processes that say the same number, in the order of their ranks.
    ///
    /// # Errors
    /// Always, for one process; faults of communication.
    pub fn split(self, color: usize) -> Result<Group> {
        match joined()? {
            Some((launcher, _)) if self.size > 1 => launcher.split(self, color),
            _ => Err(alone("split", color)),
        }
    }

    /// That process `with` is in the group, and another one unless `own`.
    fn other(self, op: &str, with: usize, own: bool) -> Result<usize> {
        match with < self.size() && (own || with != self.rank()) {
            true => Ok(with),
            false if self.size == 1 => Err(alone(op, with)),
            false => {
                let (rank, size) = (self.rank, self.size);
                Err(Error::device(format!("[{op}] {with}: the group has processes 0 to {}, this is {rank}", size - 1)))
            }
        }
    }
}

fn alone(op: &str, with: usize) -> Error {
    Error::device(format!("[{op}] {with}: the group has one process"))
}
