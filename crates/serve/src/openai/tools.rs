//! Tools as OpenAI's clients offer them: functions, the older `functions`, and which of them is to be called.

use crate::error::ApiError;
use crate::fields::Body;
use crate::service::{Ask, ToolChoice};
use serde_json::{Value, json};

/// Tools at most.
pub(crate) const TOOLS: usize = 512;

/// The name of a tool.
pub(crate) fn name(tool: &Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

fn check(tools: &[Value]) -> Result<(), ApiError> {
    let wrong = |what: String| ApiError::field("tools", what);
    if tools.len() > TOOLS {
        return Err(wrong(format!("there are {} tools; {TOOLS} are taken", tools.len())));
    }
    for (i, tool) in tools.iter().enumerate() {
        let kind = tool.get("type").and_then(Value::as_str);
        if kind != Some("function") {
            return Err(wrong(format!("tools[{i}].type must be \"function\"")));
        }
        let known = name(tool).is_some_and(|n| !n.is_empty() && n.len() <= 256);
        if !known {
            return Err(wrong(format!("tools[{i}].function.name is missing, empty or longer than 256 bytes")));
        }
        let parameters = tool["function"].get("parameters");
        if parameters.is_some_and(|p| !p.is_object() && !p.is_null()) {
            return Err(wrong(format!("tools[{i}].function.parameters must be a JSON schema")));
        }
    }
    Ok(())
}

/// Puts the tools of a body into what is asked for.
///
/// # Errors
/// Tools that are none; a choice of a tool that is not there.
pub(crate) fn read(body: &Body, ask: &mut Ask) -> Result<(), ApiError> {
    let list = |name: &str| body.get(name).and_then(Value::as_array).cloned();
    let older =
        list("functions").map(|all| all.into_iter().map(|f| json!({"type": "function", "function": f})).collect());
    ask.tools = list("tools").or(older).unwrap_or_default();
    check(&ask.tools)?;
    ask.single_call = body.flag("parallel_tool_calls") == Some(false);
    match (body.get("tool_choice"), body.get("function_call")) {
        (Some(choice), _) => choose(ask, "tool_choice", choice),
        (None, Some(choice)) => {
            ask.single_call = true;
            choose(ask, "function_call", choice)
        }
        (None, None) => Ok(()),
    }
}

/// Puts a choice among the tools that are asked for into what is asked for.
///
/// # Errors
/// No choice, or one that these tools do not leave.
pub(crate) fn choose(ask: &mut Ask, param: &str, choice: &Value) -> Result<(), ApiError> {
    let wrong = |what: String| ApiError::field(param, format!("{param} {what}"));
    let named = |choice: &Value| {
        let inner = choice.get("function").unwrap_or(choice).get("name").and_then(Value::as_str);
        inner.map(str::to_string)
    };
    // Anthropic's clients write {"type": "auto"}, and gateways pass it on.
    let kind = choice.get("type").and_then(Value::as_str);
    let word = choice.as_str().or(kind.filter(|k| matches!(*k, "auto" | "none" | "required" | "any")));
    ask.tool_choice = match (word, kind) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::None,
        (Some("required" | "any"), _) => ToolChoice::Required,
        (Some(other), _) => {
            return Err(wrong(format!("is {:?}; auto, none, required or a function is taken", short(other))));
        }
        (None, Some("allowed_tools")) => return allowed(choice, ask),
        (None, _) => ToolChoice::Named(named(choice).ok_or_else(|| wrong("names no function".into()))?),
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
    let names: Vec<&str> =
        tools.iter().filter_map(|t| t.get("function").unwrap_or(t).get("name").and_then(Value::as_str)).collect();
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
