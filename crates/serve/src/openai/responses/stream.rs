//! A response as events: numbered, each with its type as its name, the last with the whole response.

use super::output::Output;
use super::own;
use super::shape::{Shape, code};
use crate::error::{ApiError, Dialect};
use crate::http::answer::{self, Events, Gone};
use crate::job::Update;
use crate::reply::Replies;
use crate::service::Ticket;
use serde_json::{Value, json};

/// Writes a stream.
pub(crate) struct Writer {
    shape: Shape,
    output: Output,
    replies: Replies,
    id: String,
    number: u64,
}

impl Writer {
    /// Of the request `id`.
    pub(crate) fn new(shape: Shape, output: Output, replies: Replies, id: String) -> Writer {
        Writer { shape, output, replies, id, number: 0 }
    }

    async fn send(&mut self, events: &Events, mut value: Value) -> Result<(), Gone> {
        value["sequence_number"] = json!(self.number);
        self.number += 1;
        let name = value["type"].as_str().unwrap_or("error").to_string();
        events.send(answer::event(Some(&name), &value.to_string())).await
    }

    async fn fail(&mut self, events: &Events, error: ApiError) -> Result<(), Gone> {
        let error = own(error);
        let body = error.body(Dialect::OpenAi, &self.id);
        let message = body["error"]["message"].as_str().unwrap_or("");
        let event = json!({"type": "error", "code": code(&error), "message": message, "param": error.param});
        self.send(events, event).await?;
        let failed = self.shape.failed(&self.output, &error, message);
        self.send(events, json!({"type": "response.failed", "response": failed})).await
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// The client has gone.
    pub(crate) async fn write(mut self, mut ticket: Ticket, events: Events) -> Result<(), Gone> {
        for kind in ["response.created", "response.in_progress"] {
            let begun = self.shape.begun();
            self.send(&events, json!({"type": kind, "response": begun})).await?;
        }
        let (mut done, total) = (0, ticket.prompt.len());
        while !self.replies.are_over() {
            let beat = || format!(": keepalive {done}/{total}\n\n").into();
            let update = match events.during(ticket.next(), beat).await? {
                Ok(update) => update,
                Err(error) => return self.fail(&events, error).await,
            };
            self.replies.hear(&update);
            match update {
                Update::Progress { done: read, .. } => done = read,
                Update::Said { parts, scored, .. } => {
                    for event in self.output.hear(&parts, &self.replies.all[0], &scored, &ticket) {
                        self.send(&events, event).await?;
                    }
                }
                _ => {}
            }
        }
        ticket.finished();
        for event in self.output.end(&self.replies.all[0]) {
            self.send(&events, event).await?;
        }
        let response = self.shape.over(&self.output, &self.replies, &ticket);
        let kind = format!("response.{}", response["status"].as_str().unwrap_or("completed"));
        self.send(&events, json!({"type": kind, "response": response})).await
    }
}
