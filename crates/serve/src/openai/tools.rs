//! Tools as a chat's clients offer them: functions, custom tools, the older `functions`, and which is to be called.

use super::custom;
use crate::error::ApiError;
use crate::fields::Body;
use crate::service::{Ask, ToolChoice};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Tools at most.
pub(crate) const TOOLS: usize = 512;

/// The name of a tool.
pub(crate) fn name(tool: &Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

fn wrong(what: String) -> ApiError {
    ApiError::field("tools", what)
}

fn check(at: &str, kind: &str, tool: &Value) -> Result<String, ApiError> {
    let inner = tool.get(kind).unwrap_or(&Value::Null);
    let name = inner.get("name").and_then(Value::as_str).filter(|n| !n.is_empty() && n.len() <= 256);
    let name = name.ok_or_else(|| wrong(format!("{at}.{kind}.name is missing, empty or longer than 256 bytes")))?;
    let parameters = inner.get("parameters").filter(|_| kind == "function");
    if parameters.is_some_and(|p| !p.is_object() && !p.is_null()) {
        return Err(wrong(format!("{at}.function.parameters must be a JSON schema")));
    }
    Ok(name.to_string())
}

/// Puts tools into what is asked for, as functions; the names of those that are custom tools.
fn offer(tools: Vec<Value>, ask: &mut Ask) -> Result<HashSet<String>, ApiError> {
    if tools.len() > TOOLS {
        return Err(wrong(format!("there are {} tools; {TOOLS} are taken", tools.len())));
    }
    let (mut functions, mut customs) = (HashSet::new(), HashSet::new());
    for (i, tool) in tools.into_iter().enumerate() {
        let at = format!("tools[{i}]");
        let tool = match tool.get("type").and_then(Value::as_str) {
            Some("function") => {
                functions.insert(check(&at, "function", &tool)?);
                tool
            }
            Some("custom") => {
                let name = check(&at, "custom", &tool)?;
                let (function, grammar) = custom::function(&name, &tool["custom"], &format!("{at}.custom"))?;
                ask.grammars.extend(grammar.map(|grammar| (name.clone(), grammar)));
                if !customs.insert(name) {
                    return Err(wrong(format!("{at}.custom.name is that of another tool")));
                }
                json!({"type": "function", "function": function})
            }
            _ => return Err(wrong(format!("{at}.type must be \"function\" or \"custom\""))),
        };
        ask.tools.push(tool);
    }
    match customs.intersection(&functions).next() {
        Some(name) => Err(wrong(format!("tools has a function and a custom tool of the name {:?}", short(name)))),
        None => Ok(customs),
    }
}

/// Puts the tools of a body into what is asked for; the names of those that are custom tools.
///
/// # Errors
/// Tools that are none; a choice of a tool that is not there.
pub(crate) fn read(body: &Body, ask: &mut Ask) -> Result<HashSet<String>, ApiError> {
    let list = |name: &str| body.get(name).and_then(Value::as_array).cloned();
    let older =
        list("functions").map(|all| all.into_iter().map(|f| json!({"type": "function", "function": f})).collect());
    let customs = offer(list("tools").or(older).unwrap_or_default(), ask)?;
    ask.single_call = body.flag("parallel_tool_calls") == Some(false);
    match (body.get("tool_choice"), body.get("function_call")) {
        (Some(choice), _) => choose(ask, "tool_choice", choice)?,
        (None, Some(choice)) => {
            ask.single_call = true;
            choose(ask, "function_call", choice)?;
        }
        (None, None) => {}
    }
    Ok(customs)
}

/// The name of the tool that a choice is of.
fn chosen(choice: &Value) -> Option<&str> {
    let inner = choice.get("function").or(choice.get("custom")).unwrap_or(choice);
    inner.get("name")?.as_str()
}

/// Puts a choice among the tools that are asked for into what is asked for.
///
/// # Errors
/// No choice, or one that these tools do not leave.
pub(crate) fn choose(ask: &mut Ask, param: &str, choice: &Value) -> Result<(), ApiError> {
    let wrong = |what: String| ApiError::field(param, format!("{param} {what}"));
    // Anthropic's clients write {"type": "auto"}, and gateways pass it on.
    let kind = choice.get("type").and_then(Value::as_str);
    let word = choice.as_str().or(kind.filter(|k| matches!(*k, "auto" | "none" | "required" | "any")));
    ask.tool_choice = match (word, kind) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::None,
        (Some("required" | "any"), _) => ToolChoice::Required,
        (Some(other), _) => {
            return Err(wrong(format!("is {:?}; auto, none, required or a tool is taken", short(other))));
        }
        (None, Some("allowed_tools")) => return allowed(choice, ask),
        (None, _) => ToolChoice::Named(chosen(choice).ok_or_else(|| wrong("names no tool".into()))?.to_string()),
    };
    possible(ask, param)
}

/// Whether there are the tools that must be called.
///
/// # Errors
/// There are not.
pub(crate) fn possible(ask: &Ask, param: &str) -> Result<(), ApiError> {
    let wrong = |what: String| Err(ApiError::field(param, format!("{param} {what}")));
    match &ask.tool_choice {
        ToolChoice::Named(wanted) if !ask.tools.iter().any(|t| name(t) == Some(wanted)) => {
            wrong(format!("names {:?}, which is not among the tools", short(wanted)))
        }
        ToolChoice::Required if ask.tools.is_empty() => wrong("asks for a call, and there are no tools".into()),
        _ => Ok(()),
    }
}

/// A choice among some of the tools.
fn allowed(choice: &Value, ask: &mut Ask) -> Result<(), ApiError> {
    let inner = choice.get("allowed_tools").unwrap_or(choice);
    let wrong = |what: &str| ApiError::field("tool_choice", format!("tool_choice.allowed_tools {what}"));
    let tools = inner.get("tools").and_then(Value::as_array).ok_or_else(|| wrong("has no tools"))?;
    let names: Vec<&str> = tools.iter().filter_map(chosen).collect();
    ask.tools.retain(|t| name(t).is_some_and(|n| names.contains(&n)));
    if ask.tools.is_empty() {
        return Err(wrong("names none of the tools"));
    }
    ask.tool_choice = match inner.get("mode").and_then(Value::as_str) {
        Some("required") => ToolChoice::Required,
        None | Some("auto") => ToolChoice::Auto,
        Some(_) => return Err(wrong("has a mode that is neither auto nor required")),
    };
    Ok(())
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}
