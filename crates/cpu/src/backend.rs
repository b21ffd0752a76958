//! The entry of the CPU backend: which kernel computes which op.

use crate::{
    attend, cached, categorical, convolve, fill, hadamard, matmul, memory, moves, pool, quantized, random, reduce,
    rows, scan, soon, sort, tape,
};
use lapis_core::backend::{Argument, BACKENDS, Backend, Call, Kernels};
use lapis_core::buffer::{Buffer, Tensor};
use lapis_core::error::Result;
use lapis_core::ops::{self, Op};
use lapis_core::schedule::tape::Tape;
use lapis_core::stream::{Device, DeviceInfo};
use linkme::distributed_slice;
use smallvec::SmallVec;

#[distributed_slice(BACKENDS)]
static CPU: fn() -> Box<dyn Backend> = || {
    memory::start();
    Box::new(Cpu)
};

/// The host's processors.
struct Cpu;

impl Kernels for Cpu {
    fn run(&self, op: &Op, inputs: &[Tensor], outputs: &mut [Tensor]) -> Option<Result<()>> {
        Some(match op {
            Op::Arange(op) => fill::arange(op, &mut outputs[0]),
            Op::ArgReduce(op) => sort::arg_reduce(op, &inputs[0], &mut outputs[0]),
            Op::Scan(op) => scan::run(op, &inputs[0], &mut outputs[0]),
            Op::Sort(op) => sort::sort(op, &inputs[0], &mut outputs[0]),
            Op::SearchSorted(op) => sort::search_sorted(op, &inputs[0], &inputs[1], &mut outputs[0]),
            Op::Matmul(_) => matmul::matmul(inputs, &mut outputs[0]),
            Op::AddMM(op) => matmul::addmm(op, inputs, &mut outputs[0]),
            Op::GatherMM(_) => matmul::gather_mm(inputs, &mut outputs[0]),
            Op::SegmentedMM(_) => matmul::segmented_mm(inputs, &mut outputs[0]),
            Op::Convolution(op) => convolve::convolution(op, inputs, &mut outputs[0]),
            Op::Hadamard(op) => hadamard::hadamard(op, &inputs[0], &mut outputs[0]),
            Op::RandomBits(_) => random::run(&inputs[0], &mut outputs[0]),
            Op::InverseCdf(_) => categorical::inverse_cdf(&inputs[0], &inputs[1], &mut outputs[0]),
            Op::Attention(op) => attend::attention(op, inputs, &mut outputs[0]),
            Op::AttentionGrads(op) => attend::attention_grads(op, inputs, outputs),
            Op::CachedAttention(op) => cached::attention(op, inputs, outputs),
            Op::Softmax(_) => rows::softmax::softmax(&inputs[0], &mut outputs[0]),
            Op::LogSumExp(_) => rows::softmax::logsumexp(&inputs[0], &mut outputs[0]),
            Op::CrossEntropy(_) => rows::softmax::cross_entropy(&inputs[0], &inputs[1], &mut outputs[0]),
            Op::Norm(op) => rows::norm::norm(op, inputs, &mut outputs[0]),
            Op::Rope(op) => rows::rope::rope(op, inputs, &mut outputs[0]),
            Op::GatedDelta(op) => rows::delta::gated_delta(op, inputs, outputs),
            Op::Quantize(op) => quantized::quantize(op, inputs, outputs),
            Op::Dequantize(op) => quantized::dequantize(op, inputs, &mut outputs[0]),
            Op::QuantizedMatmul(op) => quantized::matmul(op, inputs, &mut outputs[0]),
            Op::ConvertFp8(op) => quantized::convert_fp8(op, &inputs[0], &mut outputs[0]),
            _ => return moves::run(op, inputs, &mut outputs[0]),
        })
    }
}

impl Backend for Cpu {
    fn device(&self) -> Device {
        Device::CPU
    }
    fn info(&self) -> DeviceInfo {
        // The kernel tells the name in /proc on Linux; elsewhere the family has to do.
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpus.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':'));
        let architecture = std::env::consts::ARCH.to_string();
        let name = name.map_or_else(|| architecture.clone(), |(_, name)| name.trim().to_string());
        DeviceInfo { name, architecture, memory: None }
    }
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        memory::allocate(bytes)
    }
    fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        memory::upload(bytes)
    }
    fn parallel(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        pool::run(tasks, f);
    }
    fn tape(&self, tape: &Tape, inputs: &[Tensor], consts: &[u64], output: &mut Tensor) -> Result<()> {
        tape::run(tape, inputs, consts, output)
    }
    fn together(&self, calls: &mut [Call]) -> Option<Result<()>> {
        let mut products: SmallVec<[_; 4]> = calls
            .iter_mut()
            .filter_map(|call| match call.op {
                Op::QuantizedMatmul(op) => Some((op, call.inputs, &mut call.outputs[0])),
                _ => None,
            })
            .collect();
        Some(quantized::matmul_together(&mut products))
    }
    fn through(
        &self,
        calls: &[Call],
        tape: &Tape,
        arguments: &[Argument],
        consts: &[u64],
        output: &mut Tensor,
    ) -> Option<Result<()>> {
        let mut products: SmallVec<[_; 4]> = SmallVec::new();
        for call in calls {
            let Op::QuantizedMatmul(op) = call.op else { return None };
            products.push((op, call.inputs));
        }
        quantized::matmul_through(&products, tape, arguments, consts, output)
    }
    fn soon(&self, weights: &[(usize, usize)]) {
        soon::announce(weights);
    }
    fn reduce(
        &self,
        tape: &Tape,
        op: &ops::Reduce,
        inputs: &[Tensor],
        consts: &[u64],
        output: &mut Tensor,
    ) -> Result<()> {
        reduce::run(tape, op, inputs, consts, output)
    }
}
