//! `lapis benchmark`: tokens a second in prefill and decode, on random tokens.

use crate::hub::HubArguments;
use lapis::{Error, Result, memory};
use lapis_lm::{Checkpoint, Engine, Event, Request, Sequence, models};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A model: a directory, a .gguf file, or owner/name on the hub
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    hub: HubArguments,
    /// Tokens of the prompt
    #[arg(short = 'p', long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to write
    #[arg(short = 'g', long, default_value_t = 1024)]
    generation_tokens: usize,
    /// Sequences at once
    #[arg(short = 'b', long, default_value_t = 1)]
    batch_size: usize,
    /// Runs
    #[arg(short = 'n', long, default_value_t = 5)]
    num_trials: usize,
    /// Tokens of prompts in a step
    #[arg(long, default_value_t = 2048)]
    prefill_step_size: usize,
    /// Seconds between runs
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Threads to use
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Accepted; code in a model repository is never run
    #[arg(long, hide = true)]
    trust_remote_code: bool,
}

struct Trial {
    prompt: f64,
    generation: f64,
    total: f64,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    if a.prompt_tokens == 0 || a.generation_tokens == 0 || a.batch_size == 0 || a.num_trials == 0 {
        return Err(Error::value("benchmark: tokens, batch size and trials are 1 at least"));
    }
    if let Some(n) = a.threads {
        lapis_cpu::pool::set_threads(n)?;
    }
    let began = Instant::now();
    let mut checkpoint = Checkpoint::open(a.hub.find(&a.model)?)?;
    let vocabulary = checkpoint.vocabulary()?;
    let model = Arc::from(models::load(&mut checkpoint)?);
    let load = began.elapsed().as_secs_f64();
    let trial = || -> Result<Trial> {
        let mut engine = Engine::new(Arc::clone(&model), vocabulary);
        (engine.prefill_step, engine.max_batch) = (a.prefill_step_size, a.batch_size);
        for s in 0..a.batch_size {
            // Any tokens do, as long as they are the same in every run.
            let token = |i: usize| (i * 7919 + s * 104_729 + 17) % vocabulary;
            let prompt = (0..a.prompt_tokens).map(|i| token(i) as u32).collect();
            engine.add(Request { prompt, max_tokens: a.generation_tokens, ..Default::default() }, Sequence::new())?;
        }
        let start = Instant::now();
        let (mut first, mut count) = (None, 0usize);
        engine.run(|event| {
            if let Event::Token { .. } = event {
                count += 1;
                if count == a.batch_size {
                    first = Some(start.elapsed().as_secs_f64());
                }
            }
            true
        })?;
        let total = start.elapsed().as_secs_f64();
        let first = first.unwrap_or(total);
        let generated = (count - a.batch_size) as f64;
        Ok(Trial {
            prompt: (a.prompt_tokens * a.batch_size) as f64 / first,
            generation: if generated > 0.0 { generated / (total - first) } else { 0.0 },
            total,
        })
    };
    trial()?;
    let mut all = Vec::new();
    for i in 0..a.num_trials {
        std::thread::sleep(std::time::Duration::from_secs(a.delay));
        let t = trial()?;
        if !a.json {
            println!("Trial {}:  {}", i + 1, shown(&t));
        }
        all.push(t);
    }
    let mean = |f: fn(&Trial) -> f64| all.iter().map(f).sum::<f64>() / all.len() as f64;
    let means = Trial { prompt: mean(|t| t.prompt), generation: mean(|t| t.generation), total: mean(|t| t.total) };
    if a.json {
        let line = serde_json::json!({
            "schema": 1, "model": a.model, "prompt_tokens": a.prompt_tokens, "generation_tokens": a.generation_tokens,
            "batch_size": a.batch_size, "prompt_tps": means.prompt, "generation_tps": means.generation,
            "peak_memory": peak(), "total_time": means.total, "load_time": load,
            "trials": all.iter().map(|t| serde_json::json!({"prompt_tps": t.prompt, "generation_tps": t.generation})).collect::<Vec<_>>(),
        });
        println!("{line}");
    } else {
        println!("Averages: {}", shown(&means));
    }
    Ok(())
}

fn peak() -> f64 {
    (memory::peak() + memory::mapped()) as f64 / 1e9
}

fn shown(t: &Trial) -> String {
    let (p, g, all) = (t.prompt, t.generation, t.total);
    format!("prompt_tps={p:.3}, generation_tps={g:.3}, peak_memory={:.3}, total_time={all:.3}", peak())
}
