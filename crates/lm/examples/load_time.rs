//! How long a tokenizer takes to load: `cargo run --release -p lapis-lm --example load_time -- FOLDER...`
use std::time::Instant;

use lapis_lm::tokenizer::Tokenizer;

fn main() -> lapis::Result<()> {
    for dir in std::env::args().skip(1) {
        let mut best = f64::MAX;
        for _ in 0..7 {
            let start = Instant::now();
            Tokenizer::load(dir.as_ref())?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{dir}: {:.1} ms", best * 1e3);
    }
    Ok(())
}
