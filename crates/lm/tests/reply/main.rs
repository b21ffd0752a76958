//! Replies told apart: reasoning, text and calls, however the text is cut into tokens.

mod formats;
mod real;
#[path = "../shared/mod.rs"]
mod shared;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use lapis_lm::reply::{Format, Stop, Taken, call_grammar, call_or_answer, call_or_text};
use lapis_lm::tokenizer::Tokenizer;
use lapis_lm::{Finish, Grammar, Part, Reply, ReplyOptions};
use serde_json::{Map, Value, json};
use shared::shared;

/// How byte-level vocabularies spell bytes.
fn spelled(bytes: &[u8]) -> String {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=255).filter(|b| !printable(b)).collect();
    let one = |b: &u8| match others.iter().position(|o| o == b) {
        Some(i) => char::from_u32(0x100 + i as u32).unwrap(),
        None => char::from(*b),
    };
    bytes.iter().map(one).collect()
}

/// A model's words: the bytes, its markers, and pieces of a text.
fn tokenizer(template: &str, markers: &[&str], pieces: &[&[u8]]) -> Tokenizer {
    let mut vocabulary = Map::new();
    for byte in 0..=255u8 {
        vocabulary.insert(spelled(&[byte]), byte.into());
    }
    for word in markers.iter().map(|m| m.to_string()).chain(pieces.iter().map(|p| spelled(p))) {
        let id = vocabulary.len();
        vocabulary.entry(word).or_insert(id.into());
    }
    let special = |m: &&str| {
        json!({"id": vocabulary[*m], "content": m, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added: Vec<Value> = markers.iter().map(special).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = json!({
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "added_tokens": added,
    });
    let config = json!({"chat_template": template});
    Tokenizer::from_json(json.to_string().as_bytes(), config).unwrap()
}

const THINK: [&str; 2] = ["<think>", "</think>"];
const HERMES: &str = "<tool_call>";

fn tools() -> Vec<Value> {
    let function = |name: &str, properties: Value| {
        let parameters = json!({"type": "object", "properties": properties});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    vec![function("f", json!({"a": {"type": "integer"}, "s": {"type": "string"}})), function("g", json!({}))]
}

/// Parts without the borders between tokens.
fn joined(taken: impl IntoIterator<Item = Taken>) -> (Vec<Part>, Option<Stop>) {
    let (mut all, mut stopped) = (Vec::new(), None);
    for one in taken {
        assert!(stopped.is_none() || one.parts.is_empty(), "parts after the end");
        stopped = one.stopped.or(stopped);
        for part in one.parts {
            match (&part, all.last_mut()) {
                (Part::Text(t) | Part::Reasoning(t) | Part::Arguments { json: t, .. }, _) if t.is_empty() => {
                    panic!("an empty part")
                }
                (Part::Text(more), Some(Part::Text(text))) => text.push_str(more),
                (Part::Reasoning(more), Some(Part::Reasoning(text))) => text.push_str(more),
                (Part::Arguments { json: more, .. }, Some(Part::Arguments { json, .. })) => json.push_str(more),
                _ => all.push(part),
            }
        }
    }
    (all, stopped)
}

struct Case<'a> {
    template: &'a str,
    markers: &'a [&'a str],
    prompt: &'a str,
    options: ReplyOptions,
    finish: Finish,
}

fn case<'a>() -> Case<'a> {
    let options = ReplyOptions { tools: tools(), ..ReplyOptions::default() };
    Case { template: HERMES, markers: &THINK, prompt: "", options, finish: Finish::Stop }
}

impl Case<'_> {
    fn run(&self, tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<Part>, Option<Stop>, Reply) {
        let prompt: Vec<u32> = match tokenizer.token_id(self.prompt) {
            Some(marker) => vec![marker],
            None => self.prompt.bytes().map(u32::from).collect(),
        };
        let mut reply = Reply::new(tokenizer, &prompt, self.options.clone());
        // The end: a token that is not part of the text, or the last one of it.
        let ids = match self.finish {
            Finish::Stop => [ids, &[0]].concat(),
            Finish::Length => ids.to_vec(),
        };
        let finish = |i: usize| (i + 1 == ids.len()).then_some(self.finish);
        let all: Vec<Taken> = ids.iter().enumerate().map(|(i, &id)| reply.add(id, finish(i)).unwrap()).collect();
        let (parts, stopped) = joined(all);
        (parts, stopped, reply)
    }

    /// The reply, which is the same byte by byte, in one piece, and in any two.
    fn read(&self, text: &str) -> (Vec<Part>, Option<Stop>, Reply) {
        let pieces: Vec<&[u8]> = (1..=text.len())
            .flat_map(|i| [&text.as_bytes()[..i], &text.as_bytes()[i..]])
            .filter(|p| !p.is_empty())
            .collect();
        let tokenizer = tokenizer(self.template, self.markers, &pieces);
        let id = |piece: &[u8]| tokenizer.token_id(&spelled(piece)).unwrap();
        let whole = self.run(&tokenizer, &[id(text.as_bytes())]);
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        let single = self.run(&tokenizer, &bytes);
        assert_eq!((&whole.0, &whole.1), (&single.0, &single.1), "byte by byte: {text:?}");
        for i in 1..text.len() {
            let (a, b) = text.as_bytes().split_at(i);
            let two = self.run(&tokenizer, &[id(a), id(b)]);
            assert_eq!((&whole.0, &whole.1), (&two.0, &two.1), "{i} of {text:?}");
        }
        whole
    }

    fn parts(&self, text: &str) -> Vec<Part> {
        self.read(text).0
    }
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

fn reasoning(text: &str) -> Part {
    Part::Reasoning(text.into())
}

fn call(index: usize, name: &str, json: &str) -> [Part; 2] {
    [Part::Call { index, id: None, name: name.into() }, Part::Arguments { index, json: json.into() }]
}

#[test]
fn reasoning_is_told_from_text() {
    let c = case();
    assert_eq!(c.parts("<think>\nhm, ≥ 2\n\n</think>\n\nYes."), [reasoning("hm, ≥ 2"), text("Yes.")]);
    assert_eq!(c.parts("Well <think>a</think>b"), [text("Well "), reasoning("a"), text("b")]);
    assert_eq!(c.parts("<think>\n\n</think>\n\nNo"), [text("No")]);
    assert_eq!(c.parts("<thin</think"), [text("<thin</think")]);
    assert_eq!(c.parts("<think>never\nends\n"), [reasoning("never\nends")]);
    let open = Case { prompt: "<think>", ..case() };
    assert_eq!(open.parts("\nso\nit is\n</think>\n\n42"), [reasoning("so\nit is"), text("42")]);
    let raw = Case { options: ReplyOptions { raw: true, ..c.options.clone() }, ..case() };
    let all = "<think>\na</think>\n<tool_call>{\"name\": \"f\"}</tool_call>";
    assert_eq!(raw.parts(all), [text(all)]);
}

#[test]
fn stop_texts_are_found_in_text_alone() {
    let stop = ["STOP", "STO", "\n\n", "€€"].map(String::from).to_vec();
    let c = Case { options: ReplyOptions { stop, ..case().options }, ..case() };
    let (parts, stopped, _) = c.read("<think>STOP\n\n.</think>go STOPPED");
    assert_eq!(parts, [reasoning("STOP\n\n."), text("go ")]);
    assert_eq!(stopped, Some(Stop::Text("STOP".into())));
    assert_eq!(c.parts("a ST€ STX€"), [text("a ST€ STX€")]);
    assert_eq!(c.parts("a €€ b"), [text("a ")]);
    assert_eq!(c.parts("a ST"), [text("a ST")]);
    let inside = r#"{"s": "STOP\n\n"}"#;
    let all = format!("S<tool_call>{{\"name\": \"f\", \"arguments\": {inside}}}</tool_call>");
    assert_eq!(c.parts(&all), [&[text("S")][..], &call(0, "f", inside)].concat());
}

#[test]
fn nothing_is_held_back_but_what_may_be_a_marker() {
    let tokenizer = tokenizer(HERMES, &THINK, &[]);
    let mut reply = Reply::new(&tokenizer, &[], ReplyOptions { tools: tools(), ..ReplyOptions::default() });
    let mut at = |byte: u8| reply.add(byte.into(), None).unwrap().parts;
    assert_eq!(at(b'a'), [text("a")]);
    assert_eq!(at(b'<'), []);
    assert_eq!(at(b't'), []);
    assert_eq!(at(b'a'), [text("<ta")]);
    for byte in b"<tool_call>\n{\"name\": \"f\", \"arguments\": " {
        assert_eq!(at(*byte), []);
    }
    let begun = at(b'{');
    assert_eq!(begun, call(0, "f", "{"));
    assert_eq!(at(b'"'), [call(0, "f", "\"")[1].clone()]);
}

#[test]
fn hermes_calls() {
    let c = case();
    let one = |s: &str| format!("<tool_call>\n{s}\n</tool_call>");
    let f = r#"{"name": "f", "arguments": {"a": 1, "s": "x}\"é"}}"#;
    let f_arguments = r#"{"a": 1, "s": "x}\"é"}"#;
    assert_eq!(c.parts(&one(f)), call(0, "f", f_arguments));
    let several = format!("Let me see.\n{}\n{}\n", one(f), one(r#"{"arguments": {}, "name": "g"}"#));
    let (parts, stopped, reply) = c.read(&several);
    let said = [text("Let me see.\n")];
    assert_eq!(parts, [&said[..], &call(0, "f", f_arguments), &call(1, "g", "{}")].concat());
    assert_eq!((stopped, reply.calls()), (None, 2));
    let single = Case { options: ReplyOptions { single_call: true, ..c.options.clone() }, ..case() };
    let (parts, stopped, _) = single.read(&several);
    assert_eq!(parts, [&said[..], &call(0, "f", f_arguments)].concat());
    assert_eq!(stopped, Some(Stop::Call));
    // Arguments as a text, no arguments, another word for them, and text after a call.
    assert_eq!(c.parts(&one(r#"{"name": "f", "arguments": "{\"a\": 2}"}"#)), call(0, "f", r#"{"a": 2}"#));
    assert_eq!(c.parts(&one(r#"{"name": "g"}"#)), call(0, "g", "{}"));
    let after = one(r#"{"name": "f", "parameters": {"a": 3}}"#) + " so";
    assert_eq!(c.parts(&after), [&call(0, "f", r#"{"a": 3}"#)[..], &[text(" so")]].concat());
    // A newline inside a string becomes JSON; a brace that is missing does not matter.
    let lenient = "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"a\nb\"}</tool_call>";
    assert_eq!(c.parts(lenient), call(0, "f", "{\"s\": \"a\\nb\"}"));
}

#[test]
fn what_is_no_call_is_text() {
    let c = case();
    let deep = format!("{{\"name\": \"f\", \"arguments\": {}1{}}}", "{\"a\":".repeat(70), "}".repeat(70));
    for inside in [
        r#"{"name": "unknown", "arguments": {}}"#,
        r#"{"name": "f", "arguments": 3}"#,
        r#"{"name": "f", "arguments": [1]}"#,
        r#"{"nam": "f"}"#,
        r#"{"name": 3}"#,
        "[]",
        "",
        "hello",
        "{\"name\": \"f\" \"arguments\": {}}",
        "<tool_call>",
    ] {
        let all = format!("so <tool_call>{inside}</tool_call> é");
        let (parts, _, reply) = c.read(&all);
        assert_eq!((parts, reply.calls()), (vec![text(&all)], 0));
    }
    // What was given out cannot be taken back: the call does not count, and the rest is text.
    let (parts, _, reply) = c.read(r#"<tool_call>{"name": "f", "arguments": {"a": x}}</tool_call>"#);
    assert_eq!(parts, [&call(0, "f", "{\"a\": ")[..], &[text("x}}</tool_call>")]].concat());
    assert_eq!(reply.calls(), 0);
    let (parts, _, reply) = c.read(&format!("<tool_call>{deep}</tool_call>"));
    assert_eq!(reply.calls(), 0);
    assert!(matches!(parts.last(), Some(Part::Text(t)) if t.ends_with("</tool_call>")));
    // Without tools nobody calls.
    let nobody = Case { options: ReplyOptions::default(), ..case() };
    let all = r#"<tool_call>{"name": "f", "arguments": {}}</tool_call>"#;
    assert_eq!(nobody.parts(all), [text(all)]);
}

#[test]
fn calls_that_came_out_as_text_are_counted() {
    let tokenizer = tokenizer(HERMES, &["<tool_call>", "</tool_call>"], &[]);
    let count = |text: &str, finish: Finish| {
        let options = ReplyOptions { tools: tools(), ..ReplyOptions::default() };
        let mut reply = Reply::new(&tokenizer, &[], options);
        let tokens = tokenizer.encode(text, false).unwrap();
        for (i, &token) in tokens.iter().enumerate() {
            reply.add(token, (finish == Finish::Length && i + 1 == tokens.len()).then_some(finish)).unwrap();
        }
        if finish == Finish::Stop {
            reply.add(0, Some(finish)).unwrap();
        }
        (reply.calls(), reply.unread_calls())
    };
    let good = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    let other = "<tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>";
    for (text, finish, want) in [
        ("no call, {\"name\": 1}", Finish::Stop, (0, 0)),
        (good, Finish::Stop, (1, 0)),
        (other, Finish::Stop, (0, 1)),
        (&format!("{good}\n{other} and {other}"), Finish::Stop, (1, 2)),
        ("<tool_call>what?</tool_call>", Finish::Stop, (0, 1)),
        ("<tool_call>{\"na", Finish::Length, (0, 0)),
        ("<tool_call>{\"na", Finish::Stop, (0, 1)),
        ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ?", Finish::Stop, (0, 1)),
    ] {
        assert_eq!(count(text, finish), want, "{text}");
    }
}

#[test]
fn calls_that_are_cut_off_stay_as_they_are() {
    let c = Case { finish: Finish::Length, ..case() };
    let (parts, _, reply) = c.read(r#"<tool_call>{"name": "f", "arguments": {"s": "so lo"#);
    assert_eq!(parts, call(0, "f", "{\"s\": \"so lo"));
    assert_eq!(reply.calls(), 1);
    assert_eq!(c.parts("<tool_call>{\"name\": \"f"), [text("<tool_call>{\"name\": \"f")]);
    assert_eq!(c.parts("ok <tool_c"), [text("ok <tool_c")]);
}
