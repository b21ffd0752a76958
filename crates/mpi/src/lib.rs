//! Processes that compute together, started by Open MPI's `mpirun`: a launcher of [`lapis_core::distributed`] and the host
//! kernels of its collectives.
//!
//! Linking this crate is enough; the library itself is opened when `mpirun` has started the process, so neither a build nor a
//! machine needs it before. MPI moves bytes and nothing else: sums are computed here (`combine`), in the order of ranks.
#![cfg(unix)]

mod combine;
mod open_mpi;
mod travel;

use lapis_core::backend::{KERNELS, Kernels};
use lapis_core::buffer::Tensor;
use lapis_core::distributed::{Group, LAUNCHERS, Launcher};
use lapis_core::error::{Error, Result};
use lapis_core::ops::Op;
use lapis_core::ops::collective::{Collective, Kind};
use linkme::distributed_slice;
use open_mpi::Comm;
use std::sync::{Mutex, PoisonError};

#[distributed_slice(LAUNCHERS)]
static MPIRUN: &dyn Launcher = &MpiRun;

#[distributed_slice(KERNELS)]
static COLLECTIVES: fn() -> Box<dyn Kernels> = || Box::new(Collectives);

/// The groups of this process; a group's id is its place here, plus one.
static GROUPS: Mutex<Vec<Comm>> = Mutex::new(Vec::new());

fn enter(comm: Comm) -> Group {
    let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    groups.push(comm);
    Group::new(groups.len() as u32, comm.rank, comm.size)
}

fn comm(group: Group) -> Result<Comm> {
    let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = groups.get((group.id() as usize).wrapping_sub(1)).copied();
    found.ok_or_else(|| Error::device(format!("[distributed] {group:?} is none of this process")))
}

/// The launcher.
struct MpiRun;

impl Launcher for MpiRun {
    fn is_available(&self) -> bool {
        open_mpi::is_here()
    }

    fn join(&self) -> Result<Option<Group>> {
        // mpirun of Open MPI tells processes so; others are not asked to load a library.
        if std::env::var_os("OMPI_COMM_WORLD_SIZE").is_none() {
            return Ok(None);
        }
        Comm::world().map(enter).map(Some)
    }

    fn split(&self, group: Group, color: usize) -> Result<Group> {
        comm(group)?.split(color).map(enter)
    }

    fn leave(&self) {
        open_mpi::finalize();
    }

    fn abort(&self, code: u8) -> ! {
        open_mpi::abort(code)
    }
}

/// The kernels.
struct Collectives;

impl Kernels for Collectives {
    fn run(&self, op: &Op, inputs: &[Tensor], outputs: &mut [Tensor]) -> Option<Result<()>> {
        let Op::Collective(op) = op else { return None };
        Some(run(op, inputs.first(), outputs.first_mut()?))
    }
}

fn run(op: &Collective, input: Option<&Tensor>, output: &mut Tensor) -> Result<()> {
    let comm = comm(op.group)?;
    let input = input.map_or(&[][..], Tensor::contiguous_bytes);
    let dtype = output.dtype;
    if output.size() == 0 {
        // All processes know; MPI asks for addresses that differ, which what is empty does not have.
        return Ok(());
    }
    let output = output.contiguous_bytes_mut().ok_or_else(|| Error::eval("[distributed] the output is shared"))?;
    match &op.kind {
        Kind::Sum | Kind::Max | Kind::Min => travel::reduce(comm, &op.kind, dtype, input, output),
        Kind::Scatter => travel::scatter(comm, dtype, input, output),
        Kind::Gather => travel::gather(comm, input, output),
        Kind::Broadcast(from) => {
            output.copy_from_slice(input);
            travel::chunks(output).try_for_each(|part| comm.broadcast(part, *from))
        }
        Kind::Send(to) => {
            output.copy_from_slice(input);
            travel::chunks(output).try_for_each(|part| comm.send(part, *to))
        }
        Kind::Receive(_, _, from) => travel::chunks(output).try_for_each(|part| comm.receive(part, *from)),
    }
}
