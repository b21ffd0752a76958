//! `lapis evaluate`: tasks of the public evaluation harness, on the engine.

use crate::model::{self, AdapterArguments, Source};
use crate::{interrupt, say};
use lapis::io::atomic::AtomicFile;
use lapis::{Error, Result};
use lapis_lm::Sampling;
use lapis_lm::harness::{Library, Limit, Outcome, Settings, Task, groups};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    adapter: AdapterArguments,
    /// Tasks: names, YAML files of lm-evaluation-harness, or rows as lines of JSON
    #[arg(long, required = true, num_args = 1..)]
    tasks: Vec<String>,
    /// A folder with more tasks in YAML; those here are known without it
    #[arg(long)]
    include_path: Option<PathBuf>,
    /// A folder with rows of data sets: TASK/SPLIT.jsonl
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the result is written
    #[arg(long, default_value = ".")]
    output_dir: PathBuf,
    /// Write every question with its answer there, too
    #[arg(long)]
    log_samples: bool,
    /// Questions at once
    #[arg(long, default_value_t = 8, value_parser = model::positive)]
    batch_size: usize,
    /// Examples before each question [default: as the task says]
    #[arg(long, visible_alias = "num-fewshot")]
    num_shots: Option<usize>,
    /// Tokens of a reply at most [default: as the task says]
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Ask only so many questions of a task; below 1, a share of them
    #[arg(long)]
    limit: Option<f64>,
    /// For draws of examples and replies
    #[arg(long, default_value_t = 123)]
    seed: u64,
    /// Examples are turns of the chat, and not one message
    #[arg(long)]
    fewshot_as_multiturn: bool,
    /// Ask as a chat [default: where the model has a template]
    #[arg(long, overrides_with = "no_apply_chat_template")]
    apply_chat_template: bool,
    /// Ask in plain text
    #[arg(long)]
    no_apply_chat_template: bool,
    /// Variables of the chat template: a JSON object
    #[arg(long)]
    chat_template_args: Option<String>,
    /// Accepted; code that a model writes is never run
    #[arg(long, hide = true)]
    confirm_run_unsafe_code: bool,
    /// Temperature; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temp: f64,
    /// Draw from the likeliest tokens that hold this much of the probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Draw from so many of the likeliest tokens; 0 draws from all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let settings = settings(&a)?;
    let here = PathBuf::from(".");
    let folders: Vec<PathBuf> = a.include_path.iter().cloned().chain([here]).collect();
    let library = Library::new(&folders, a.data_dir.clone())?;
    // What is wrong with a task is told before weights are read.
    let mut tasks: Vec<Task> = Vec::new();
    // What each of them is called in the name of the result's file, where a group is one.
    let mut labels: Vec<String> = Vec::new();
    for name in &a.tasks {
        let own = library.tasks(name)?;
        labels.extend(own.iter().map(|task| if own.len() > 1 { name.clone() } else { task.name.clone() }));
        tasks.extend(own);
    }
    let model = a.adapter.load(&a.source)?;
    interrupt::watch();
    let mut outcomes = Vec::new();
    for task in &tasks {
        let mut progress = say::Progress::new("evaluate", "questions");
        let outcome = match task.run(&model, &settings, &mut |done, total| {
            progress.at(done, total);
            !interrupt::seen()
        }) {
            Err(_) if interrupt::seen() => break,
            outcome => outcome?,
        };
        drop(progress);
        if outcome.cut > 0 {
            let (n, name) = (outcome.cut, &outcome.name);
            say::warning(&format!(
                "{name}: {n} prompts were longer than the model's context and were cut from the left"
            ));
        }
        outcomes.push(outcome);
    }
    let partial = outcomes.len() < tasks.len();
    if partial {
        let (done, of) = (outcomes.len(), tasks.len());
        say::note(&format!("interrupted: {done} of {of} tasks are done"));
        if outcomes.is_empty() {
            return Ok(());
        }
    }
    labels.truncate(outcomes.len());
    labels.dedup();
    let all: Vec<Outcome> = a.tasks.iter().flat_map(|name| groups(name, &outcomes)).collect();
    let outcomes: Vec<Outcome> = all.into_iter().chain(outcomes).collect();
    let mut results: Map<String, Value> = outcomes.iter().map(|o| (o.name.clone(), o.to_json())).collect();
    if partial {
        results.values_mut().for_each(|result| result["partial"] = true.into());
    }
    std::fs::create_dir_all(&a.output_dir).map_err(|e| Error::io(format!("{}: {e}", a.output_dir.display())))?;
    let mut keys =
        vec!["eval".to_string(), file_part(&a.source.name()), format!("lapis-{}", env!("CARGO_PKG_VERSION"))];
    keys.extend(a.num_shots.map(|n| format!("{n:02}")));
    keys.extend(labels.iter().map(|name| file_part(name)));
    let file = a.output_dir.join(keys.join("_"));
    write(&file, &indented(&Value::Object(results.clone())))?;
    if a.log_samples {
        for outcome in outcomes.iter().filter(|o| !o.samples.is_empty()) {
            let lines: String = outcome.samples.iter().map(|line| format!("{line}\n")).collect();
            write(&a.output_dir.join(format!("samples_{}.jsonl", file_part(&outcome.name))), &lines)?;
        }
    }
    if a.json {
        println!("{}", json!({"schema": 1, "model": a.source.name(), "results": results}));
        return Ok(());
    }
    println!("Results:");
    results.values().for_each(|result| println!("{}", indented(result)));
    print!("{}", table(&outcomes));
    say::note(&format!("Saved to {}.", file.display()));
    Ok(())
}

