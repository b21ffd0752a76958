//! What comes out of a reply: parts, up to the first stop text.

use serde_json::{Map, Value};

use super::input::{Found, Input};
use super::{Part, Stop, Taken};

/// The tools that were offered.
pub(super) struct Tools(Map<String, Value>);

impl Tools {
    pub(super) fn new(tools: &[Value]) -> Tools {
        let one = |tool: &Value| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?.to_owned();
            Some((name, function.get("parameters").cloned().unwrap_or(Value::Null)))
        };
        Tools(tools.iter().filter_map(one).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The schema of a parameter.
    pub(super) fn parameter(&self, name: &str, parameter: &str) -> Option<&Value> {
        self.0.get(name)?.get("properties")?.get(parameter)
    }
}

/// Where the parts go.
pub(super) struct Out {
    pub(super) tools: Tools,
    parts: Vec<Part>,
    stop: Vec<String>,
    /// Text in which stop texts are looked for.
    text: Input,
    single: bool,
    stopped: Option<Stop>,
    /// Calls begun.
    begun: usize,
    /// Calls that broke after they had begun.
    broken: usize,
    /// Calls that were text before they had begun.
    unread: usize,
    /// A call has begun and not ended.
    open: bool,
}

impl Out {
    pub(super) fn new(tools: Tools, stop: Vec<String>, single: bool) -> Out {
        let stop = stop.into_iter().filter(|s| !s.is_empty()).collect();
        let (parts, text) = (Vec::new(), Input::default());
        Out { tools, parts, stop, text, single, stopped: None, begun: 0, broken: 0, unread: 0, open: false }
    }

    /// What has come, and whether the reply is over.
    pub(super) fn take(&mut self) -> Taken {
        Taken { parts: std::mem::take(&mut self.parts), stopped: self.stopped.clone() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.stopped.is_some()
    }

    pub(super) fn calls(&self) -> usize {
        self.begun - self.broken
    }

    /// A call comes out as text.
    pub(super) fn refuse_call(&mut self) {
        self.unread += 1;
    }

    pub(super) fn unread(&self) -> usize {
        self.unread + self.broken
    }

    pub(super) fn in_call(&self) -> bool {
        self.open
    }

    pub(super) fn text(&mut self, text: &str) {
        if self.stopped.is_some() || text.is_empty() {
            return;
        }
        if self.stop.is_empty() {
            return self.put_text(text);
        }
        self.text.push(text);
        self.seek();
    }

    fn seek(&mut self) {
        let found = self.text.search(&self.stop);
        let (Found::At(bytes, _) | Found::None(bytes)) = found;
        let text = self.text.rest()[..bytes].to_owned();
        self.text.pass(bytes);
        self.put_text(&text);
        if let Found::At(_, which) = found {
            self.stopped = Some(Stop::Text(self.stop[which].clone()));
        }
    }

    fn put_text(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Text(all)) => all.push_str(text),
            _ => self.parts.push(Part::Text(text.to_owned())),
        }
    }

    /// What may be the beginning of a stop text comes out: no text follows, or not at once.
    pub(super) fn flush(&mut self) {
        if self.stopped.is_some() || self.text.rest().is_empty() {
            return;
        }
        self.text.last = Some(crate::engine::Finish::Stop);
        self.seek();
        self.text.last = None;
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        self.flush();
        match self.parts.last_mut() {
            _ if text.is_empty() || self.stopped.is_some() => {}
            Some(Part::Reasoning(all)) => all.push_str(text),
            _ => self.parts.push(Part::Reasoning(text.to_owned())),
        }
    }

    /// A call begins.
    pub(super) fn call(&mut self, id: Option<String>, name: &str) {
        self.flush();
        if self.stopped.is_none() {
            self.parts.push(Part::Call { index: self.begun, id, name: name.to_owned() });
            self.begun += 1;
            self.open = true;
        }
    }

    /// More of the arguments of the call that is open.
    pub(super) fn arguments(&mut self, more: &str) {
        match self.parts.last_mut() {
            _ if more.is_empty() || !self.open => {}
            Some(Part::Arguments { json, .. }) => json.push_str(more),
            _ => self.parts.push(Part::Arguments { index: self.begun - 1, json: more.to_owned() }),
        }
    }

    /// The call has ended.
    pub(super) fn end_call(&mut self) {
        if std::mem::take(&mut self.open) && self.single {
            self.stopped = Some(Stop::Call);
        }
    }

    /// The call that is open cannot be read on.
    pub(super) fn break_call(&mut self) {
        self.broken += usize::from(std::mem::take(&mut self.open));
    }

    /// A whole call.
    pub(super) fn whole_call(&mut self, id: Option<String>, name: &str, arguments: &str) {
        self.call(id, name);
        self.arguments(arguments);
        self.end_call();
    }
}
