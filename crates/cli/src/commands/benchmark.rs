//! `lapis benchmark`: tokens a second in prefill and decode, on random tokens, beside what this machine allows.
//!
//! Memory and the multiply-add instructions are measured before each trial and after the last, and averaged as the trials
//! are: what else runs on the machine slows both down alike. Decode is bounded by reading the parameters and what is remembered,
//! prefill by two operations for each value of the matrices that a token meets. Weights lie in large pages from the beginning, as
//! they do some seconds after a model is loaded.

use crate::interrupt;
use crate::model::{Source, positive};
use lapis::io::settle_now;
use lapis::{Error, Result, memory};
use lapis_cpu::{limits, pool};
use lapis_lm::fit::{Bandwidth, Fit, available};
use lapis_lm::quant::round_inputs;
use lapis_lm::{Engine, Event, Model, Prefixes, Request, Sequence, models};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// Tokens of the prompt; several, as in 128,512,2048, are measured one after the other
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    prompt_tokens: Vec<usize>,
    /// Tokens to write [default: 1024, or what the context leaves]
    #[arg(short = 'g', long)]
    generation_tokens: Option<usize>,
    /// Sequences at once; several, as in 1,2,4,8, are measured one after the other
    #[arg(short = 'b', long, visible_alias = "concurrency", value_delimiter = ',', default_value = "1")]
    batch_size: Vec<usize>,
    /// Runs
    #[arg(short = 'n', long, default_value_t = 5)]
    num_trials: usize,
    /// Tokens of prompts in a step
    #[arg(long, default_value_t = 2048, value_parser = positive)]
    prefill_step_size: usize,
    /// Seconds between runs
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Measure the time to the first token of a prompt that was read before, too
    #[arg(long)]
    warm: bool,
    /// Round inputs of layers as their weights are (-qa; models in nvfp4 or mxfp8)
    #[arg(long)]
    quantize_activations: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print a table in Markdown
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// What one run gave: tokens a second and seconds.
#[derive(Clone, Copy)]
struct Trial {
    prompt: f64,
    generation: f64,
    total: f64,
    first: f64,
}

/// What the machine allows.
#[derive(Clone, Copy)]
struct Limits {
    /// Bytes a second.
    memory: f64,
    /// Operations a second.
    floats: f64,
    bytes: f64,
}

impl Limits {
    fn measure(memory: &Bandwidth) -> Result<Limits> {
        let threads = pool::configured_threads()?;
        Ok(Limits { memory: memory.measure()?, floats: limits::float_peak(threads), bytes: limits::byte_peak(threads) })
    }

    fn mean(all: &[Limits]) -> Limits {
        let mean = |f: fn(&Limits) -> f64| all.iter().map(f).sum::<f64>() / all.len().max(1) as f64;
        Limits { memory: mean(|l| l.memory), floats: mean(|l| l.floats), bytes: mean(|l| l.bytes) }
    }

    fn as_json(self) -> Value {
        json!({"memory": self.memory, "f32": self.floats, "int8": self.bytes})
    }
}

/// The runs of one prompt length and batch.
struct Row {
    prompt_tokens: usize,
    batch: usize,
    trials: Vec<Trial>,
    /// Seconds to the first token of a prompt that was read before.
    warm: Option<f64>,
    /// Gigabytes.
    peak: f64,
    /// What the machine allowed meanwhile.
    limits: Limits,
}

impl Row {
    fn values(&self, f: fn(&Trial) -> f64) -> [f64; 2] {
        let all: Vec<f64> = self.trials.iter().map(f).collect();
        let n = all.len().max(1) as f64;
        let mean = all.iter().sum::<f64>() / n;
        let spread = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        [mean, spread.sqrt()]
    }
}

/// A model under measurement.
struct Bench {
    model: Arc<dyn Model>,
    vocabulary: usize,
    step: usize,
    written: usize,
    memory: Bandwidth,
}

impl Bench {
    fn engine(&self, batch: usize) -> Engine {
        let mut engine = Engine::new(Arc::clone(&self.model), self.vocabulary);
        (engine.prefill_step, engine.max_batch) = (self.step, batch);
        engine
    }

