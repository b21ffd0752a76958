//! Kernels for CPUs: thread pool, instruction sets, and one file a family of operations.
//!
//! Kernels take raw geometry (pointers, strides, sizes) and know nothing of graphs; the entry file maps lapis's
//! operations onto them.

pub mod gemm;
pub mod isa;
pub mod pool;
pub mod quant;
pub mod simd;
