//! Values to the blocks of files: those that are written, as ggml rounds them.

use super::Type;
use half::f16;

/// Values in blocks of Q8_0, Q4_0 or Q4_1; none for other types, and for values that fill no whole blocks.
pub fn pack(kind: Type, values: &[f32]) -> Option<Vec<u8>> {
    let block: fn(&[f32], &mut Vec<u8>) = match kind {
        Type::Q8_0 => q8_0,
        Type::Q4_0 => q4_0,
        Type::Q4_1 => q4_1,
        _ => return None,
    };
    let (n, bytes) = kind.block();
    let mut out = Vec::with_capacity(values.len() / n as usize * bytes as usize);
    let blocks = values.chunks_exact(n as usize);
    if !blocks.remainder().is_empty() {
        return None;
    }
    blocks.for_each(|b| block(b, &mut out));
    Some(out)
}

/// The largest value goes to 127.
fn q8_0(values: &[f32], out: &mut Vec<u8>) {
    let scale = values.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(values.iter().map(|x| (x * inverse).round() as i8 as u8));
}

/// The value furthest from 0 goes to -8.
fn q4_0(values: &[f32], out: &mut Vec<u8>) {
    let furthest = values.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let scale = furthest / -8.0;
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    out.extend(f16::from_f32(scale).to_le_bytes());
    halves(values, |x| x * inverse + 8.5, out);
}

/// The smallest value goes to 0, the largest to 15.
fn q4_1(values: &[f32], out: &mut Vec<u8>) {
    let (least, most) = values.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    let scale = (most - least) / 15.0;
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    out.extend([scale, least].map(f16::from_f32).into_iter().flat_map(f16::to_le_bytes));
    halves(values, |x| (x - least) * inverse + 0.5, out);
}

/// Codes of 4 bits: a byte holds those of a value and of that 16 places on.
fn halves(values: &[f32], place: impl Fn(f32) -> f32, out: &mut Vec<u8>) {
    let code = |x: f32| (place(x) as u8).min(15);
    out.extend((0..16).map(|i| code(values[i]) | code(values[i + 16]) << 4));
}

#[cfg(test)]
mod tests {
    use super::{Type, pack};

    #[test]
    fn codes() {
        let values: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
        let q8 = pack(Type::Q8_0, &values).unwrap();
        assert_eq!(q8.len(), 34);
        assert_eq!((q8[2] as i8, q8[18] as i8), (-127, 0));
        let q4 = pack(Type::Q4_0, &values).unwrap();
        assert_eq!(q4.len(), 18);
        // -16 is 0, 0 is 8, 15 is 15.5 cut to 15.
        assert_eq!((q4[2], q4[17] >> 4), (0x80, 15));
        let q4 = pack(Type::Q4_1, &values).unwrap();
        assert_eq!(q4.len(), 20);
        // -16 is 0 and 15 is 15; 0 is 7.7, -1 is 7.3.
        assert_eq!((q4[4], q4[19]), (0x80, 0xf7));
        assert_eq!(pack(Type::Q4_1, &[2.0; 32]).unwrap()[..5], [0, 0, 0, 0x40, 0]);
        assert_eq!(pack(Type::Q8_0, &[0.0; 32]).unwrap(), [0; 34]);
        assert!(pack(Type::Q4_0, &[0.0; 31]).is_none() && pack(Type::F16, &values).is_none());
    }
}
