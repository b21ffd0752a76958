//! What a run leaves to read: a line of JSON for each report, and a page with curves and texts that needs nothing else.

use crate::state::write;
use crate::{Sample, Settings};
use lapis::{Error, Result};
use lapis_lm::template::Chat;
use lapis_lm::{LanguageModel, Options, Sequence};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A line of metrics.jsonl: about training, or about a validation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Steps done.
    pub iteration: usize,
    /// Mean loss of the steps since the line before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f32>,
    /// Of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f32>,
    /// Of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f32>,
    /// Steps a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iterations_per_second: Option<f64>,
    /// Tokens learned a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Tokens learned in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_tokens: Option<u64>,
    /// The most memory so far, in 10^9 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<f64>,
    /// Of pairs, in the last step: by how much preferred answers are ahead, and the part of them that are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f32>,
    /// See `reward_margin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_accuracy: Option<f32>,
    /// Mean loss of a token of the validation; of a pair, where pairs are learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f32>,
    /// `exp` of that, where it is the loss of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_perplexity: Option<f32>,
    /// Seconds that it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_time: Option<f64>,
    /// Answers to the prompts of the settings, at the validation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<Written>,
}

/// What a model writes after a prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// The prompt.
    pub prompt: String,
    /// What comes after it.
    pub text: String,
}

/// The records of a run, in metrics.jsonl and to be drawn.
pub struct Report {
    dir: PathBuf,
    title: String,
    settings: Vec<(String, String)>,
    records: Vec<Record>,
    metrics: File,
}

impl Report {
    /// In a directory. What an earlier run wrote there up to step `done` stays, the rest goes.
    pub(crate) fn open(dir: &Path, s: &Settings, done: usize) -> Result<Report> {
        let path = dir.join("metrics.jsonl");
        let fail = |e: std::io::Error| Error::io(format!("[lora] {}: {e}", path.display()));
        let old = if done > 0 { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let records: Vec<Record> = old.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        // The validation before a step that is done again is as well.
        let kept = |r: &&Record| if r.val_loss.is_some() { r.iteration < done } else { r.iteration <= done };
        let records: Vec<Record> = records.iter().filter(kept).cloned().collect();
        let mut text = String::new();
        for record in &records {
            let line = serde_json::to_string(record).map_err(|e| Error::value(format!("[lora] {e}")))?;
            text += &(line + "\n");
        }
        write(&path, text.as_bytes())?;
        let metrics = OpenOptions::new().append(true).open(&path).map_err(fail)?;
        let shown = |v: &serde_json::Value| v.as_str().map_or(v.to_string(), str::to_string);
        let settings = s.to_map().iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), shown(v))).collect();
        let model = s.model.as_deref().unwrap_or("the demo model");
        let title = s.project_name.clone().unwrap_or_else(|| format!("Fine-tuning of {model}"));
        Ok(Report { dir: dir.to_path_buf(), title, settings, records, metrics })
    }

    pub(crate) fn add(&mut self, record: Record) -> Result<()> {
        let line = serde_json::to_string(&record).map_err(|e| Error::value(format!("[lora] {e}")))?;
        let path = self.dir.join("metrics.jsonl");
        writeln!(self.metrics, "{line}").map_err(|e| Error::io(format!("[lora] {}: {e}", path.display())))?;
        self.records.push(record);
        Ok(())
    }

    /// Writes report.html; `texts` are what the model writes in the end.
    pub(crate) fn write(&self, texts: &[Written]) -> Result<PathBuf> {
        let path = self.dir.join("report.html");
        write(&path, self.page(texts).as_bytes())?;
        Ok(path)
    }

    fn page(&self, texts: &[Written]) -> String {
        let points = |value: fn(&Record) -> Option<f64>| -> Vec<(f64, f64)> {
            self.records.iter().filter_map(|r| Some((r.iteration as f64, value(r)?))).collect()
        };
        let losses = [
            ("training", "#2563eb", points(|r| r.train_loss.map(f64::from))),
            ("validation", "#dc2626", points(|r| r.val_loss.map(f64::from))),
        ];
        let rates = [("learning rate", "#059669", points(|r| r.learning_rate.map(f64::from)))];
        let norms = [("length of the gradient", "#7c3aed", points(|r| r.gradient_norm.map(f64::from)))];
        let title = escaped(&self.title);
        let mut page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{title}\
             </title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em;color:#111;\
             background:#fff}}svg{{width:100%;height:auto}}table{{border-collapse:collapse;font-size:.9em}}td,th{{padding:.1em 1em .1em \
             0;text-align:left;vertical-align:top}}pre{{white-space:pre-wrap;background:#f3f4f6;padding:1em;border-radius:.5em}}b{{\
             color:#2563eb}}@media(prefers-color-scheme:dark){{body{{color:#eee;background:#111}}pre{{background:#222}}}}</style><h1>\
             {title}</h1>"
        );
        let ends: Vec<String> = losses
            .iter()
            .filter_map(|(name, _, p)| Some(format!("{name} {:.3} → {:.3}", p.first()?.1, p.last()?.1)))
            .collect();
        let _ = write!(page, "<h2>Loss</h2><p>{}</p>{}", ends.join(" · "), chart(&losses));
        let _ = write!(page, "<h2>Learning rate</h2>{}<h2>Gradient</h2>{}", chart(&rates), chart(&norms));
        let mut written = |head: &str, texts: &[Written]| {
            if !texts.is_empty() {
                let _ = write!(page, "<h2>{head}</h2>");
            }
            for Written { prompt, text } in texts {
                let _ = write!(page, "<pre><b>{}</b>{}</pre>", escaped(prompt), escaped(text));
            }
        };
        written("Texts", texts);
        self.records.iter().for_each(|r| written(&format!("Texts after step {}", r.iteration), &r.texts));
        page += "<h2>Reports</h2><table><tr><th>step<th>loss<th>validation<th>perplexity<th>rate<th>tokens/s<th>GB";
        let cell = |x: Option<f64>, digits: usize| x.map_or(String::new(), |x| format!("{x:.digits$}"));
        for r in &self.records {
            let rate = r.learning_rate.map_or(String::new(), |x| format!("{x:.2e}"));
            let (loss, val) = (cell(r.train_loss.map(f64::from), 3), cell(r.val_loss.map(f64::from), 3));
            let perplexity = cell(r.val_perplexity.map(f64::from), 3);
            let (speed, peak) = (cell(r.tokens_per_second, 1), cell(r.peak_memory, 2));
            let _ = write!(
                page,
                "<tr><td>{}<td>{loss}<td>{val}<td>{perplexity}<td>{rate}<td>{speed}<td>{peak}",
                r.iteration
            );
        }
        page += "</table><h2>Settings</h2><table>";
        for (key, value) in &self.settings {
            let _ = write!(page, "<tr><td>{}<td>{}", escaped(key), escaped(value));
        }
        let _ = writeln!(page, "</table><p>lapis {}</p></html>", env!("CARGO_PKG_VERSION"));
        page
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Curves over steps.
fn chart(curves: &[(&str, &str, Vec<(f64, f64)>)]) -> String {
    const W: f64 = 720.0;
    const H: f64 = 260.0;
    const LEFT: f64 = 60.0;
    const BOTTOM: f64 = 24.0;
    let all = || curves.iter().flat_map(|c| &c.2).filter(|p| p.1.is_finite());
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), x| (lo.min(x), hi.max(x)))
    };
    let ((x0, x1), (y0, y1)) = (bounds(|p| p.0), bounds(|p| p.1));
    if x0 > x1 {
        return "<p>nothing yet</p>".into();
    }
    let (xs, ys) = ((x1 - x0).max(1.0), if y1 > y0 { y1 - y0 } else { y1.abs().max(1e-12) });
    let x = |v: f64| LEFT + (v - x0) / xs * (W - LEFT - 10.0);
    let y = |v: f64| H - BOTTOM - (v - y0) / ys * (H - BOTTOM - 12.0);
    let mut svg = format!("<svg viewBox=\"0 0 {W} {H}\" font-size=\"11\" fill=\"currentColor\" role=\"img\">");
    for i in 0..=4 {
        let (vy, vx) = (y0 + ys * f64::from(i) / 4.0, x0 + xs * f64::from(i) / 4.0);
        let label = if !(0.01..1e4).contains(&ys) { format!("{vy:.1e}") } else { format!("{vy:.3}") };
        let (py, px) = (y(vy), x(vx));
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {py:.1}H{}\" stroke=\"currentColor\" opacity=\".15\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}\
             </text><text x=\"{px:.1}\" y=\"{H}\" text-anchor=\"middle\">{vx:.0}</text>",
            W - 10.0,
            LEFT - 6.0,
            py + 4.0
        );
    }
    for (i, (name, color, points)) in curves.iter().enumerate() {
        let points: Vec<String> =
            points.iter().filter(|p| p.1.is_finite()).map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let marks = points.iter().filter(|_| points.len() < 40).map(|p| {
            let (px, py) = p.split_once(',').unwrap_or_default();
            format!("<circle cx=\"{px}\" cy=\"{py}\" r=\"2.5\" fill=\"{color}\"/>")
        });
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>{}<text x=\"{}\" y=\"{}\" fill=\"{color}\" \
             text-anchor=\"end\">{name}</text>",
            points.join(" "),
            marks.collect::<String>(),
            W - 14.0,
            24 + 14 * i
        );
    }
    svg + "</svg>"
}

