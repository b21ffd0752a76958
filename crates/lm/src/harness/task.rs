//! A task: its settings, from the harness's YAML or guessed from rows, and its rows.
//!
//! Settings that are code (`!function`) are refused by name: nothing of a task is run.

use super::data::{self, Place};
use super::filter::Filter;
use super::metric::Metric;
use crate::reply::literal;
use crate::template::Template;
use crate::yaml;
use lapis::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A row of a data set, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Doc {
    pub(super) values: Arc<Map<String, Value>>,
    pub(super) file: Arc<str>,
    /// From 1.
    pub(super) line: usize,
}

/// An error about a row.
pub(super) fn bad(doc: &Doc, why: impl std::fmt::Display) -> Error {
    Error::value(format!("[evaluate] {}:{}: {why}", doc.file, doc.line))
}

/// What is asked of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    MultipleChoice,
    Likelihood,
    Rolling,
    Generate,
}

/// How a part of a prompt comes from a row: a column, a template, or the same for all rows.
#[derive(Clone)]
pub(super) enum Field {
    Text(String, Template),
    Same(Value),
}

impl Field {
    fn of(value: &Value, key: &str) -> Result<Field> {
        match value {
            Value::String(text) => {
                let template = Template::of_text(text)
                    .map_err(|e| Error::value(format!("[evaluate] {key}: {}", data::reason(&e))))?;
                Ok(Field::Text(text.clone(), template))
            }
            Value::Object(all) if all.keys().any(|k| k.starts_with('!')) => Err(code(key, all)),
            Value::Object(all) => Ok(Field::Same(all.values().cloned().collect())),
            other => Ok(Field::Same(other.clone())),
        }
    }

    /// The value for a row.
    pub(super) fn value(&self, doc: &Doc) -> Result<Value> {
        match self {
            Field::Same(value) => Ok(value.clone()),
            Field::Text(name, _) if doc.values.contains_key(name) => Ok(doc.values[name].clone()),
            Field::Text(_, template) => {
                template.fill(&doc.values).map(Value::String).map_err(|e| bad(doc, data::reason(&e)))
            }
        }
    }

    /// The text for a row.
    pub(super) fn text(&self, doc: &Doc) -> Result<String> {
        self.value(doc).map(|v| written(&v))
    }

    /// The list for a row; one that a template writes is Python's.
    pub(super) fn list(&self, doc: &Doc) -> Result<Vec<String>> {
        let value = match self.value(doc)? {
            Value::String(text) => python(&text).ok_or_else(|| bad(doc, format!("{text:?} is no list of choices")))?,
            other => other,
        };
        let all = value.as_array().ok_or_else(|| bad(doc, format!("{value} is no list of choices")))?;
        Ok(all.iter().map(written).collect())
    }
}

/// A literal of Python, as a value.
pub(super) fn python(text: &str) -> Option<Value> {
    serde_json::from_str(&literal::literal(text.trim())?).ok()
}

/// A value as Python's `str` writes it.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        other => other.to_string(),
    }
}

/// Settings by name, for errors that name them.
pub(super) struct Fields<'a> {
    all: &'a Map<String, Value>,
    what: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(all: &'a Map<String, Value>, what: &'a str) -> Fields<'a> {
        Fields { all, what }
    }

    fn get(&self, key: &str) -> Result<Option<&'a Value>> {
        match self.all.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(all)) if all.keys().any(|k| k.starts_with('!')) => Err(code(key, all)),
            Some(value) => Ok(Some(value)),
        }
    }

    fn wrong(&self, key: &str, wanted: &str, value: &Value) -> Error {
        Error::value(format!("[evaluate] {}: {key} is {value}; {wanted} is needed", self.what))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        value.as_str().map(|s| Some(s.to_string())).ok_or_else(|| self.wrong(key, "a text", value))
    }

    pub(super) fn truth(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key)? else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value))
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        value.as_i64().map(Some).ok_or_else(|| self.wrong(key, "a whole number", value))
    }

    /// A number of things.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(n) = self.integer(key)? else { return Ok(None) };
        usize::try_from(n).map(Some).map_err(|_| self.wrong(key, "a number from 0", &n.into()))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number", value))
    }

    /// A list of texts, or one.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        match self.get(key)? {
            None => Ok(None),
            Some(Value::String(one)) => Ok(Some(vec![one.clone()])),
            Some(Value::Array(all)) if all.iter().all(Value::is_string) => Ok(Some(all.iter().map(written).collect())),
            Some(value) => Err(self.wrong(key, "a list of texts", value)),
        }
    }

    fn objects(&self, key: &str) -> Result<Option<Vec<&'a Map<String, Value>>>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        let all = value.as_array().and_then(|all| all.iter().map(Value::as_object).collect::<Option<Vec<_>>>());
        all.map(Some).ok_or_else(|| self.wrong(key, "a list of mappings", value))
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        value.as_object().map(Some).ok_or_else(|| self.wrong(key, "a mapping", value))
    }

    fn field(&self, key: &str) -> Result<Option<Field>> {
        self.get(key)?.map(|value| Field::of(value, &format!("{}: {key}", self.what))).transpose()
    }
}

