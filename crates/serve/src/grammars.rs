//! What replies must be: the grammar of a request, from its tools and the format of its answer. Those of late are kept.

use crate::error::ApiError;
use crate::models::Loaded;
use crate::service::{Ask, ToolChoice};
use lapis_lm::Grammar;
use lapis_lm::reply::{call_grammar, call_or_answer, call_or_text};
use lapis_lm::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Grammars that are kept.
const KEPT: usize = 64;
/// What the tools of a request may take to be looked at, one after the other.
const TOOLS: Duration = Duration::from_secs(30);

/// What a reply is held to.
#[derive(Clone)]
pub(crate) struct Held {
    /// Its grammar.
    pub grammar: Arc<Grammar>,
    /// What was asked for and is not held to.
    pub warnings: Arc<[String]>,
}

/// Of which model, and of what.
type Key = (u64, String);

/// The grammars of late.
#[derive(Default)]
pub(crate) struct Grammars(Mutex<Vec<(Key, Held)>>);

/// Whether a call must come, may come, or need not be looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Calls {
    Must,
    May,
    No,
}

impl Grammars {
    /// The grammar of a request's replies; none where they are free. Where one is
    /// made, `told` hears how long it took and what it does not hold to.
    ///
    /// # Errors
    /// What cannot be held to: tools and schemas that are malformed, and those that are `strict` and beyond grammars.
    pub(crate) fn of(
        &self,
        loaded: &Loaded,
        ask: &Ask,
        told: impl FnOnce(Duration, &[String]),
    ) -> Result<Option<Held>, ApiError> {
        let calls = match &ask.tool_choice {
            ToolChoice::Required | ToolChoice::Named(_) => Calls::Must,
            ToolChoice::Auto if !ask.tools.is_empty() => Calls::May,
            _ => Calls::No,
        };
        let named = match &ask.tool_choice {
            ToolChoice::Named(name) => Some(name.as_str()),
            _ => None,
        };
        let held: Vec<&str> = ask.grammars.values().map(|g| &*g.definition).collect();
        let key = match (&ask.format, calls) {
            (_, Calls::Must) => json!(["call", ask.tools, named, ask.single_call, held]),
            // Where one of them is strict, so are calls that nobody asked for.
            (None, Calls::May) if ask.tools.iter().any(strict) => json!(["free", ask.tools, ask.single_call, held]),
            (None, _) => return Ok(None),
            (Some(format), Calls::May) => json!(["or", ask.tools, ask.single_call, held, format]),
            (Some(format), Calls::No) => format.clone(),
        };
        let key = (loaded.serial, key.to_string());
        if let Some(held) = self.kept(&key) {
            return Ok(Some(held));
        }
        let began = Instant::now();
        let tokenizer = &loaded.model.tokenizer;
        let mut warnings = Vec::new();
        let tools = match calls {
            Calls::No => Vec::new(),
            _ => tools(tokenizer, ask, named, calls, &mut warnings)?,
        };
        let made = match ask.format.as_ref().filter(|_| calls != Calls::Must) {
            None if calls == Calls::May => call_or_text(tokenizer, &tools, ask.single_call),
            None => call_grammar(tokenizer, &tools, named, ask.single_call).map(Some),
            Some(format) => {
                let format = relaxed(tokenizer, format, &mut warnings);
                match calls {
                    Calls::May => call_or_answer(tokenizer, &tools, ask.single_call, &format),
                    _ => Grammar::from_response_format(tokenizer, &format),
                }
            }
        };
        told(began.elapsed(), &warnings);
        let param = match (calls, &ask.format) {
            (Calls::Must, _) => "tool_choice",
            (_, None) => "tools",
            _ => "response_format",
        };
        let made = made.map_err(|e| ApiError { status: 400, ..ApiError::from(e) }.about(param))?;
        let Some(grammar) = made.map(Arc::new) else { return Ok(None) };
        let held = Held { grammar, warnings: warnings.into() };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(0, (key, held.clone()));
        kept.truncate(KEPT);
        Ok(Some(held))
    }

    fn kept(&self, key: &Key) -> Option<Held> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(k, _)| k == key)?;
        let entry = kept.remove(at);
        let held = entry.1.clone();
        kept.insert(0, entry);
        Some(held)
    }
}

/// Whether a tool's calls must be valid.
fn strict(tool: &Value) -> bool {
    tool["function"]["strict"] == true
}

/// The tools that may be called, with schemas that grammars can say. Parameters that the model's markup writes as free
/// text need a schema that is one, too.
fn tools(
    tokenizer: &Tokenizer,
    ask: &Ask,
    named: Option<&str>,
    calls: Calls,
    warnings: &mut Vec<String>,
) -> Result<Vec<Value>, ApiError> {
    let begun = Instant::now();
    let mut out = ask.tools.clone();
    for (i, tool) in out.iter_mut().enumerate() {
        if begun.elapsed() > TOOLS {
            let most = TOOLS.as_secs();
            let why = format!("the schemas of the first {i} tools take more than {most} s to compile: simplify them");
            return Err(ApiError::field("tools", why));
        }
        let name = tool["function"]["name"].as_str().unwrap_or("").to_owned();
        let strict = strict(tool);
        let function = &mut tool["function"];
        let Some(schema) = function.get("parameters").filter(|p| p.is_object() && named.is_none_or(|n| n == name))
        else {
            continue;
        };
        let relaxed = match strict {
            true => Grammar::json_schema(tokenizer, schema).map(|_| (schema.clone(), Vec::new())),
            false => Grammar::relax(tokenizer, schema),
        };
        if let Some(held) = ask.grammars.get(&name) {
            Grammar::lark_in_json(tokenizer, &held.definition).map_err(|e| {
                let what = e.message().trim_start_matches("[grammar] ");
                ApiError::field("tools", format!("{}: {what}", held.at))
            })?;
            function["grammar"] = json!(held.definition);
        }
        let name = name.escape_default();
        function["parameters"] = match relaxed {
            Ok((schema, left)) => {
                warnings.extend(left.into_iter().map(|what| format!("tool {name}: {what}")));
                schema
            }
            // Nobody asked that it be called.
            Err(e) if calls == Calls::May && !strict => {
                warnings.push(format!(
                    "tool {name}: its schema is not held to: {}",
                    e.message().trim_start_matches("[schema] ")
                ));
                json!({"type": "object"})
            }
            Err(e) => {
                let what = e.message().trim_start_matches("[schema] ");
                let why = format!("tools[{i}].function.parameters: {what}");
                return Err(ApiError::field("tools", why));
            }
        };
    }
    Ok(out)
}

/// The format of an answer. A schema that is not `strict` is held to as far as grammars can say it; what is wrong with it is
/// found when it becomes a grammar.
fn relaxed(tokenizer: &Tokenizer, format: &Value, warnings: &mut Vec<String>) -> Value {
    let mut format = format.clone();
    let inner = (format["type"] == "json_schema").then(|| format.get_mut("json_schema")).flatten();
    if let Some(inner) = inner.filter(|inner| inner.get("strict") != Some(&json!(true)))
        && let Some((schema, left)) = inner.get("schema").and_then(|schema| Grammar::relax(tokenizer, schema).ok())
    {
        warnings.extend(left.into_iter().map(|what| format!("the answer's schema: {what}")));
        inner["schema"] = schema;
    }
    format
}
