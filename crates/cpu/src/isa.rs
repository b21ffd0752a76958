//! Which instruction set the kernels use, decided once at run time.
//!
//! `LAPIS_SIMD=amx|avx512|avx2|neon|scalar` forces a lower level; asking for one that this machine lacks is an error
//! ([`check`]) that the backend starts with otherwise. `amx` is AVX-512 with the matrix unit of Intel's servers, which makes
//! products of many rows faster, with the same bits, and attention of bfloat16, with others.

use lapis_core::error::{Error, Result};
use std::sync::OnceLock;

/// The levels kernels are written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any machine.
    Scalar,
    /// ARM Advanced SIMD.
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, CD, DQ, VL, with VNNI and VBMI.
    Avx512,
}

/// Bytes from a line to the next of its set in the first-level cache.
#[cfg(target_arch = "x86_64")]
pub(crate) const SET: usize = 4096;
/// Bytes of the first-level cache from which on it is used as [`Features::near`] says.
#[cfg(target_arch = "x86_64")]
pub(crate) const NEAR: usize = 48 << 10;

/// Finer abilities beside the level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// The level in use.
    pub isa: Isa,
    /// `vdpbf16ps` exists and is at least as fast as two FMAs (AMD Zen 4 and later; on Intel cores it runs at half
    /// the FMA rate, so converting to f32 wins there).
    pub fast_bf16_dot: bool,
    /// Weights are asked for in the order of their addresses, one strip of rows ahead, into the second-level cache (AMD, whose
    /// prefetchers follow a stream: 30 GB/s where many pages in turn get 15). Intel's cores get a tenth more from many pages.
    pub in_order: bool,
    /// The first-level cache holds two strips of rows (Zen 5: 48 KiB), so that few rows of activations have the next one asked for
    /// into it, no further ahead: a tenth to a quarter less time than from the second level there.
    pub near: bool,
    /// AVX-VNNI (`vpdpbusd` on 256-bit registers) beside AVX2.
    pub avx_vnni: bool,
    /// AMX with 8-bit integers and bfloat16 beside AVX-512, and leave to use it.
    pub amx: bool,
}

impl Features {
    /// What `LAPIS_SIMD` would say.
    pub const fn name(&self) -> &'static str {
        if self.amx { "amx" } else { self.isa.name() }
    }
}

impl Isa {
    /// The name used in `LAPIS_SIMD`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Whether this machine can run the level.
    #[inline]
    pub fn is_available(self) -> bool {
        static BEST: OnceLock<Isa> = OnceLock::new();
        let best = *BEST.get_or_init(best);
        self == best || self == Isa::Scalar || (best == Isa::Avx512 && self == Isa::Avx2)
    }

    fn from_name(name: &str) -> Option<Isa> {
        [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512].into_iter().find(|i| i.name() == name)
    }
}

/// The instruction set in use.
#[inline]
pub fn isa() -> Isa {
    features().isa
}

/// Everything the kernels may ask about this machine.
#[inline]
pub fn features() -> &'static Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    FEATURES.get_or_init(|| detect().unwrap_or_else(|why| panic!("{why}")))
}

/// That this machine has what `LAPIS_SIMD` asks for; where nobody has asked this, [`features`] panics.
///
/// # Errors
/// Says what there is.
pub fn check() -> Result<()> {
    detect().map(drop).map_err(Error::value)
}

#[cfg(target_arch = "x86_64")]
fn best() -> Isa {
    macro_rules! has { ($($f:tt),*) => { $(is_x86_feature_detected!($f))&&* } }
    if has!(
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx512vbmi",
        "fma",
        "f16c",
        "bmi2"
    ) {
        Isa::Avx512
    } else if has!("avx2", "fma", "f16c", "bmi2") {
        Isa::Avx2
    } else {
        Isa::Scalar
    }
}

#[cfg(target_arch = "aarch64")]
fn best() -> Isa {
    Isa::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn best() -> Isa {
    Isa::Scalar
}

/// Levels this machine can run, best first.
pub fn available() -> Vec<Isa> {
    let mut all = vec![best()];
    if all[0] == Isa::Avx512 {
        all.push(Isa::Avx2);
    }
    if all[0] != Isa::Scalar {
        all.push(Isa::Scalar);
    }
    all
}

fn detect() -> std::result::Result<Features, String> {
    let wanted = std::env::var("LAPIS_SIMD").ok();
    let amx = wanted.as_deref().is_none_or(|name| name == "amx") && best() == Isa::Avx512 && has_amx();
    let isa = match &wanted {
        None => best(),
        Some(name) if name == "amx" && amx => Isa::Avx512,
        Some(name) => match Isa::from_name(name) {
            Some(isa) if available().contains(&isa) => isa,
            _ => {
                let names: Vec<_> = available().into_iter().map(Isa::name).collect();
                return Err(format!("LAPIS_SIMD={name}: this machine runs {}", names.join(", ")));
            }
        },
    };
    #[cfg(target_arch = "x86_64")]
    {
        let amd = vendor_is_amd();
        return Ok(Features {
            isa,
            fast_bf16_dot: isa == Isa::Avx512 && amd && is_x86_feature_detected!("avx512bf16"),
            in_order: amd,
            near: amd && first_level() >= NEAR,
            avx_vnni: isa == Isa::Avx2 && is_x86_feature_detected!("avxvnni"),
            amx,
        });
    }
    #[allow(unreachable_code)]
    Ok(Features { isa, fast_bf16_dot: false, in_order: false, near: false, avx_vnni: false, amx })
}

#[cfg(target_arch = "x86_64")]
fn vendor_is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    (leaf.ebx, leaf.edx, leaf.ecx)
        == (u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"enti"), u32::from_le_bytes(*b"cAMD"))
}

/// Bytes of the first-level cache of an AMD core, 0 where it is too old to say.
#[cfg(target_arch = "x86_64")]
fn first_level() -> usize {
    const EXTENDED: u32 = 0x8000_0000;
    const CACHES: u32 = 0x8000_001d;
    if std::arch::x86_64::__cpuid(EXTENDED).eax < CACHES {
        return 0;
    }
    let data = std::arch::x86_64::__cpuid_count(CACHES, 0);
    // Ways, partitions and bytes of a line, each less one, and sets.
    let [ways, parts, line] = [data.ebx >> 22, data.ebx >> 12 & 0x3ff, data.ebx & 0xfff].map(|n| n as usize + 1);
    ways * parts * line * (data.ecx as usize + 1)
}

/// Whether the matrix unit is there for 8-bit integers and bfloat16, and vectors are rounded to that. Linux wants to be asked once before a process uses it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    const HALVES_TILES_INTEGERS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    std::arch::x86_64::__cpuid(0).eax >= 7
        && std::arch::x86_64::__cpuid_count(7, 0).edx & HALVES_TILES_INTEGERS == HALVES_TILES_INTEGERS
        && is_x86_feature_detected!("avx512bf16")
        // SAFETY: numbers alone are passed; a kernel that does not know the call says so.
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn has_amx() -> bool {
    false
}
