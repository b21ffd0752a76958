//! Every operation of lapis, one file a family; this file is the registry.
//!
//! An op is plain data with its rules beside it. Public functions check arguments and build nodes; they return
//! `Result`, and their twins that are methods or operators panic with the same text.

use crate::array::Array;
use crate::error::Result;
use crate::node::Avals;
use crate::transforms::{self, Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::hash::Hash;

pub mod collective;
pub mod compose;
pub mod conv;
pub mod create;
pub mod einsum;
pub mod elementwise;
pub(crate) mod expect;
pub mod fast;
pub mod fft;
pub mod full;
pub mod gather;
pub mod gather_mm;
pub mod hadamard;
pub mod index;
pub mod join;
pub mod layout;
pub mod linalg;
pub mod lookup;
pub mod matmul;
pub mod operand;
mod operators;
pub mod products;
pub mod quantize;
pub mod reduce;
pub mod scan;
pub mod scatter;
pub mod search;
pub mod softmax;
pub mod sort;
pub mod statistics;
pub mod view;

pub use compose::*;
pub use conv::*;
pub use create::*;
pub use einsum::{einsum, einsum_path};
pub use elementwise::*;
pub use full::*;
pub use gather::*;
pub use gather_mm::*;
pub use hadamard::*;
pub use index::*;
pub use join::*;
pub use layout::*;
pub use lookup::*;
pub use matmul::*;
pub use operand::Operand;
pub use products::*;
pub use quantize::*;
pub use reduce::*;
pub use scan::*;
pub use scatter::*;
pub use search::*;
pub use softmax::*;
pub use sort::*;
pub use statistics::*;
pub use view::*;

/// The rules of an op. There are no default bodies: what an op cannot do is written out.
pub trait Rule: Clone + Debug + PartialEq + Eq + Hash {
    /// The name users know.
    fn name(&self) -> &'static str;

    /// Shapes and dtypes of the outputs.
    ///
    /// # Errors
    /// What is wrong with the inputs, naming shapes and dtypes.
    fn infer(&self, inputs: &[Array]) -> Result<Avals>;
}

/// How the scheduler treats an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A row of the elementwise table: joins fused groups.
    Elementwise,
    /// Another look at the same memory; no kernel unless the layout forbids it.
    View,
    /// One number repeated: an immediate of a tape, or a single element with stride 0.
    Full,
    /// A reduction: takes an elementwise group as its input.
    Reduce,
    /// A kernel of its own.
    Kernel,
    /// A kernel that belongs to no backend ([`KERNELS`](crate::backend::KERNELS)): nobody else may hold its outputs while it runs.
    Host,
    /// The last inputs, unchanged, as many as there are outputs: marks for transforms.
    Same,
    /// A kernel with outputs that start as a copy of an input ([`Op::updated`]), or take it over when nobody else needs it.
    Update,
}

macro_rules! registry {
    ($($(#[$stored:meta])? $class:ident $path:path => $name:ident;)*) => {
        /// Any op, as data. In files it goes by the name of its variant.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Op {
            $(#[allow(missing_docs)] $(#[$stored])? $name($path),)*
        }

        impl Op {
            /// The variants, as files name them.
            pub const ALL: &[&str] = &[$(stringify!($name)),*];

            /// The name users know.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(op) => op.name(),)* }
            }

            /// Shapes and dtypes of the outputs.
            ///
            /// # Errors
            /// What is wrong with the inputs.
            pub fn infer(&self, inputs: &[Array]) -> Result<Avals> {
                match self { $(Op::$name(op) => op.infer(inputs),)* }
            }

            /// Its derivative; see [`Transform::vjp`].
            ///
            /// # Errors
            /// Where none exists.
            pub fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
                match self { $(Op::$name(op) => op.vjp(at),)* }
            }

            /// All lanes at once; see [`Transform::vmap`].
            ///
            /// # Errors
            /// Where the op cannot be mapped.
            pub fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
                match self { $(Op::$name(op) => op.vmap(lanes, size),)* }
            }

            /// How the scheduler treats it.
            pub fn class(&self) -> Class {
                match self { $(Op::$name(_) => Class::$class,)* }
            }
        }

        $(impl From<$path> for Op {
            fn from(op: $path) -> Op {
                Op::$name(op)
            }
        })*
    };
}

