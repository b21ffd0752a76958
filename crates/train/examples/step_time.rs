//! How long a step of LoRA takes: rank 8, the last 16 layers, 2 texts of 256 tokens.
//!
//! `cargo run --release -p lapis-train --example step_time -- MODEL [BATCH] [TOKENS] [STEPS]`

use lapis::Result;
use lapis_train::{Sample, Settings, Trainer};
use std::time::Instant;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = lapis_lm::load(arguments.next().expect("the directory of a model"))?;
    let mut number = |default: usize| arguments.next().map_or(default, |a| a.parse().expect("a number"));
    let (batch_size, tokens, steps) = (number(2), number(256), number(3));
    let text = |i: usize| (0..=tokens).map(|j| ((i * 7919 + j * 104_729) % model.vocabulary) as u32).collect();
    let samples: Vec<Sample> = (0..4 * batch_size).map(|i| Sample { tokens: text(i), ..Sample::default() }).collect();
    let s = Settings { train: true, batch_size, ..Settings::default() };
    let mut trainer = Trainer::new(&*model.model, samples, &s)?;
    let t = trainer.trained();
    println!("{} layers in {} blocks, {} numbers", t.layers, t.blocks, t.numbers);
    let mut best = f64::INFINITY;
    for _ in 0..=steps {
        let batch = trainer.next_batch();
        let began = Instant::now();
        let step = trainer.step(&batch)?;
        let seconds = began.elapsed().as_secs_f64();
        best = best.min(seconds);
        println!("loss {:.3}: {seconds:.3} s, {:.1} tokens/s", step.loss, step.tokens as f64 / seconds);
    }
    let peak = lapis::memory::peak() as f64 / 1e9;
    println!("best: {best:.3} s, {:.1} tokens/s, peak memory {peak:.2} GB", (batch_size * tokens) as f64 / best);
    Ok(())
}
