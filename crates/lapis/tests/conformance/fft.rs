//! Fourier transforms.

use crate::call::{Call, Outcome, one};
use lapis::ops::PadMode;
use lapis::ops::fft::{self, FftNorm, Frames};
use lapis::{Array, Error, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    one(transformed(c, c.op.strip_prefix("fft.")?)?)
}

fn transformed(c: &Call, op: &str) -> Option<Result<Array>> {
    let norm = || FftNorm::from_name(c.attrs.text("norm").unwrap_or("backward"));
    macro_rules! table {
        (one: $($name:ident)*; several: $($many:ident)*) => {
            match op {
                $(stringify!($name) => {
                    return Some(norm().and_then(|norm| {
                        fft::$name(&c.array(0), c.count("n")?, c.axis("axis", -1), norm)
                    }));
                })*
                $(stringify!($many) => {
                    let sizes = || c.attrs.has("s").then(|| c.sizes("s")).transpose();
                    return Some(norm().and_then(|norm| {
                        fft::$many(&c.array(0), sizes()?.as_deref(), c.axis_list("axes").as_deref(), norm)
                    }));
                })*
                _ => {}
            }
        };
    }
    table!(one: fft ifft rfft irfft; several: fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn);
    let spacing = || c.attrs.float("d").unwrap_or(1.0);
    Some(match op {
        "fftshift" => fft::fftshift(&c.array(0), c.axes("axes")),
        "ifftshift" => fft::ifftshift(&c.array(0), c.axes("axes")),
        "fftfreq" => c.count("n").and_then(|n| fft::fftfreq(n.unwrap(), spacing())),
        "rfftfreq" => c.count("n").and_then(|n| fft::rfftfreq(n.unwrap(), spacing())),
        "stft" => frames(c).and_then(|f| fft::stft(&c.array(0), c.count("n_fft")?.unwrap_or(2048), &f)),
        "istft" => frames(c).and_then(|f| fft::istft(&c.array(0), c.count("n_fft")?, c.count("length")?, &f)),
        _ => return None,
    })
}

fn frames(c: &Call) -> Result<Frames> {
    let pad_mode = match c.attrs.text("pad_mode").unwrap_or("reflect") {
        "reflect" => PadMode::Reflect,
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        other => return Err(Error::value(format!("[fft.stft] unknown pad mode {other}"))),
    };
    Ok(Frames {
        hop_length: c.count("hop_length")?,
        win_length: c.count("win_length")?,
        window: c.maybe(1),
        center: c.attrs.bool("center").unwrap_or(true),
        pad_mode,
        norm: FftNorm::from_name(c.attrs.text("norm").unwrap_or("backward"))?,
        onesided: c.attrs.bool("onesided"),
    })
}
