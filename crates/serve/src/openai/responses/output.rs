//! Items of a response's output as they grow, and the events that tell of it.
//!
//! One item is open at a time; what the model says next either goes on with it or closes it. Whole answers take the
//! items and streams the events, so that both say the same.

use super::offered::Offered;
use crate::job::{Ending, Scored};
use crate::openai::{custom, scores};
use crate::reply::Spoken;
use crate::service::{Ticket, unique};
use lapis_lm::reply::Part;
use serde_json::{Value, json};

/// What an item is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    Call,
    Custom,
}

/// An item that is not over.
struct Open {
    kind: Kind,
    id: String,
    /// As it was begun.
    item: Value,
    /// Text, arguments or input so far.
    text: String,
    input: custom::Input,
    /// Log-probabilities of its text.
    scored: Vec<Value>,
}

/// The items of a response.
pub(crate) struct Output {
    /// Those that are over.
    pub items: Vec<Value>,
    offered: Offered,
    summary: bool,
    scores: bool,
    open: Option<Open>,
    /// Tokens whose text has not come out yet.
    pending: Vec<Scored>,
}

impl Output {
    /// No items yet. Reasoning comes as a `summary` too, texts with `scores`.
    pub(crate) fn new(offered: Offered, summary: bool, scores: bool) -> Output {
        Output { items: Vec::new(), offered, summary, scores, open: None, pending: Vec::new() }
    }

    /// Takes in what came with a token, of a reply that says `spoken` by now; the events of it.
    pub(crate) fn hear(&mut self, parts: &[Part], spoken: &Spoken, scored: &Scored, ticket: &Ticket) -> Vec<Value> {
        let mut out = Vec::new();
        if self.scores {
            match parts.iter().any(|p| !matches!(p, Part::Text(_))) {
                true => self.pending.clear(),
                false => self.pending.push(scored.clone()),
            }
        }
        for part in parts {
            match part {
                Part::Text(text) => {
                    self.begin(Kind::Message, &mut out);
                    let scored = scores::chat(&ticket.model.model.tokenizer, &std::mem::take(&mut self.pending));
                    self.say("response.output_text.delta", text, json!({"logprobs": scored["content"]}), &mut out);
                    if let (Some(open), Value::Array(scored)) = (&mut self.open, &scored["content"]) {
                        open.scored.extend(scored.iter().cloned());
                    }
                }
                Part::Reasoning(text) => {
                    self.begin(Kind::Reasoning, &mut out);
                    self.say("response.reasoning_text.delta", text, json!({}), &mut out);
                    if self.summary {
                        let event = json!({"summary_index": 0, "delta": text});
                        out.push(self.event("response.reasoning_summary_text.delta", event));
                    }
                }
                Part::Call { index, .. } => {
                    let Some(call) = spoken.calls.get(*index) else { continue };
                    self.close(false, &mut out);
                    self.call(&call.id, &call.name, &mut out);
                }
                Part::Arguments { json, .. } => match self.open.as_mut().map(|o| o.kind) {
                    Some(Kind::Custom) => {
                        let fresh = self.open.as_mut().map_or(String::new(), |o| o.input.add(json));
                        if !fresh.is_empty() {
                            self.say("response.custom_tool_call_input.delta", &fresh, json!({}), &mut out);
                        }
                    }
                    _ => self.say("response.function_call_arguments.delta", json, json!({}), &mut out),
                },
            }
        }
        out
    }

    /// Ends it all; the last events.
    pub(crate) fn end(&mut self, spoken: &Spoken) -> Vec<Value> {
        let mut out = Vec::new();
        if self.items.is_empty() && self.open.is_none() {
            self.begin(Kind::Message, &mut out);
        }
        self.close(spoken.ending == Some(Ending::Length), &mut out);
        out
    }

    /// An event about the open item.
    fn event(&self, kind: &str, more: Value) -> Value {
        let id = self.open.as_ref().map_or("", |o| o.id.as_str());
        let mut event = json!({"type": kind, "item_id": id, "output_index": self.items.len()});
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        event
    }

    /// The open item goes on.
    fn say(&mut self, kind: &str, delta: &str, mut more: Value, out: &mut Vec<Value>) {
        let Some(open) = &mut self.open else { return };
        open.text.push_str(delta);
        more["delta"] = json!(delta);
        if matches!(open.kind, Kind::Message | Kind::Reasoning) {
            more["content_index"] = json!(0);
        }
        out.push(self.event(kind, more));
    }

