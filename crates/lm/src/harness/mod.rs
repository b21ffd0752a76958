//! Tasks in the formats of the public evaluation harness (EleutherAI's lm-evaluation-harness), run on the engine.
//!
//! A task is a YAML file of the harness, or rows in a file of lines of JSON. Prompts, metrics, draws of examples and the names
//! in results are the harness's; code in tasks (`!function`) is refused.

mod data;
mod filter;
mod metric;
mod mmlu;
mod prompt;
mod run;
mod task;

pub use mmlu::groups;
pub use task::Task;

use crate::sample::Sampling;
use data::Place;
use lapis::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How tasks are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Questions at once.
    pub batch_size: usize,
    /// Examples before a question, where it is not as the task says.
    pub num_fewshot: Option<usize>,
    /// Tokens of a reply, where it is not as the task says.
    pub max_tokens: Option<usize>,
    /// Questions of a task.
    pub limit: Option<Limit>,
    /// For draws of examples and of replies.
    pub seed: u64,
    /// Examples are turns of a chat of their own.
    pub multiturn: bool,
    /// Whether prompts are chats; by default where the model has a template.
    pub chat: Option<bool>,
    /// Other variables of the chat template.
    pub keywords: Map<String, Value>,
    /// How replies are drawn.
    pub sampling: Sampling,
}

/// How many questions of a task are asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// So many.
    Count(usize),
    /// A share of all.
    Share(f64),
}

impl Limit {
    fn of(self, rows: usize) -> usize {
        match self {
            Limit::Count(n) => n.min(rows),
            Limit::Share(x) => ((rows as f64 * x).ceil() as usize).clamp(1, rows),
        }
    }
}

/// One number of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The metric.
    pub metric: String,
    /// The filter that replies went through; `none` where there was none.
    pub filter: String,
    /// The number.
    pub value: f64,
    /// Its standard error.
    pub error: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// What a task came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The task.
    pub name: String,
    /// What tables call it.
    pub alias: String,
    /// Its version.
    pub version: Option<f64>,
    /// Examples before each question.
    pub shots: usize,
    /// Questions asked.
    pub count: usize,
    /// Questions that there are.
    pub rows: usize,
    /// Prompts that were cut from the left to fit the model's context.
    pub cut: usize,
    /// Its numbers.
    pub scores: Vec<Score>,
    /// Each question with what was asked and answered.
    pub samples: Vec<Value>,
}

impl Outcome {
    /// As the harness writes it: `metric,filter` and `metric_stderr,filter`.
    pub fn to_json(&self) -> Value {
        let mut all = json!({"alias": self.alias, "sample_len": self.count});
        for score in &self.scores {
            let (metric, filter) = (&score.metric, &score.filter);
            all[format!("{metric},{filter}")] = json!(score.value);
            all[format!("{metric}_stderr,{filter}")] = score.error.map_or(json!("N/A"), |e| json!(e));
        }
        all
    }
}

/// Tasks by name.
pub struct Library {
    files: BTreeMap<String, PathBuf>,
    data: Option<PathBuf>,
}

/// Files that include each other go so deep.
const INCLUDES: usize = 8;

impl Library {
    /// The tasks of YAML files in folders and of those built in; rows of data sets are looked for in `data`, too.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn new(folders: &[PathBuf], data: Option<PathBuf>) -> Result<Library> {
        let mut files = BTreeMap::new();
        for folder in folders {
            let entries =
                std::fs::read_dir(folder).map_err(|e| Error::io(format!("[evaluate] {}: {e}", folder.display())))?;
            for path in entries.flatten().map(|e| e.path()).filter(|p| is_yaml(p)) {
                // Other YAML files may lie beside.
                let Ok(settings) = crate::yaml::read(&path) else { continue };
                let name = settings.get("task").or(settings.get("group")).and_then(Value::as_str);
                if let Some(name) = name.filter(|_| !settings.contains_key("model")) {
                    files.insert(name.to_string(), path);
                }
            }
        }
        Ok(Library { files, data })
    }

    /// The names of all tasks, with those built in.
    pub fn names(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.files.keys().map(String::as_str).chain(BUILT_IN.iter().map(|t| t.0)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The tasks of a name: those of a group (`mmlu`, `mmlu_stem`), else the one of that name.
    ///
    /// # Errors
    /// As [`Library::task`].
    pub fn tasks(&self, name: &str) -> Result<Vec<Task>> {
        let own = self.files.contains_key(name) || Path::new(name).is_file();
        match mmlu::members(name).filter(|_| !own) {
            Some(all) => all.iter().map(|name| self.task(name)).collect(),
            None => Ok(vec![self.task(name)?]),
        }
    }

    /// A task by its name, or in a file: YAML, or rows as lines of JSON.
    ///
    /// # Errors
    /// A task that is not there, with those that are; settings or rows that are wrong.
    pub fn task(&self, name: &str) -> Result<Task> {
        let path = Path::new(name);
        if path.is_file() {
            return if is_yaml(path) { self.file(path) } else { Task::of_rows(path) };
        }
        if let Some(path) = self.files.get(name) {
            return self.file(path);
        }
        let built_in = BUILT_IN.iter().find(|t| t.0 == name).map(|(_, text)| crate::yaml::parse(text));
        if let Some(settings) = built_in.or_else(|| mmlu::settings(name)) {
            let settings = settings.map_err(|e| Error::value(format!("[evaluate] {name}: {e}")))?;
            return Task::of(&settings, name, &Place { folder: PathBuf::new(), data: self.data.clone() });
        }
        Err(Error::value(format!(
            "[evaluate] there is no task {name:?}\n  There are {}, mmlu, mmlu_GROUP, mmlu_SUBJECT.\n  Name a YAML file of lm-evaluation-harness, or rows as lines \
             of JSON. Tasks that need Python run there, against `lapis serve`:\n  lm_eval --model local-completions --tasks {name} \
             --model_args model=MODEL,base_url=http://127.0.0.1:8080/v1/completions",
            self.names().join(", ")
        )))
    }

    fn file(&self, path: &Path) -> Result<Task> {
        let settings = task::settings(path, INCLUDES)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Task::of(&settings, &path.display().to_string(), &Place { folder, data: self.data.clone() })
    }
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

/// Tasks of the harness that need no code, by name; their rows are looked for on this machine.
const BUILT_IN: [(&str, &str); 7] = [
    ("arc_challenge", include_str!("tasks/arc_challenge.yaml")),
    ("arc_easy", include_str!("tasks/arc_easy.yaml")),
    ("boolq", include_str!("tasks/boolq.yaml")),
    ("gsm8k", include_str!("tasks/gsm8k.yaml")),
    ("hellaswag", include_str!("tasks/hellaswag.yaml")),
    ("piqa", include_str!("tasks/piqa.yaml")),
    ("winogrande", include_str!("tasks/winogrande.yaml")),
];