    fn run(&self, engine: &mut Engine, prompt_tokens: usize, batch: usize) -> Result<Trial> {
        for s in 0..batch {
            // Any tokens do, as long as they are the same in every run.
            let token = |i: usize| (i * 7919 + s * 104_729 + 17) % self.vocabulary;
            let prompt = (0..prompt_tokens).map(|i| token(i) as u32).collect();
            engine.add(Request { prompt, max_tokens: self.written, ..Default::default() }, Sequence::new())?;
        }
        let start = Instant::now();
        let (mut first, mut count) = (None, 0usize);
        engine.run(|event| {
            if let Event::Token { .. } = event {
                count += 1;
                if count == batch {
                    first = Some(start.elapsed().as_secs_f64());
                }
            }
            !interrupt::seen()
        })?;
        let total = start.elapsed().as_secs_f64();
        let first = first.unwrap_or(total);
        let generated = count.saturating_sub(batch) as f64;
        Ok(Trial {
            prompt: (prompt_tokens * batch) as f64 / first,
            generation: if generated > 0.0 { generated / (total - first) } else { 0.0 },
            total,
            first,
        })
    }
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let none = |all: &[usize]| all.is_empty() || all.contains(&0);
    if none(&a.prompt_tokens) || none(&a.batch_size) || a.generation_tokens == Some(0) || a.num_trials == 0 {
        return Err(Error::value("benchmark: tokens, batch size and trials are 1 at least"));
    }
    interrupt::watch();
    let began = Instant::now();
    let mut checkpoint = a.source.checkpoint()?;
    let (vocabulary, context) = (checkpoint.vocabulary()?, checkpoint.context());
    let mut loaded = models::load(&mut checkpoint)?;
    if a.quantize_activations {
        round_inputs(&mut *loaded)?;
    }
    let load = began.elapsed().as_secs_f64();
    // What is measured is what comes after the first seconds.
    settle_now(|| available() / 3);
    let fit = Fit::of(&mut a.source.checkpoint()?)?;
    let longest = a.prompt_tokens.iter().copied().max().unwrap_or(0);
    if let Some(context) = context
        && longest + a.generation_tokens.unwrap_or(1) > context
    {
        let n = a.generation_tokens.unwrap_or(1);
        return Err(Error::value(format!(
            "benchmark: {longest} tokens of a prompt and {n} to write are more than the model's context, {context}; \
             give smaller -p and -g"
        )));
    }
    let written = a.generation_tokens.unwrap_or_else(|| context.map_or(1024, |c| (c - longest).min(1024)));
    let bench =
        Bench { model: Arc::from(loaded), vocabulary, step: a.prefill_step_size, written, memory: Bandwidth::new()? };
    let plain = !a.json && !a.markdown;
    let (mut rows, mut most) = (Vec::new(), 0f64);
    for &prompt_tokens in &a.prompt_tokens {
        for &batch in &a.batch_size {
            if plain && a.prompt_tokens.len() * a.batch_size.len() > 1 {
                println!("Prompt {prompt_tokens}, batch {batch}");
            }
            let row = measure(&bench, &a, prompt_tokens, batch, plain)?;
            most = most.max(row.peak);
            if plain && !row.trials.is_empty() {
                println!("Averages: {}", averages(&row));
                if let Some(warm) = row.warm {
                    println!("First token: {:.4} s, of a prompt read before {warm:.4} s", row.values(|t| t.first)[0]);
                }
            }
            rows.push(row);
            if interrupt::seen() {
                break;
            }
        }
    }
    rows.retain(|r| !r.trials.is_empty());
    let reports: Vec<Report> = rows.iter().map(|row| Report::new(row, &fit, &bench)).collect();
    if a.json {
        println!("{}", as_json(&a, &reports, [load, most]));
    } else if a.markdown {
        print!("{}", as_markdown(&reports));
    } else {
        for r in &reports {
            println!("{}", r.shares());
        }
    }
    Ok(())
}

/// The trials of one setting, after a run that warms up; an interrupt leaves those that are done.
fn measure(bench: &Bench, a: &Arguments, prompt_tokens: usize, batch: usize, plain: bool) -> Result<Row> {
    let mut row = Row { prompt_tokens, batch, trials: vec![], warm: None, peak: 0.0, limits: Limits::mean(&[]) };
    bench.run(&mut bench.engine(batch), prompt_tokens, batch)?;
    let mut limits = vec![Limits::measure(&bench.memory)?];
    for i in 0..a.num_trials {
        std::thread::sleep(std::time::Duration::from_secs(a.delay));
        // What limits took is none of the model's.
        memory::reset_peak();
        let t = bench.run(&mut bench.engine(batch), prompt_tokens, batch)?;
        if interrupt::seen() {
            return Ok(row);
        }
        row.peak = row.peak.max(peak(&bench.memory));
        limits.push(Limits::measure(&bench.memory)?);
        row.limits = Limits::mean(&limits);
        if plain {
            println!("Trial {}:  {}", i + 1, shown([t.prompt, t.generation, t.total], row.peak));
        }
        row.trials.push(t);
    }
    if a.warm {
        let mut engine = bench.engine(batch);
        engine.prefixes = Some(Prefixes::new(usize::MAX));
        bench.run(&mut engine, prompt_tokens, batch)?;
        row.warm = Some(bench.run(&mut engine, prompt_tokens, batch)?.first);
    }
    Ok(row)
}

/// A row beside what the machine allows.
struct Report<'a> {
    row: &'a Row,
    written: usize,
    /// Tokens a second that memory allows in decode.
    decode: f64,
    /// Tokens a second that the multiply-add instructions allow in prefill: of bytes, and of floats.
    prefill: [f64; 2],
}

