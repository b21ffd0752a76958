//! `response_format` of OpenAI's requests.

use lapis::{Error, Result};
use serde_json::Value;

use super::Grammar;
use crate::tokenizer::Tokenizer;

impl Grammar {
    /// The grammar of a `response_format`: `{"type": "text"}` (none), `{"type": "json_object"}`, or
    /// `{"type": "json_schema", "json_schema": {"name": ..., "schema": ..., "strict": ...}}`. Also
    /// `{"type": "regex", "regex": ...}` and `{"type": "grammar", "grammar": ...}` (Lark).
    ///
    /// A schema is held to whether it is `strict` or not.
    ///
    /// # Errors
    /// `Value` that names the field; those of the grammar.
    pub fn from_response_format(tokenizer: &Tokenizer, format: &Value) -> Result<Option<Grammar>> {
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
            Some("json_object") => Grammar::json_object(tokenizer).map(Some),
            Some("regex") => Grammar::regex(tokenizer, text("regex")?).map(Some),
            Some("grammar") => Grammar::lark(tokenizer, text("grammar")?).map(Some),
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
                Grammar::json_schema(tokenizer, schema).map(Some)
            }
            _ => Err(wrong(
                "response_format.type",
                &format!("is {kind}; it is one of \"text\", \"json_object\", \"json_schema\", \"regex\", \"grammar\""),
            )),
        }
    }
}