/// Code is refused.
fn code(key: &str, tag: &Map<String, Value>) -> Error {
    let (tag, name) = tag.iter().next().map_or((String::new(), String::new()), |(t, n)| (t.clone(), written(n)));
    Error::unsupported(format!(
        "[evaluate] {key}: {tag} {name}: code of a task is never run\n  Write the setting as a template, or the rows as they are \
         to be asked."
    ))
}

/// How examples before a question are put.
pub(super) struct Shots {
    pub(super) docs: Vec<Doc>,
    /// The first ones, and not drawn.
    pub(super) first: bool,
    /// The question itself is among them, and is left out.
    pub(super) among: bool,
    pub(super) put: Put,
}

/// How a row becomes a turn.
#[derive(Clone)]
pub(super) struct Put {
    pub(super) text: Field,
    pub(super) target: Field,
    pub(super) choice: Option<Field>,
    pub(super) prefix: Option<Field>,
    pub(super) target_delimiter: String,
    pub(super) delimiter: String,
}

/// How replies are written.
pub(super) struct Writing {
    pub(super) until: Vec<String>,
    pub(super) max_tokens: Option<usize>,
    /// Where replies are drawn.
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
}

/// A task.
pub struct Task {
    /// Its name, in results.
    pub name: String,
    /// What tables call it.
    pub alias: String,
    /// `metadata.version`.
    pub version: Option<f64>,
    pub(super) kind: Kind,
    pub(super) docs: Vec<Doc>,
    pub(super) put: Put,
    pub(super) description: Option<Field>,
    pub(super) shots: Shots,
    pub(super) num_fewshot: usize,
    pub(super) repeats: usize,
    pub(super) writing: Writing,
    pub(super) filters: Vec<(String, Vec<Filter>)>,
    pub(super) metrics: Vec<Metric>,
}

/// Settings that are read.
const KEYS: [&str; 33] = [
    "task",
    "task_alias",
    "tag",
    "include",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "fewshot_config",
    "num_fewshot",
    "metric_list",
    "output_type",
    "generation_kwargs",
    "repeats",
    "filter_list",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "gen_prefix",
    "metadata",
    "group",
    "process_docs",
    "process_results",
    "unsafe_code",
    "custom_dataset",
];