impl<'a> Report<'a> {
    fn new(row: &'a Row, fit: &Fit, bench: &Bench) -> Report<'a> {
        let limits = row.limits;
        // On average half of what is written has been.
        let seen = row.prompt_tokens + bench.written / 2;
        Report {
            row,
            written: bench.written,
            decode: fit.most(limits.memory, row.batch, seen),
            prefill: [limits.bytes, limits.floats].map(|peak| fit.most_of_prompt(peak, row.prompt_tokens)),
        }
    }

    fn percent(part: f64, of: f64) -> f64 {
        100.0 * part / of
    }

    fn shares(&self) -> String {
        let (prompt, generation) = (self.row.values(|t| t.prompt)[0], self.row.values(|t| t.generation)[0]);
        let [bytes, floats] = self.prefill.map(|limit| Report::percent(prompt, limit));
        let l = self.row.limits;
        let [memory, f32, int8] = [l.memory, l.floats, l.bytes].map(|x| x / 1e9);
        format!(
            "Limits (prompt {}, batch {}): memory {memory:.1} GB/s, 8-bit dot products {int8:.0} GOP/s, f32 {f32:.0} \
             GFLOP/s; of these, decode {:.0} % of memory, prefill {bytes:.0} % of 8-bit dot products, {floats:.0} % of f32",
            self.row.prompt_tokens,
            self.row.batch,
            Report::percent(generation, self.decode),
        )
    }
}

fn as_json(a: &Arguments, reports: &[Report], [load, peak]: [f64; 2]) -> Value {
    let one = |r: &Report| {
        let ([prompt, prompt_sd], [generation, generation_sd]) =
            (r.row.values(|t| t.prompt), r.row.values(|t| t.generation));
        let trial = |t: &Trial| json!({"prompt_tps": t.prompt, "generation_tps": t.generation, "first_token": t.first});
        json!({
            "prompt_tokens": r.row.prompt_tokens, "generation_tokens": r.written, "batch_size": r.row.batch,
            "prompt_tps": prompt, "prompt_tps_sd": prompt_sd,
            "generation_tps": generation, "generation_tps_sd": generation_sd,
            "first_token": r.row.values(|t| t.first)[0], "first_token_warm": r.row.warm,
            "total_time": r.row.values(|t| t.total)[0],
            "limits": r.row.limits.as_json(),
            "decode_limit_tps": r.decode, "prefill_limit_tps_bytes": r.prefill[0], "prefill_limit_tps_floats": r.prefill[1],
            "trials": r.row.trials.iter().map(trial).collect::<Vec<_>>(),
        })
    };
    let rows: Vec<Value> = reports.iter().map(one).collect();
    // One setting is told of at the top, as several are in `rows`.
    let mut all = rows.first().cloned().unwrap_or_else(|| json!({}));
    let named = a.source.model.as_ref().map(|m| m.display().to_string());
    for (key, value) in [
        ("schema", json!(1)),
        ("model", json!(named.unwrap_or_else(|| "demo model".into()))),
        ("peak_memory", json!(peak)),
        ("load_time", json!(load)),
        ("partial", json!(interrupt::seen())),
        ("rows", json!(rows)),
    ] {
        all[key] = value;
    }
    all
}

fn as_markdown(reports: &[Report]) -> String {
    let mut text = String::from(
        "| prompt | batch | prefill tok/s | of 8-bit peak | decode tok/s | of memory | first token |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for r in reports {
        let ([prompt, sd], [generation, gsd]) = (r.row.values(|t| t.prompt), r.row.values(|t| t.generation));
        let (prefill, decode) = (Report::percent(prompt, r.prefill[0]), Report::percent(generation, r.decode));
        let first = r.row.values(|t| t.first)[0];
        text += &format!(
            "| {} | {} | {prompt:.1} ± {sd:.1} | {prefill:.0} % | {generation:.1} ± {gsd:.1} | {decode:.0} % | {first:.3} s |\n",
            r.row.prompt_tokens, r.row.batch
        );
    }
    text
}

fn averages(row: &Row) -> String {
    let all = [row.values(|t| t.prompt), row.values(|t| t.generation), row.values(|t| t.total)];
    let [p, g, _] = all.map(|v| v[1]);
    format!("{} (± {p:.3}, ± {g:.3})", shown(all.map(|v| v[0]), row.peak))
}

/// Gigabytes, without what is read to measure memory.
fn peak(limit: &Bandwidth) -> f64 {
    ((memory::peak() + memory::mapped()).saturating_sub(limit.bytes())) as f64 / 1e9
}

fn shown([p, g, all]: [f64; 3], peak: f64) -> String {
    format!("prompt_tps={p:.3}, generation_tps={g:.3}, peak_memory={peak:.3}, total_time={all:.3}")
}
