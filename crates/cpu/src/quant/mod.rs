//! Quantized tensors: how weights become codes, scales and biases, back again, and products with them.
//!
//! The packed layout and every rounding are MLX's, so that checkpoints travel both ways bit for bit. Kernels here take
//! byte slices and sizes; they know nothing of arrays.
//!
//! Order of reading: [`codes`] (bit strings and small floats), `quantize`, `dequantize`, then the
//! products.

/// Compiles one always-inlined body for each instruction set and picks at run time.
///
/// The loops inside are vectorised by the compiler. The `Isa` passed must be one of `isa::available()`.
macro_rules! versions {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,fma,f16c,bmi2")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,bmi2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                // SAFETY: a level is only passed where `isa::available()` found its features on this machine.
                unsafe {
                    match isa {
                        $crate::isa::Isa::Avx512 => return avx512($($arg),*),
                        $crate::isa::Isa::Avx2 => return avx2($($arg),*),
                        _ => {}
                    }
                }
            }
            let _ = isa;
            $body($($arg),*)
        }
    };
}

mod activations;
#[cfg(target_arch = "x86_64")]
mod activations_avx512;
pub mod codes;
mod coming;
mod decode;
mod dequantize;
mod dot;
#[cfg(target_arch = "x86_64")]
mod few;
#[cfg(target_arch = "x86_64")]
mod few_avx2;
mod fma;
mod format;
mod gather;
mod halves;
#[cfg(target_arch = "x86_64")]
mod lengthwise;
#[cfg(target_arch = "x86_64")]
mod lone;
mod panel;
#[cfg(target_arch = "x86_64")]
mod panel_avx2;
#[cfg(target_arch = "x86_64")]
mod panel_avx512;
mod qmm;
#[cfg(test)]
mod qmm_tests;
mod qqmm;
mod quantize;
mod tail;
mod tasks;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod thin;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod weights;

pub use activations::Rows;
pub use dequantize::{dequantize, from_fp8};
pub use format::{Format, Mode};
pub use gather::gather_qmm;
pub(crate) use qmm::THIN_ROWS;
pub use qmm::{Arithmetic, Target, arithmetic, qmm, qmm_all, qmm_through, set_arithmetic};
pub use qqmm::{gather_qqmm, qqmm};
pub use quantize::{quantize, to_fp8};
pub use tail::{Source, Tail};
pub use weights::Weights;