impl Task {
    /// The task of settings; paths in them begin at the folder of `file`, which errors name.
    ///
    /// # Errors
    /// Settings that are not known, wrong, or code; rows that cannot be read.
    pub(super) fn of(settings: &Map<String, Value>, file: &str, place: &Place) -> Result<Task> {
        let name = settings.get("task").and_then(Value::as_str).map_or_else(|| stem(file), str::to_string);
        let fields = Fields::new(settings, &name);
        if let Some(key) = settings.keys().find(|k| !KEYS.contains(&k.as_str())) {
            return Err(Error::unsupported(format!("[evaluate] {file}: the setting {key:?} is not known")));
        }
        for key in ["process_docs", "process_results", "custom_dataset"] {
            if let Some(value) = fields.get(key)? {
                return Err(fields.wrong(key, "nothing: it stands for code, which is never run;", value));
            }
        }
        if fields.truth("unsafe_code")? {
            return Err(Error::unsupported(format!(
                "[evaluate] {name} runs code that the model writes; lapis never does"
            )));
        }
        let kind = match fields.text("output_type")?.as_deref() {
            Some("multiple_choice") => Kind::MultipleChoice,
            Some("loglikelihood") => Kind::Likelihood,
            Some("loglikelihood_rolling") => Kind::Rolling,
            Some("generate_until") | None => Kind::Generate,
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "[evaluate] {name}: output_type is {other:?}; there are multiple_choice, loglikelihood, \
                     loglikelihood_rolling, generate_until"
                )));
            }
        };
        let missing = |key: &str| Error::value(format!("[evaluate] {file}: {key} is missing"));
        let empty = || Field::Same(Value::String(String::new()));
        let put = Put {
            text: match (fields.field("doc_to_text")?, kind) {
                (Some(field), _) => field,
                (None, Kind::Rolling) => empty(),
                (None, _) => return Err(missing("doc_to_text")),
            },
            target: fields.field("doc_to_target")?.ok_or_else(|| missing("doc_to_target"))?,
            choice: fields.field("doc_to_choice")?,
            prefix: fields.field("gen_prefix")?,
            target_delimiter: fields.text("target_delimiter")?.unwrap_or_else(|| " ".into()),
            delimiter: fields.text("fewshot_delimiter")?.unwrap_or_else(|| "\n\n".into()),
        };
        if kind == Kind::MultipleChoice && put.choice.is_none() {
            return Err(missing("doc_to_choice"));
        }
        let (rows, shots) = rows(&fields, place, &put)?;
        if rows.is_empty() {
            return Err(Error::value(format!("[evaluate] {name}: there are no rows to ask about")));
        }
        let writing = writing(&fields, &put)?;
        let filters = match fields.objects("filter_list")? {
            None => vec![("none".to_string(), vec![Filter::First])],
            Some(all) => all.into_iter().map(pipeline).collect::<Result<_>>()?,
        };
        let metrics = match fields.objects("metric_list")? {
            None => Metric::usual(kind),
            Some(all) => all.into_iter().map(|entry| Metric::of(entry, kind)).collect::<Result<_>>()?,
        };
        let alias = fields.text("task_alias")?.unwrap_or_else(|| name.clone());
        let metadata = fields.object("metadata")?;
        Ok(Task {
            version: metadata.and_then(|m| m.get("version")).and_then(Value::as_f64),
            kind,
            docs: rows,
            description: fields.field("description")?,
            shots,
            num_fewshot: fields.count("num_fewshot")?.unwrap_or(0),
            repeats: fields.count("repeats")?.unwrap_or(1).max(1),
            writing,
            filters,
            metrics,
            put,
            alias,
            name,
        })
    }

    /// A task about the rows of a file, whose columns say what kind it is.
    pub(super) fn of_rows(file: &Path) -> Result<Task> {
        let docs = data::read(file)?;
        let shown = file.display().to_string();
        let first = docs.first().ok_or_else(|| Error::value(format!("[evaluate] {shown}: there are no rows")))?;
        let any = |names: &[&str]| names.iter().find(|n| first.values.contains_key(**n)).map(|n| n.to_string());
        let question = any(&["query", "question", "prompt", "context", "input", "goal"]);
        let choices = any(&["choices", "options", "endings"]);
        let answer = any(&["gold", "label", "answer", "target", "answerKey", "output", "completion"]);
        let text = if question.as_deref() == Some("question") {
            Some("Question: {{question}}\nAnswer:".to_string())
        } else {
            question.clone()
        };
        let mut settings = match (&text, choices, answer, any(&["text", "page"])) {
            (Some(text), Some(choices), Some(answer), _) => json!({
                "output_type": "multiple_choice", "doc_to_text": text, "doc_to_choice": choices, "doc_to_target": answer,
            }),
            (Some(text), None, Some(answer), _) => json!({
                "output_type": "generate_until", "doc_to_text": text, "doc_to_target": answer,
                "metric_list": [
                    {"metric": "exact_match", "ignore_case": true, "ignore_punctuation": true}, {"metric": "f1"}
                ],
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": 256},
                "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
            }),
            (_, _, _, Some(text)) => json!({"output_type": "loglikelihood_rolling", "doc_to_target": text}),
            _ => {
                let has: Vec<String> = first.values.keys().map(|k| format!("{k:?}")).collect();
                return Err(bad(
                    first,
                    format!(
                        "the row has {}; it needs \"question\" (or \"prompt\", \"context\") with \"answer\" (or \"label\", \
                         \"target\") and, to choose, \"choices\"; or \"text\". A task in YAML takes any columns",
                        has.join(", ")
                    ),
                ));
            }
        };
        settings["test_split"] = json!("test");
        settings["dataset_kwargs"] = json!({"data_files": {"test": shown}});
        settings["dataset_path"] = json!("json");
        let place = Place { folder: PathBuf::new(), data: None };
        let settings = settings.as_object().cloned().unwrap_or_default();
        Task::of(&settings, &shown, &place)
    }
}

/// The settings of a file, on those of the files that it includes.
pub(super) fn settings(file: &Path, depth: usize) -> Result<Map<String, Value>> {
    let own = yaml::read(file)?;
    let mut all = Map::new();
    let names = Fields::new(&own, "include").texts("include")?.unwrap_or_default();
    for name in names {
        if depth == 0 {
            return Err(Error::value(format!("[evaluate] {}: files include each other", file.display())));
        }
        let path = file.parent().unwrap_or(Path::new("")).join(&name);
        all.extend(settings(&path, depth - 1)?);
    }
    all.extend(own);
    Ok(all)
}

