//! Kernels for CPUs: thread pool, instruction sets, and one file a family of operations.
//!
//! Kernels take raw geometry (pointers, strides, sizes) and know nothing of graphs; the entry file maps lapis's
//! operations onto them.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attend;
pub mod attention;
mod backend;
mod cached;
mod categorical;
pub mod conv;
mod convolve;
mod fill;
pub mod gemm;
mod geometry;
mod hadamard;
pub mod isa;
pub mod limits;
mod lines;
pub mod logits;
pub mod math;
mod matmul;
mod memory;
mod moves;
mod pages;
pub mod pool;
pub mod quant;
mod quantized;
pub mod random;
mod reduce;
mod rows;
mod scan;
pub mod simd;
mod soon;
mod sort;
mod stretch;
mod tape;
#[cfg(target_arch = "x86_64")]
mod turn;