    fn add(&mut self, kind: Kind, item: Value, out: &mut Vec<Value>) {
        out.push(json!({"type": "response.output_item.added", "output_index": self.items.len(), "item": item}));
        let id = item["id"].as_str().unwrap_or("").to_string();
        self.open =
            Some(Open { kind, id, item, text: String::new(), input: custom::Input::default(), scored: Vec::new() });
    }

    /// Has a message, or reasoning, open.
    fn begin(&mut self, kind: Kind, out: &mut Vec<Value>) {
        if self.open.as_ref().is_some_and(|o| o.kind == kind) {
            return;
        }
        self.close(false, out);
        let (item, part) = match kind {
            Kind::Reasoning => (
                json!({"id": unique("rs_"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}),
                json!({"type": "reasoning_text", "text": ""}),
            ),
            _ => (
                json!({"id": unique("msg_"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}),
                json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []}),
            ),
        };
        self.add(kind, item, out);
        out.push(self.event("response.content_part.added", json!({"content_index": 0, "part": part})));
        if kind == Kind::Reasoning && self.summary {
            let part = json!({"type": "summary_text", "text": ""});
            let event = json!({"summary_index": 0, "part": part});
            out.push(self.event("response.reasoning_summary_part.added", event));
        }
    }

    fn call(&mut self, id: &str, known: &str, out: &mut Vec<Value>) {
        let origin = self.offered.origin(known);
        let custom = origin.is_some_and(|o| o.custom);
        let name = origin.map_or(known, |o| &o.name);
        let (kind, mut item) = match custom {
            true => (Kind::Custom, json!({"id": unique("ctc_"), "type": "custom_tool_call", "input": ""})),
            false => (Kind::Call, json!({"id": unique("fc_"), "type": "function_call", "arguments": ""})),
        };
        (item["call_id"], item["name"], item["status"]) = (json!(id), json!(name), json!("in_progress"));
        if let Some(namespace) = origin.and_then(|o| o.namespace.as_ref()) {
            item["namespace"] = json!(namespace);
        }
        self.add(kind, item, out);
    }

    /// Ends the open item, if any.
    fn close(&mut self, cut: bool, out: &mut Vec<Value>) {
        if self.open.as_ref().is_some_and(|o| o.kind == Kind::Custom) {
            let rest = self.open.as_ref().map_or(String::new(), |o| o.input.rest());
            if !rest.is_empty() {
                self.say("response.custom_tool_call_input.delta", &rest, json!({}), out);
            }
        }
        let Some(open) = &mut self.open else { return };
        let (kind, text, scored) = (open.kind, std::mem::take(&mut open.text), std::mem::take(&mut open.scored));
        let mut item = std::mem::take(&mut open.item);
        item["status"] = json!(if cut { "incomplete" } else { "completed" });
        match kind {
            Kind::Message => {
                let mut part = json!({"type": "output_text", "text": text, "annotations": []});
                if self.scores {
                    part["logprobs"] = json!(scored);
                }
                let done = json!({"content_index": 0, "text": text, "logprobs": scored});
                out.push(self.event("response.output_text.done", done));
                out.push(self.event("response.content_part.done", json!({"content_index": 0, "part": part})));
                item["content"] = json!([part]);
            }
            Kind::Reasoning => {
                let part = json!({"type": "reasoning_text", "text": text});
                out.push(self.event("response.reasoning_text.done", json!({"content_index": 0, "text": text})));
                out.push(self.event("response.content_part.done", json!({"content_index": 0, "part": part})));
                item["content"] = json!([part]);
                if self.summary {
                    let part = json!({"type": "summary_text", "text": text});
                    let done = json!({"summary_index": 0, "text": text});
                    out.push(self.event("response.reasoning_summary_text.done", done));
                    let done = json!({"summary_index": 0, "part": part});
                    out.push(self.event("response.reasoning_summary_part.done", done));
                    item["summary"] = json!([part]);
                }
            }
            Kind::Call => {
                let done = json!({"arguments": text, "name": item["name"]});
                out.push(self.event("response.function_call_arguments.done", done));
                item["arguments"] = json!(text);
            }
            Kind::Custom => {
                out.push(self.event("response.custom_tool_call_input.done", json!({"input": text})));
                item["input"] = json!(text);
            }
        }
        self.open = None;
        out.push(json!({"type": "response.output_item.done", "output_index": self.items.len(), "item": item}));
        self.items.push(item);
    }
}