/// Prompts, and what a model writes after them: those of the settings, else the beginnings of a few samples.
pub(crate) fn samples_of(
    model: &LanguageModel,
    s: &Settings,
    valid: &[Sample],
    train: &[Sample],
) -> Result<Vec<Written>> {
    const TEXTS: usize = 3;
    const TOKENS: usize = 80;
    if !model.writes {
        return Ok(Vec::new());
    }
    let mut prompts = Vec::new();
    if let Some(file) = &s.eval_prompts {
        let text = std::fs::read_to_string(file).map_err(|e| Error::io(format!("[lora] {file}: {e}")))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let messages = json!([{"role": "user", "content": line}]);
            let chat = Chat { messages: &messages, add_generation_prompt: true, ..Chat::default() };
            let tokens = match model.tokenizer.template() {
                Some(_) => model.chat_prompt(&chat, None)?,
                None => model.tokenizer.encode_prompt(line)?,
            };
            prompts.push((line.to_string() + "\n", tokens));
        }
    } else {
        for sample in (if valid.is_empty() { train } else { valid }).iter().take(TEXTS) {
            let n = if sample.offset > 0 { sample.offset } else { sample.tokens.len().div_ceil(4).clamp(1, 24) };
            let tokens = sample.tokens[..n].to_vec();
            prompts.push((model.tokenizer.decode(&tokens, true)?, tokens));
        }
    }
    let options = Options { max_tokens: Some(TOKENS), ..Options::default() };
    let mut all = Vec::new();
    for (prompt, tokens) in prompts {
        if model.context.is_some_and(|context| tokens.len() >= context) {
            continue;
        }
        let mut text = String::new();
        for step in model.stream(&tokens, &options, Sequence::new())? {
            text += &step?.text;
        }
        all.push(Written { prompt, text });
    }
    Ok(all)
}
