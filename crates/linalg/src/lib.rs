//! Matrix decompositions and Fourier transforms on the host: glue between lapis's ops and faer, rustfft, realfft.
//!
//! Linking this crate is enough: it registers as a set of host kernels. It knows tensors and ops, nothing of graphs or
//! of the CPU backend; batches run on that backend's parallel loop.
#![forbid(unsafe_code)]

mod factor;
mod fft;
mod host;
mod lu;
mod solve;
mod spectral;

use lapis_core::backend::{KERNELS, Kernels};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, c64};
use lapis_core::error::Result;
use lapis_core::ops::Op;
use linkme::distributed_slice;

#[distributed_slice(KERNELS)]
static LINALG: fn() -> Box<dyn Kernels> = || Box::new(Linalg);

/// The kernels of this crate.
struct Linalg;

impl Kernels for Linalg {
    fn run(&self, op: &Op, inputs: &[Tensor], outputs: &mut [Tensor]) -> Option<Result<()>> {
        if let Op::Fft(op) = op {
            return Some(fft::fft(op, &inputs[0], &mut outputs[0]));
        }
        match inputs.first()?.dtype {
            Dtype::Float32 => run::<f32>(op, inputs, outputs),
            Dtype::Float64 => run::<f64>(op, inputs, outputs),
            Dtype::Complex64 => run::<c64>(op, inputs, outputs),
            _ => None,
        }
    }
}

fn run<T: spectral::Spectral>(op: &Op, inputs: &[Tensor], outputs: &mut [Tensor]) -> Option<Result<()>> {
    let name = op.name();
    Some(match op {
        Op::Cholesky(op) => factor::cholesky::<T>(name, op.upper, &inputs[0], &mut outputs[0]),
        Op::LuFactor(_) => factor::lu_factor::<T>(name, &inputs[0], outputs),
        Op::Qr(_) => factor::qr::<T>(name, &inputs[0], outputs),
        Op::Inv(_) => solve::inv::<T>(name, &inputs[0], &mut outputs[0]),
        Op::TriInv(op) => solve::tri_inv::<T>(name, op.upper, &inputs[0], &mut outputs[0]),
        Op::Solve(_) => solve::solve::<T>(name, inputs, &mut outputs[0]),
        Op::SolveTriangular(op) => solve::solve_triangular::<T>(name, op.upper, inputs, &mut outputs[0]),
        Op::Det(_) => solve::det::<T>(name, &inputs[0], &mut outputs[0]),
        Op::SlogDet(_) => solve::slogdet::<T>(name, &inputs[0], outputs),
        Op::Svd(op) => spectral::svd::<T>(name, op.vectors, &inputs[0], outputs),
        Op::Eigh(op) => spectral::eigh::<T>(name, op.upper, &inputs[0], outputs),
        Op::Eig(_) => spectral::eig::<T>(name, &inputs[0], outputs),
        _ => return None,
    })
}
