//! `truncation: auto`: the oldest turns are left out of a conversation that is longer than the context.

use crate::error::ApiError;
use crate::service::{Ask, Prompt, Service, blocking};
use serde_json::Value;
use std::sync::Arc;

fn role(message: &Value) -> &str {
    message["role"].as_str().unwrap_or("")
}

fn instructs(message: &Value) -> bool {
    matches!(role(message), "system" | "developer")
}

/// Where turns begin: at messages of the user that follow something else. Instructions belong to no turn.
fn turns(messages: &[Value]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut before = "";
    for (at, message) in messages.iter().enumerate().filter(|(_, m)| !instructs(m)) {
        if starts.is_empty() || (role(message) == "user" && before != "user") {
            starts.push(at);
        }
        before = role(message);
    }
    starts
}

/// The conversation from some place on, with all instructions.
fn from(messages: &[Value], start: usize) -> Vec<Value> {
    messages.iter().enumerate().filter(|(at, m)| *at >= start || instructs(m)).map(|(_, m)| m.clone()).collect()
}

/// Leaves out as few of the oldest turns as make room for the prompt and its reply: as much as is asked for, up to half
/// of the context; where nothing is said, an eighth. How many messages are left out comes with it. The last turn stays.
///
/// # Errors
/// No such model; a template that refuses the messages.
pub(crate) async fn fit(service: &Arc<Service>, mut ask: Ask) -> Result<(Ask, usize), ApiError> {
    let loaded = service.loaded(&ask).await?;
    let service = Arc::clone(service);
    blocking(move || {
        let context = loaded.context;
        let spare = ask.max_tokens.unwrap_or(context / 8).min(context / 2).max(1);
        let Some(Prompt::Chat { messages, .. }) = &ask.prompt else { return Ok((ask, 0)) };
        let all = messages.as_array().cloned().unwrap_or_default();
        let starts = turns(&all);
        let keep = |ask: &mut Ask, start: usize| {
            if let Some(Prompt::Chat { messages, .. }) = &mut ask.prompt {
                *messages = from(&all, start).into();
            }
        };
        let fits = |ask: &Ask| Ok::<_, ApiError>(service.prompt(&loaded, ask)?.len() + spare <= context);
        if starts.len() < 2 || fits(&ask)? {
            return Ok((ask, 0));
        }
        // The first that fits is above `low`, which does not, and at most `high`.
        let (mut low, mut high) = (0, starts.len() - 1);
        while high - low > 1 {
            let middle = (low + high) / 2;
            keep(&mut ask, starts[middle]);
            *(if fits(&ask)? { &mut high } else { &mut low }) = middle;
        }
        keep(&mut ask, starts[high]);
        let dropped = all[..starts[high]].iter().filter(|m| !instructs(m)).count();
        Ok((ask, dropped))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn turns_begin_with_the_user_and_instructions_stay() {
        let all: Vec<Value> = ["system", "user", "user", "assistant", "tool", "developer", "user", "assistant"]
            .iter()
            .map(|role| json!({"role": role, "content": ""}))
            .collect();
        assert_eq!(turns(&all), [1, 6]);
        let kept: Vec<String> = from(&all, 6).iter().map(|m| role(m).to_string()).collect();
        assert_eq!(kept, ["system", "developer", "user", "assistant"]);
        assert!(turns(&[]).is_empty());
    }
}
