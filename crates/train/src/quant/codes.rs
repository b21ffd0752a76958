//! Codes to the words of packed weights.

use lapis::ops::quantize::{Format, Quantized};
use lapis::{Array, Result};

/// Words of codes, rows one after the other: the lowest bits first, without gaps, as MLX packs affine weights of any width.
pub(crate) fn words(codes: &[u8], bits: usize) -> Vec<u32> {
    let mut words = vec![0u32; (codes.len() * bits).div_ceil(32)];
    for (i, &code) in codes.iter().enumerate() {
        let (word, at) = (i * bits / 32, i * bits % 32);
        words[word] |= u32::from(code) << at;
        if at + bits > 32 {
            words[word + 1] |= u32::from(code) >> (32 - at);
        }
    }
    words
}

/// A packed matrix, or stack of them, of codes in the order of its elements; `scales` and `biases` are in the type they are
/// stored in.
///
/// # Errors
/// Parts that do not fit each other.
pub(crate) fn pack(codes: &[u8], shape: &[usize], scales: Array, biases: Array, format: Format) -> Result<Quantized> {
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = *last * format.bits() / 32;
    }
    let packed = Array::from_vec(words(codes, format.bits()), &shape);
    Quantized::new(packed, scales, Some(biases), None, format)
}

#[cfg(test)]
mod tests {
    use super::words;
    use lapis::ops::quantize::{Format, dequantize, quantize};
    use lapis::{Array, Dtype, random};

    /// Codes that the numbers of a packed matrix tell, packed again, are its words.
    #[test]
    fn as_mlx_packs_them() {
        random::seed(3);
        let w = random::normal(&[4, 128], Dtype::Float32, None, None, None).unwrap();
        for bits in [2, 3, 4, 5, 6, 8] {
            let q = quantize(&w, Format::affine(bits, 64).unwrap(), None).unwrap();
            let one = |a: &Array, x: f32| Array::from_vec(vec![x; a.size()], a.shape());
            let mut plain = q.clone();
            (plain.scales, plain.biases) = (one(&q.scales, 1.0), Some(one(&q.scales, 0.0)));
            let codes: Vec<u8> =
                dequantize(&plain, None).unwrap().to_vec::<f32>().unwrap().iter().map(|&x| x as u8).collect();
            assert_eq!(words(&codes, bits), q.packed.to_vec::<u32>().unwrap(), "{bits} bits");
        }
    }
}
