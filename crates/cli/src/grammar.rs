//! What a reply may be: flags that constrain it.

use lapis::{Error, Result};
use lapis_lm::{Grammar, LanguageModel};
use std::path::Path;

/// A grammar for the reply; one at most.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(crate) struct GrammarArguments {
    /// The reply is JSON that is valid under a schema: JSON, or a file of it
    #[arg(long)]
    json_schema: Option<String>,
    /// The reply is a match of a regular expression, as a whole
    #[arg(long, allow_hyphen_values = true)]
    regex: Option<String>,
    /// The reply follows a grammar in Lark's syntax, or llama.cpp's GBNF: a grammar, or a file of it
    #[arg(long)]
    grammar: Option<String>,
}

impl GrammarArguments {
    /// The grammar for a model's replies, if there is one.
    pub(crate) fn grammar(&self, model: &LanguageModel) -> Result<Option<Grammar>> {
        let tokenizer = &model.tokenizer;
        if let Some(schema) = &self.json_schema {
            let text = text("--json-schema", schema, schema.trim_start().starts_with('{'))?;
            let schema = serde_json::from_str(&text).map_err(|e| Error::value(format!("--json-schema: {e}")))?;
            return Grammar::json_schema(tokenizer, &schema).map(Some);
        }
        if let Some(expression) = &self.regex {
            return Grammar::regex(tokenizer, expression).map(Some);
        }
        let Some(grammar) = &self.grammar else { return Ok(None) };
        let text = text("--grammar", grammar, grammar.contains(':') && !Path::new(grammar).is_file())?;
        Grammar::lark(tokenizer, &text).map(Some)
    }
}

/// A flag's text, or that of the file which it names.
fn text(flag: &str, value: &str, here: bool) -> Result<String> {
    if here || ["true", "false"].contains(&value) {
        return Ok(value.to_string());
    }
    std::fs::read_to_string(value).map_err(|e| Error::io(format!("{flag}: {value}: {e}")))
}
