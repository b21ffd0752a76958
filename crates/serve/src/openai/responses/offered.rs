//! Tools of a response: functions, custom tools and namespaces of both, as the functions that models know.

use crate::error::ApiError;
use crate::openai::custom;
use crate::openai::tools::TOOLS;
use crate::service::InputGrammar;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// What a function that the model knows is for the client.
pub(crate) struct Origin {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub namespace: Option<String>,
    /// Its input is a text.
    pub custom: bool,
}

/// The tools of a request.
#[derive(Default)]
pub(crate) struct Offered {
    /// As a chat offers them.
    pub tools: Vec<Value>,
    /// What inputs of custom tools are held to, by the name that the model knows.
    pub grammars: BTreeMap<String, InputGrammar>,
    origins: HashMap<String, Origin>,
}

fn wrong(at: &str, what: &str) -> ApiError {
    ApiError { param: Some("tools".into()), ..ApiError::new(400, format!("{at} {what}")) }
}

fn text<'a>(tool: &'a Value, key: &str) -> Option<&'a str> {
    tool.get(key).and_then(Value::as_str)
}

/// The name of a function for the model, which knows no namespaces.
fn flat(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        None => name.to_string(),
        Some(space) if space.ends_with("__") => format!("{space}{name}"),
        Some(space) => format!("{space}__{name}"),
    }
}

impl Offered {
    /// The tools of a body. What runs elsewhere is left out, with a warning.
    ///
    /// # Errors
    /// Functions without names; parameters that are no schema.
    pub(crate) fn read(tools: &[Value], warnings: &mut Vec<String>) -> Result<Offered, ApiError> {
        let mut offered = Offered::default();
        for (i, tool) in tools.iter().enumerate() {
            let at = format!("tools[{i}]");
            if text(tool, "type") != Some("namespace") {
                offered.add(None, tool, &at, warnings)?;
                continue;
            }
            let space = text(tool, "name").filter(|n| !n.is_empty()).ok_or_else(|| wrong(&at, "has no name"))?;
            let inner = tool.get("tools").and_then(Value::as_array).ok_or_else(|| wrong(&at, "has no tools"))?;
            for (k, one) in inner.iter().enumerate() {
                offered.add(Some(space), one, &format!("{at}.tools[{k}]"), warnings)?;
            }
        }
        match offered.tools.len() {
            0..=TOOLS => Ok(offered),
            many => Err(wrong("tools", &format!("holds {many} functions; {TOOLS} are taken"))),
        }
    }

    fn add(
        &mut self,
        namespace: Option<&str>,
        tool: &Value,
        at: &str,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let kind = text(tool, "type").ok_or_else(|| wrong(at, "has no type"))?;
        if !matches!(kind, "function" | "custom") {
            warnings.push(format!("the tool {} was left out", kind.escape_default()));
            return Ok(());
        }
        let name = text(tool, "name").filter(|n| !n.is_empty() && n.len() <= 256);
        let name = name.ok_or_else(|| wrong(at, "has no name, or one that is empty or longer than 256 bytes"))?;
        let custom = kind == "custom";
        let known = flat(namespace, name);
        if self.origins.contains_key(&known) {
            warnings.push(format!("{at}: a second tool of its name was left out"));
            return Ok(());
        }
        let function = if custom {
            let (function, grammar) = custom::function(&known, tool, at)?;
            self.grammars.extend(grammar.map(|grammar| (known.clone(), grammar)));
            function
        } else {
            let parameters = match tool.get("parameters") {
                None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
                Some(schema @ Value::Object(_)) => schema.clone(),
                Some(_) => return Err(wrong(at, "has parameters that are no JSON schema")),
            };
            let about = text(tool, "description").unwrap_or("").trim();
            let mut function = json!({"name": known, "description": about, "parameters": parameters});
            if tool.get("strict") == Some(&json!(true)) {
                function["strict"] = json!(true);
            }
            function
        };
        self.tools.push(json!({"type": "function", "function": function}));
        self.origins.insert(known, Origin { name: name.into(), namespace: namespace.map(str::to_string), custom });
        Ok(())
    }

    /// What the model's function is for the client.
    pub(crate) fn origin(&self, known: &str) -> Option<&Origin> {
        self.origins.get(known)
    }

    /// What the model knows the client's function as.
    pub(crate) fn known(&self, namespace: Option<&str>, name: &str) -> String {
        let exact = flat(namespace, name);
        if namespace.is_some() || self.origins.contains_key(&exact) {
            return exact;
        }
        let inside = self.origins.iter().filter(|(_, o)| o.name == name).map(|(known, _)| known).min();
        inside.cloned().unwrap_or(exact)
    }

    /// A choice of tools in the names that the model knows.
    pub(crate) fn choice(&self, choice: &Value) -> Value {
        let mut choice = choice.clone();
        let rename = |tool: &mut Value| {
            if let Some(name) = text(tool, "name") {
                tool["name"] = json!(self.known(text(tool, "namespace"), name));
            }
        };
        if choice.is_object() {
            rename(&mut choice);
        }
        if let Some(tools) = choice.get_mut("tools").and_then(Value::as_array_mut) {
            tools.iter_mut().filter(|t| t.is_object()).for_each(rename);
        }
        choice
    }
}