registry! {
    Elementwise elementwise::Elementwise => Elementwise;
    #[serde(skip)] Kernel full::Constant => Constant;
    Full full::Full => Full;
    Kernel full::Arange => Arange;
    View view::Broadcast => Broadcast;
    View view::Reshape => Reshape;
    View view::Transpose => Transpose;
    View view::Slice => Slice;
    View view::AsStrided => AsStrided;
    View view::BitView => BitView;
    View view::Contiguous => Contiguous;
    View view::StopGradient => StopGradient;
    View view::Depends => Depends;
    #[serde(skip)] Same transforms::Tracer => Tracer;
    #[serde(skip)] Same transforms::Placeholder => Placeholder;
    #[serde(skip)] Same transforms::Custom => Custom;
    #[serde(skip)] Host collective::Collective => Collective;
    Reduce reduce::Reduce => Reduce;
    Kernel statistics::ArgReduce => ArgReduce;
    Kernel scan::Scan => Scan;
    Kernel sort::Sort => Sort;
    Kernel sort::SearchSorted => SearchSorted;
    Kernel softmax::Softmax => Softmax;
    Kernel softmax::LogSumExp => LogSumExp;
    Kernel softmax::CrossEntropy => CrossEntropy;
    Kernel fast::norm::Norm => Norm;
    Kernel fast::rope::Rope => Rope;
    Kernel fast::attention::Attention => Attention;
    Kernel fast::attention_grads::AttentionGrads => AttentionGrads;
    #[serde(skip)] Update fast::cached::CachedAttention => CachedAttention;
    Kernel fast::delta::GatedDelta => GatedDelta;
    Kernel crate::random::RandomBits => RandomBits;
    Kernel crate::random::InverseCdf => InverseCdf;
    Kernel quantize::Quantize => Quantize;
    Kernel quantize::Dequantize => Dequantize;
    Kernel quantize::QuantizedMatmul => QuantizedMatmul;
    Kernel quantize::ConvertFp8 => ConvertFp8;
    Kernel join::Concatenate => Concatenate;
    Kernel join::Pad => Pad;
    Kernel gather::Gather => Gather;
    Kernel gather::GatherAxis => GatherAxis;
    Kernel gather::DynamicSlice => DynamicSlice;
    Update scatter::SliceUpdate => SliceUpdate;
    Update scatter::DynamicSliceUpdate => DynamicSliceUpdate;
    Update scatter::Scatter => Scatter;
    Update scatter::ScatterAxis => ScatterAxis;
    Update scatter::MaskedScatter => MaskedScatter;
    Kernel matmul::Matmul => Matmul;
    Kernel matmul::AddMM => AddMM;
    Kernel gather_mm::GatherMM => GatherMM;
    Kernel gather_mm::SegmentedMM => SegmentedMM;
    Kernel hadamard::Hadamard => Hadamard;
    Kernel conv::Convolution => Convolution;
    Host fft::Fft => Fft;
    Host linalg::Cholesky => Cholesky;
    Host linalg::LuFactor => LuFactor;
    Host linalg::Qr => Qr;
    Host linalg::Inv => Inv;
    Host linalg::TriInv => TriInv;
    Host linalg::Solve => Solve;
    Host linalg::SolveTriangular => SolveTriangular;
    Host linalg::Det => Det;
    Host linalg::SlogDet => SlogDet;
    Host linalg::Svd => Svd;
    Host linalg::Eigh => Eigh;
    Host linalg::Eig => Eig;
}

impl Op {
    /// The input that an output starts as a copy of (or takes over when nobody else needs it).
    pub fn updated(&self, output: usize) -> Option<usize> {
        match self {
            Op::CachedAttention(op) => op.updated(output),
            _ => (self.class() == Class::Update && output == 0).then_some(0),
        }
    }

    /// Whether it marks what is computed again for gradients, and nothing more.
    pub(crate) fn is_checkpoint(&self) -> bool {
        matches!(self, Op::Custom(custom) if !custom.has_rules())
    }

    /// Whether kernels read an input byte by byte, so that its elements may lie anywhere: packed words, and what rows are
    /// gathered from.
    pub fn reads_bytes(&self, input: usize) -> bool {
        match self {
            Op::QuantizedMatmul(_) => input == 1,
            Op::Dequantize(_) | Op::Gather(_) => input == 0,
            _ => false,
        }
    }

    /// Whether several such ops on the same first input are better computed together: products with packed matrices,
    /// for which rows are prepared.
    pub fn shares_left(&self) -> bool {
        matches!(self, Op::QuantizedMatmul(op) if op.transpose && !op.gathered && op.rounds_x.is_none())
    }

    /// Whether all of the second input is read, in the order of memory, when the first has few rows.
    pub fn reads_weights(&self) -> bool {
        matches!(self, Op::Matmul(_)) || self.shares_left()
    }
}