fn settings(a: &Arguments) -> Result<Settings> {
    let limit = match a.limit {
        None => None,
        Some(n) if n >= 1.0 && n.fract() == 0.0 => Some(Limit::Count(n as usize)),
        Some(x) if x > 0.0 && x < 1.0 => Some(Limit::Share(x)),
        Some(x) => {
            return Err(Error::value(format!("--limit is {x}; give a whole number, or a share between 0 and 1")));
        }
    };
    Ok(Settings {
        batch_size: a.batch_size,
        num_fewshot: a.num_shots,
        max_tokens: a.max_tokens,
        limit,
        seed: a.seed,
        multiturn: a.fewshot_as_multiturn,
        chat: if a.no_apply_chat_template { Some(false) } else { a.apply_chat_template.then_some(true) },
        keywords: model::object("--chat-template-args", a.chat_template_args.as_deref())?,
        sampling: Sampling { temperature: a.temp, top_p: a.top_p, top_k: a.top_k, seed: a.seed, ..Sampling::default() },
    })
}

/// A name as a part of a file's.
fn file_part(name: &str) -> String {
    name.replace(['/', '\\', ':'], "_")
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = AtomicFile::create(path, "evaluate", text.len() as u64)?;
    file.write(text.as_bytes())?;
    file.commit()
}

/// JSON in lines, four spaces a level, as Python's `indent=4`.
fn indented(value: &Value) -> String {
    match value {
        Value::Object(all) => {
            let lines: Vec<String> =
                all.iter().map(|(k, v)| format!("    {}: {}", json!(k), indented(v).replace('\n', "\n    "))).collect();
            format!("{{\n{}\n}}", lines.join(",\n"))
        }
        other => other.to_string(),
    }
}

/// The harness's table.
fn table(outcomes: &[Outcome]) -> String {
    let mut lines =
        vec![["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"].map(String::from)];
    for outcome in outcomes {
        for (i, score) in outcome.scores.iter().enumerate() {
            let first = |text: String| if i == 0 { text } else { String::new() };
            let arrow = if score.higher_is_better { "↑" } else { "↓" };
            lines.push([
                first(outcome.alias.clone()),
                first(outcome.version.map_or(String::new(), |v| v.to_string())),
                score.filter.clone(),
                outcome.shots.to_string(),
                score.metric.clone(),
                arrow.into(),
                format!("{:.4}", score.value),
                "±".into(),
                score.error.map_or("N/A".into(), |e| format!("{e:.4}")),
            ]);
        }
    }
    let widths: Vec<usize> = (0..9).map(|c| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::from("\n");
    for (i, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, &w)| format!("{cell:<w$}")).collect();
        out.push_str(&format!("|{}|\n", cells.join("|")));
        if i == 0 {
            let rule: Vec<String> = widths.iter().map(|&w| "-".repeat(w)).collect();
            out.push_str(&format!("|{}|\n", rule.join("|")));
        }
    }
    out
}
