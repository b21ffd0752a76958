//! The chat templates that a model comes with, by name. They are known from a few small files, or a GGUF file's notes: whether a model
//! can be talked to is said without its vocabulary and its weights.

use std::path::Path;

use lapis::{Error, Result};
use serde_json::{Map, Value};

use super::files;
use crate::gguf;
use crate::template::Template;

/// Chat templates in the order of their file; a broken one keeps its error until it is asked for.
#[derive(Clone)]
pub struct Templates(Vec<(String, Result<Template>)>);

impl Templates {
    /// Those of a checkpoint's folder or a GGUF file.
    ///
    /// # Errors
    /// `Io` when a file is unreadable or malformed.
    pub fn load(path: &Path) -> Result<Templates> {
        if gguf::is_gguf(path) {
            return Ok(Templates::of(gguf::templates(&gguf::Meta::open(path)?).as_ref()));
        }
        Ok(Templates::in_config(&files::config(path)?))
    }

    /// Those of a tokenizer's configuration.
    pub(super) fn in_config(config: &Map<String, Value>) -> Templates {
        Templates::of(config.get("chat_template"))
    }

    /// One text, or a list of named ones.
    fn of(value: Option<&Value>) -> Templates {
        Templates(match value {
            Some(Value::String(source)) => vec![("default".into(), Template::new(source))],
            Some(Value::Array(named)) => named
                .iter()
                .filter_map(|t| Some((t.get("name")?.as_str()?, t.get("template")?.as_str()?)))
                .map(|(name, source)| (name.to_owned(), Template::new(source)))
                .collect(),
            _ => Vec::new(),
        })
    }

    /// This one alone, for all conversations.
    pub(super) fn one(template: Template) -> Templates {
        Templates(vec![("default".into(), Ok(template))])
    }

    /// Whether there is a default template, though it may not parse.
    pub(super) fn has_default(&self) -> bool {
        self.0.iter().any(|(name, _)| name == "default")
    }

    /// The sources of all that parse.
    pub(super) fn sources(&self) -> Vec<&str> {
        self.0.iter().filter_map(|(_, t)| Some(t.as_ref().ok()?.source())).collect()
    }

    /// The template for a conversation with or without tools: `tool_use` where there are tools and the model has a template of that
    /// name, else `default`.
    ///
    /// # Errors
    /// `Io` with line and column when the template does not parse, `Unsupported` when there is none.
    pub fn get(&self, tools: bool) -> Result<&Template> {
        let named = |name: &str| self.0.iter().find(|t| t.0 == name);
        let found = if tools { named("tool_use").or_else(|| named("default")) } else { named("default") };
        match found {
            Some((_, Ok(template))) => Ok(template),
            Some((name, Err(e))) => Err(Error::io(format!(
                "[chat] the model's chat template `{name}` does not parse: {}; give another with --chat-template",
                e.message()
            ))),
            None => Err(Error::unsupported(
                "[chat] the model has no chat template: give one with --chat-template, or complete plain text",
            )),
        }
    }
}
