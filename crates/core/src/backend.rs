//! What a device must do to run lapis, and how backends are found.
//!
//! Backends are linked in, not registered by hand: a backend crate adds an entry to [`KERNELS`] or [`BACKENDS`],
//! and whoever links the crate has the device.

use crate::buffer::{Buffer, Tensor};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::ops::reduce::Reduce;
use crate::schedule::tape::Tape;
use crate::stream::{Device, DeviceInfo};
use linkme::distributed_slice;
use std::sync::{Mutex, OnceLock, PoisonError};

/// One op to compute, as [`Kernels::run`] takes it.
pub struct Call<'a> {
    /// What.
    pub op: &'a Op,
    /// Of what.
    pub inputs: &'a [Tensor],
    /// Where to.
    pub outputs: &'a mut [Tensor],
}

/// What an input of a fused group is, as [`Backend::through`] takes it.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    /// The result of the n-th call.
    Call(usize),
    /// This.
    Tensor(&'a Tensor),
}

/// A set of ops somebody can compute.
pub trait Kernels: Send + Sync {
    /// Computes `outputs` from `inputs`; `None`, with nothing touched, for an op it does not know.
    ///
    /// Inputs have any strides. Outputs are row-major and hold no values, with one exception: where [`Op::updated`] names an
    /// input the output starts as a copy of it.
    ///
    /// # Errors
    /// Faults in the values (an index out of range, a singular matrix) and memory.
    fn run(&self, op: &Op, inputs: &[Tensor], outputs: &mut [Tensor]) -> Option<Result<()>>;
}

/// Everything a device must offer.
pub trait Backend: Kernels {
    /// The device it serves.
    fn device(&self) -> Device;

    /// What that device is.
    fn info(&self) -> DeviceInfo;

    /// Uninitialised memory of at least `bytes`, aligned to 64.
    ///
    /// # Errors
    /// A memory error when the limit is reached or the system has no more.
    fn alloc(&self, bytes: usize) -> Result<Buffer>;

    /// Memory with a copy of `bytes`.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    fn upload(&self, bytes: &[u8]) -> Result<Buffer>;

    /// Runs `f(0)`, ..., `f(tasks - 1)`, each once, on the threads of the device: the parallel loop of host kernels.
    fn parallel(&self, tasks: usize, f: &(dyn Fn(usize) + Sync));

    /// Runs a fused group of elementwise ops: every input has the shape of the output. `consts` are the bits of
    /// the tape's constants. An input may be the same tensor as the output; other overlaps do not occur.
    ///
    /// # Errors
    /// Memory.
    fn tape(&self, tape: &Tape, inputs: &[Tensor], consts: &[u64], output: &mut Tensor) -> Result<()>;

    /// Computes calls that read the same first input and for which [`Op::shares_left`] holds; `None`, with nothing
    /// touched, where one by one is as good.
    ///
    /// # Errors
    /// As [`Kernels::run`].
    fn together(&self, calls: &mut [Call]) -> Option<Result<()>>;

    /// Computes a fused group, as [`Backend::tape`], of what calls as of [`Backend::together`] give: they have no outputs, and each
    /// of their results is an argument of the group and of nothing else. `None`, with nothing touched, where one after the other
    /// is as good.
    ///
    /// # Errors
    /// As [`Kernels::run`].
    fn through(
        &self,
        calls: &[Call],
        tape: &Tape,
        arguments: &[Argument],
        consts: &[u64],
        output: &mut Tensor,
    ) -> Option<Result<()>>;

    /// Says what the next product with weights reads, as addresses and bytes, so that idle threads can ask memory for it.
    /// A hint: what was there may be gone.
    fn soon(&self, weights: &[(usize, usize)]);

    /// Reduces the result of a tape: `inputs` have the shape before the reduction.
    ///
    /// # Errors
    /// Memory.
    fn reduce(
        &self,
        tape: &Tape,
        reduce: &Reduce,
        inputs: &[Tensor],
        consts: &[u64],
        output: &mut Tensor,
    ) -> Result<()>;
}

/// Constructors of linked backends.
#[distributed_slice]
pub static BACKENDS: [fn() -> Box<dyn Backend>];

/// Constructors of kernel sets that run on the host beside the CPU backend.
#[distributed_slice]
pub static KERNELS: [fn() -> Box<dyn Kernels>];

fn backends() -> &'static [Box<dyn Backend>] {
    static ALL: OnceLock<Vec<Box<dyn Backend>>> = OnceLock::new();
    ALL.get_or_init(|| BACKENDS.iter().map(|make| make()).collect())
}

fn host_kernels() -> &'static [Box<dyn Kernels>] {
    static ALL: OnceLock<Vec<Box<dyn Kernels>>> = OnceLock::new();
    ALL.get_or_init(|| KERNELS.iter().map(|make| make()).collect())
}

/// The backend of `device`.
///
/// # Errors
/// A device error when none is linked.
pub fn find(device: Device) -> Result<&'static dyn Backend> {
    backends().iter().find(|b| b.device() == device).map(|b| &**b).ok_or_else(|| {
        Error::device(format!("[eval] no backend for {device} is linked; depend on the crate `lapis` or on a backend"))
    })
}

/// Runs `f` once on each item, `per` neighbours a task, on the threads of the CPU backend where there is one: a loop of the host
/// that may take as long as a kernel. Each task makes its own workspace.
pub fn each<I: Send, W>(items: Vec<I>, per: usize, make: impl Fn() -> W + Sync, f: impl Fn(&mut W, I) + Sync) {
    let (n, per) = (items.len(), per.max(1));
    let tasks = n.div_ceil(per);
    let Some(cpu) = find(Device::CPU).ok().filter(|_| tasks > 1) else {
        let mut workspace = make();
        return items.into_iter().for_each(|item| f(&mut workspace, item));
    };
    // Each item is taken by one task; the locks are what tells the compiler so.
    let slots: Vec<Mutex<Option<I>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    cpu.parallel(tasks, &|t| {
        let mut workspace = make();
        for slot in &slots[t * per..n.min((t + 1) * per)] {
            if let Some(item) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
                f(&mut workspace, item);
            }
        }
    });
}

/// Computes calls that may be computed together.
///
/// # Errors
/// As [`run`].
pub(crate) fn together(backend: &dyn Backend, calls: &mut [Call]) -> Result<()> {
    if calls.len() > 1
        && let Some(result) = backend.together(calls)
    {
        return result;
    }
    calls.iter_mut().try_for_each(|call| run(backend, call.op, call.inputs, call.outputs))
}

/// Computes `op` with whoever knows it: the device's backend, else host kernels.
///
/// # Errors
/// What the kernel finds; unsupported, naming the op.
pub(crate) fn run(backend: &dyn Backend, op: &Op, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let found = backend.run(op, inputs, outputs);
    let found = found.or_else(|| host_kernels().iter().find_map(|k| k.run(op, inputs, outputs)));
    found.unwrap_or_else(|| Err(Error::unsupported(format!("[{}] no linked backend computes this op", op.name()))))
}
