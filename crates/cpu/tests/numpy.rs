//! numpy's tables of function values (float32 and float64) where they are present: `LAPIS_TEST_DATA` names the folder.

use lapis_cpu::isa;
use lapis_cpu::math::{Unary, unary_f64, unary_slice};
use std::path::PathBuf;

fn distance(a: u64, b: u64, sign: u64) -> u64 {
    let order = |x: u64| if x & sign != 0 { -((x & !sign) as i64) } else { x as i64 };
    order(a).abs_diff(order(b))
}

#[test]
fn tables() {
    let Some(data) = std::env::var_os("LAPIS_TEST_DATA") else {
        println!("LAPIS_TEST_DATA is not set: numpy's tables are not checked");
        return;
    };
    let folder = PathBuf::from(data).join("conformance/numpy/numpy/_core/tests/data");
    for (name, f) in [
        ("arccos", Unary::Acos),
        ("arccosh", Unary::Acosh),
        ("arcsin", Unary::Asin),
        ("arcsinh", Unary::Asinh),
        ("arctan", Unary::Atan),
        ("arctanh", Unary::Atanh),
        ("cos", Unary::Cos),
        ("cosh", Unary::Cosh),
        ("exp", Unary::Exp),
        ("exp2", Unary::Exp2),
        ("expm1", Unary::Expm1),
        ("log", Unary::Log),
        ("log10", Unary::Log10),
        ("log1p", Unary::Log1p),
        ("log2", Unary::Log2),
        ("sin", Unary::Sin),
        ("sinh", Unary::Sinh),
        ("tan", Unary::Tan),
        ("tanh", Unary::Tanh),
    ] {
        let path = folder.join(format!("umath-validation-set-{name}.csv"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut rows = 0;
        for line in text.lines() {
            let cells: Vec<&str> = line.split(',').collect();
            let &[dtype, x, want, _] = &cells[..] else { continue };
            let parse = |t: &str| u64::from_str_radix(t.trim_start_matches("0x"), 16);
            let (Ok(x), Ok(want)) = (parse(x), parse(want)) else { continue };
            rows += 1;
            if dtype == "np.float64" {
                let y = unary_f64(f, f64::from_bits(x));
                let good = y.is_nan() && f64::from_bits(want).is_nan() || distance(y.to_bits(), want, 1 << 63) <= 2;
                assert!(good, "{name}: {line}: {y:e}");
            } else {
                for level in isa::available() {
                    let mut y = [0.0];
                    unary_slice(level, f, &[f32::from_bits(x as u32)], &mut y);
                    let same = y[0].is_nan() && f32::from_bits(want as u32).is_nan();
                    let good = same || distance(y[0].to_bits() as u64, want, 1 << 31) <= 1;
                    assert!(good, "{name}: {line}: {:08x} at {}", y[0].to_bits(), level.name());
                }
            }
        }
        assert!(rows > 100, "{name}: {rows} rows");
    }
}
