//! `response_format` of OpenAI's requests.

use lapis::{Error, Result};
use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

use super::{Grammar, lark, schema, spaced};
use crate::tokenizer::Tokenizer;

/// What a `response_format` asks for.
pub(crate) enum Answer<'a> {
    /// JSON of a schema.
    Schema(Value),
    /// A match of a regular expression.
    Regex(&'a str),
    /// A text of a Lark or GBNF grammar.
    Lark(&'a str),
}

/// What an answer is called in grammars around it.
pub(crate) const ANSWER: &str = "answer";

impl Answer<'_> {
    /// The answer as a part of a larger grammar, in which [`ANSWER`] names it.
    pub(crate) fn part(&self) -> Result<GrammarWithLexer> {
        let part = match self {
            Answer::Schema(schema) => {
                let schema = schema::supported(schema, false).map_err(|fault| fault.error)?.schema;
                let schema = spaced(schema).map_err(|why| Error::value(format!("[schema] {why}")))?;
                GrammarWithLexer::from_json_schema(schema)
            }
            Answer::Regex(expression) => GrammarWithLexer::from_regex(expression),
            Answer::Lark(grammar) => GrammarWithLexer::from_lark(lark(grammar)),
        };
        Ok(GrammarWithLexer { name: Some(ANSWER.into()), ..part })
    }
}

impl Grammar {
    /// The grammar of a `response_format`: `{"type": "text"}` (none), `{"type": "json_object"}`, or
    /// `{"type": "json_schema", "json_schema": {"name": ..., "schema": ..., "strict": ...}}`. Also
    /// `{"type": "regex", "regex": ...}` and `{"type": "grammar", "grammar": ...}` (Lark or GBNF).
    ///
    /// A schema is held to whether it is `strict` or not.
    ///
    /// # Errors
    /// `Value` that names the field; those of the grammar.
    pub fn from_response_format(tokenizer: &Tokenizer, format: &Value) -> Result<Option<Grammar>> {
        let made = match Answer::of(format)? {
            None => return Ok(None),
            Some(Answer::Schema(schema)) => Grammar::json_schema(tokenizer, &schema),
            Some(Answer::Regex(expression)) => Grammar::regex(tokenizer, expression),
            Some(Answer::Lark(grammar)) => Grammar::lark(tokenizer, grammar),
        };
        made.map(Some)
    }
}

impl<'a> Answer<'a> {
    /// Reads a `response_format`; none where the text is free.
    ///
    /// # Errors
    /// `Value` that names the field.
    pub(crate) fn of(format: &'a Value) -> Result<Option<Answer<'a>>> {
        let wrong = |field: &str, what: &str| Error::value(format!("[response_format] {field} {what}"));
        let object = format.as_object().ok_or_else(|| wrong("response_format", "must be an object"))?;
        let kind = object.get("type").ok_or_else(|| wrong("response_format.type", "is missing"))?;
        let text = |name: &str| {
            let field = format!("response_format.{name}");
            let value = object.get(name).ok_or_else(|| wrong(&field, "is missing"))?;
            value.as_str().ok_or_else(|| wrong(&field, "must be a string"))
        };
        match kind.as_str() {
            Some("text") => Ok(None),
            Some("json_object") => Ok(Some(Answer::Schema(json!({"type": "object"})))),
            Some("regex") => Ok(Some(Answer::Regex(text("regex")?))),
            Some("grammar") => Ok(Some(Answer::Lark(text("grammar")?))),
            Some("json_schema") => {
                let field = "response_format.json_schema";
                let inner = object.get("json_schema").ok_or_else(|| wrong(field, "is missing"))?;
                let inner = inner.as_object().ok_or_else(|| wrong(field, "must be an object"))?;
                if inner.get("name").is_some_and(|name| !name.is_string()) {
                    return Err(wrong("response_format.json_schema.name", "must be a string"));
                }
                if inner.get("strict").is_some_and(|strict| !strict.is_boolean() && !strict.is_null()) {
                    return Err(wrong("response_format.json_schema.strict", "must be true, false or null"));
                }
                let schema = inner.get("schema");
                let schema = schema.ok_or_else(|| wrong("response_format.json_schema.schema", "is missing"))?;
                Ok(Some(Answer::Schema(schema.clone())))
            }
            _ => Err(wrong(
                "response_format.type",
                &format!("is {kind}; it is one of \"text\", \"json_object\", \"json_schema\", \"regex\", \"grammar\""),
            )),
        }
    }
}
