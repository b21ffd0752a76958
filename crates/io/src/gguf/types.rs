//! The numbers by which GGUF files name the types of values and tensors.

use lapis_core::dtype::Dtype;
use std::fmt;

/// The types of metadata values; the number is the one in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ValueType {
    Uint8 = 0,
    Int8 = 1,
    Uint16 = 2,
    Int16 = 3,
    Uint32 = 4,
    Int32 = 5,
    Float32 = 6,
    Bool = 7,
    Text = 8,
    Array = 9,
    Uint64 = 10,
    Int64 = 11,
    Float64 = 12,
}

use ValueType as V;

impl ValueType {
    const ALL: [(V, Option<Dtype>); 13] = [
        (V::Uint8, Some(Dtype::Uint8)),
        (V::Int8, Some(Dtype::Int8)),
        (V::Uint16, Some(Dtype::Uint16)),
        (V::Int16, Some(Dtype::Int16)),
        (V::Uint32, Some(Dtype::Uint32)),
        (V::Int32, Some(Dtype::Int32)),
        (V::Float32, Some(Dtype::Float32)),
        (V::Bool, Some(Dtype::Bool)),
        (V::Text, None),
        (V::Array, None),
        (V::Uint64, Some(Dtype::Uint64)),
        (V::Int64, Some(Dtype::Int64)),
        (V::Float64, Some(Dtype::Float64)),
    ];

    pub(super) fn from_id(id: u32) -> Option<V> {
        Some(Self::ALL.get(id as usize)?.0)
    }

    /// The dtype of numbers; `None` for texts and arrays.
    pub(super) fn dtype(self) -> Option<Dtype> {
        Self::ALL[self as usize].1
    }

    /// The type that holds values of `dtype`.
    pub(super) fn of_dtype(dtype: Dtype) -> Option<V> {
        Self::ALL.iter().find(|(_, d)| *d == Some(dtype)).map(|(v, _)| *v)
    }
}

/// The types of tensors that lapis reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, non_camel_case_types)] // ggml's names
pub enum Type {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    MXFP4,
}

use Type::*;

/// Number in the file, name, type, values and bytes of a block.
const TYPES: &[(u32, &str, Type, u64, u64)] = &[
    (0, "F32", F32, 1, 4),
    (1, "F16", F16, 1, 2),
    (2, "Q4_0", Q4_0, 32, 18),
    (3, "Q4_1", Q4_1, 32, 20),
    (6, "Q5_0", Q5_0, 32, 22),
    (7, "Q5_1", Q5_1, 32, 24),
    (8, "Q8_0", Q8_0, 32, 34),
    (10, "Q2_K", Q2_K, 256, 84),
    (11, "Q3_K", Q3_K, 256, 110),
    (12, "Q4_K", Q4_K, 256, 144),
    (13, "Q5_K", Q5_K, 256, 176),
    (14, "Q6_K", Q6_K, 256, 210),
    (24, "I8", I8, 1, 1),
    (25, "I16", I16, 1, 2),
    (26, "I32", I32, 1, 4),
    (27, "I64", I64, 1, 8),
    (28, "F64", F64, 1, 8),
    (30, "BF16", BF16, 1, 2),
    (39, "MXFP4", MXFP4, 32, 17),
];

/// Types that exist and are refused by name.
const REFUSED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (40, "NVFP4"),
];

impl Type {
    pub(super) fn from_id(id: u32) -> Result<Type, String> {
        if let Some(t) = TYPES.iter().find(|t| t.0 == id) {
            return Ok(t.2);
        }
        let known: Vec<_> = TYPES.iter().map(|t| t.1).collect();
        let what = match REFUSED.iter().find(|t| t.0 == id) {
            Some((_, name)) => format!("type {name} is not supported"),
            None => format!("unknown type {id}"),
        };
        Err(format!("{what}; known are {}", known.join(", ")))
    }

    fn row(self) -> &'static (u32, &'static str, Type, u64, u64) {
        TYPES.iter().find(|t| t.2 == self).expect("every type has a row")
    }

    pub(super) fn id(self) -> u32 {
        self.row().0
    }

    /// Values and bytes of a block; 1 and the size of an element for plain types.
    pub fn block(self) -> (u64, u64) {
        (self.row().3, self.row().4)
    }

    /// The dtype of types that are no blocks.
    pub fn plain(self) -> Option<Dtype> {
        Some(match self {
            F32 => Dtype::Float32,
            F16 => Dtype::Float16,
            BF16 => Dtype::Bfloat16,
            F64 => Dtype::Float64,
            I8 => Dtype::Int8,
            I16 => Dtype::Int16,
            I32 => Dtype::Int32,
            I64 => Dtype::Int64,
            _ => return None,
        })
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}
