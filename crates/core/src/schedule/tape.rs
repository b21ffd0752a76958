//! A fused group of elementwise ops as a straight-line program over tiles.
//!
//! Knows nothing of the graph it came from: inputs and constants are numbered, intermediate values live in numbered
//! registers, each the size of one tile. Every instruction rounds to its dtype, so that fusing never changes bits.

use crate::dtype::Dtype;
use crate::ops::Ew;

/// Where an instruction finds an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Src {
    /// The n-th input tensor.
    Input(u16),
    /// The n-th constant.
    Const(u16),
    /// A register.
    Reg(u16),
}

/// One row of the table applied to a tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instr {
    /// The op.
    pub op: Ew,
    /// Dtype of the arguments (of the last one: the condition of a select is bool).
    pub from: Dtype,
    /// Dtype of the result.
    pub to: Dtype,
    /// Arguments; only the first `op.row().arity` count.
    pub args: [Src; 3],
    /// Register of the result; it may be one that an argument ends in.
    pub out: u16,
}

/// The program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tape {
    /// In order.
    pub instrs: Vec<Instr>,
    /// Dtypes of the inputs.
    pub inputs: Vec<Dtype>,
    /// Dtypes of the constants.
    pub consts: Vec<Dtype>,
    /// What the group gives: the register of the last instruction, or an input as it is when there are none.
    pub result: Src,
    /// Number of registers in use at once.
    pub registers: u16,
}

impl Tape {
    /// The program that hands its only input on: a copy, or the start of a plain reduction.
    pub fn identity(dtype: Dtype) -> Tape {
        Tape { instrs: Vec::new(), inputs: vec![dtype], consts: Vec::new(), result: Src::Input(0), registers: 0 }
    }

    /// The dtype of the result.
    pub fn dtype(&self) -> Dtype {
        match self.result {
            Src::Input(i) => self.inputs[i as usize],
            Src::Const(i) => self.consts[i as usize],
            Src::Reg(_) => self.instrs.last().map_or(Dtype::Float32, |i| i.to),
        }
    }

    /// Bytes of the widest element that passes through a register or an input.
    pub fn widest(&self) -> usize {
        let regs = self.instrs.iter().map(|i| i.to.size());
        regs.chain(self.inputs.iter().map(|d| d.size())).max().unwrap_or(1)
    }
}