/// The name of a file without what follows the last dot.
pub(super) fn stem(file: &str) -> String {
    Path::new(file).file_stem().map_or_else(|| file.to_string(), |s| s.to_string_lossy().into_owned())
}

/// The rows to ask about, and those for examples.
fn rows(fields: &Fields<'_>, place: &Place, put: &Put) -> Result<(Vec<Doc>, Shots)> {
    let split = |key: &str| fields.text(key);
    let (training, validation, test) = (split("training_split")?, split("validation_split")?, split("test_split")?);
    let set = data::Set {
        task: fields.what,
        path: fields.text("dataset_path")?,
        name: fields.text("dataset_name")?,
        files: fields.object("dataset_kwargs")?.and_then(|k| k.get("data_files")),
        place,
    };
    let asked = test.as_ref().or(validation.as_ref()).ok_or_else(|| {
        Error::value(format!("[evaluate] {}: test_split or validation_split is missing", fields.what))
    })?;
    let docs = set.split(asked)?;
    let empty = Map::new();
    let config = fields.object("fewshot_config")?.unwrap_or(&empty);
    let own = Fields::new(config, fields.what);
    let from = own.text("split")?.or(fields.text("fewshot_split")?);
    let among = from == test;
    let samples = match own.get("samples")? {
        None => None,
        Some(Value::Array(all)) => {
            let (file, mut found) = (Arc::<str>::from(fields.what), Vec::new());
            for (i, row) in all.iter().enumerate() {
                let values = row.as_object().cloned().ok_or_else(|| own.wrong("samples", "a list of mappings", row))?;
                found.push(Doc { values: Arc::new(values), file: file.clone(), line: i + 1 });
            }
            Some(found)
        }
        Some(other) => return Err(own.wrong("samples", "a list of mappings", other)),
    };
    let wanted = fields.count("num_fewshot")?.unwrap_or(0);
    let examples = match (from, samples) {
        (Some(split), _) => set.split(&split).map(Some),
        (None, Some(samples)) => Ok(Some(samples)),
        (None, None) => match training.or(validation) {
            Some(split) => set.split(&split).map(Some),
            None => Ok(None),
        },
    };
    let examples = match examples {
        Ok(Some(examples)) => examples,
        Ok(None) => docs.clone(),
        // Examples that nobody asked for need not be there.
        Err(_) if wanted == 0 => Vec::new(),
        Err(e) => return Err(e),
    };
    let shots = Shots {
        docs: examples,
        first: match own.text("sampler")?.as_deref() {
            Some("first_n") => true,
            None | Some("default") => false,
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "[evaluate] {}: the sampler {other:?} is not known; there are default and first_n",
                    fields.what
                )));
            }
        },
        among,
        put: Put {
            text: own.field("doc_to_text")?.unwrap_or_else(|| put.text.clone()),
            target: own.field("doc_to_target")?.unwrap_or_else(|| put.target.clone()),
            choice: own.field("doc_to_choice")?.or_else(|| put.choice.clone()),
            prefix: own.field("gen_prefix")?.or_else(|| put.prefix.clone()),
            target_delimiter: own.text("target_delimiter")?.unwrap_or_else(|| put.target_delimiter.clone()),
            delimiter: own.text("fewshot_delimiter")?.unwrap_or_else(|| put.delimiter.clone()),
        },
    };
    Ok((docs, shots))
}

fn writing(fields: &Fields<'_>, put: &Put) -> Result<Writing> {
    let empty = Map::new();
    let settings = Fields::new(fields.object("generation_kwargs")?.unwrap_or(&empty), fields.what);
    let drawn = settings.truth("do_sample")?;
    let float = |key: &str| settings.number(key).map(|x| x.filter(|_| drawn));
    Ok(Writing {
        until: settings.texts("until")?.unwrap_or_else(|| vec![put.delimiter.clone()]),
        max_tokens: settings.count("max_gen_toks")?,
        temperature: float("temperature")?,
        top_p: float("top_p")?,
    })
}

/// A name and its filters.
fn pipeline(entry: &Map<String, Value>) -> Result<(String, Vec<Filter>)> {
    let fields = Fields::new(entry, "filter_list");
    let name = fields.text("name")?.unwrap_or_else(|| "none".into());
    let all = fields.objects("filter")?.unwrap_or_default();
    Ok((name, all.into_iter().map(Filter::of).collect::<Result<_>>()?))
}
