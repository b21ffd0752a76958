//! Replies told apart: reasoning, text and calls, however the text is cut into tokens.

mod shared;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use lapis_lm::reply::{Format, Stop, Taken, call_grammar};
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

/// Calls as the data have them: name, arguments, id.
fn calls(parts: &[Part]) -> Vec<(String, Value, Option<String>)> {
    let mut calls = Vec::new();
    for part in parts {
        match part {
            Part::Call { index, id, name } => {
                assert_eq!(*index, calls.len());
                calls.push((name.clone(), String::new(), id.clone()));
            }
            Part::Arguments { index, json } => calls[*index].1.push_str(json),
            _ => {}
        }
    }
    let parse = |json: &str| serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"));
    calls.into_iter().map(|(name, json, id)| (name, parse(&json), id)).collect()
}

fn said(parts: &[Part]) -> String {
    parts.iter().filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None }).collect()
}

/// Whether two values are equal; numbers by value.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// The cases of `data/tool_calls.json`: format, its case, text, calls.
fn cases(check: impl Fn(&str, Case<'_>, &str, &[Value])) {
    let data: Value = serde_json::from_str(include_str!("data/tool_calls.json")).unwrap();
    let list = |v: &Value| v.as_array().unwrap().clone();
    for row in list(&data["cases"]) {
        let vocabulary = list(&row["vocabulary"]);
        let markers: Vec<&str> = vocabulary.iter().map(|v| v.as_str().unwrap()).collect();
        let options = ReplyOptions { tools: list(&data["tools"]), ..ReplyOptions::default() };
        let template = row["template"].as_str().unwrap();
        let case = Case { template, markers: &markers, options, ..case() };
        check(row["format"].as_str().unwrap(), case, row["text"].as_str().unwrap(), &list(&row["calls"]));
    }
}

/// What no marker begins stands at the beginning.
fn stands_alone(format: &str) -> bool {
    ["llama3", "harmony"].contains(&format)
}

#[test]
fn calls_of_every_format_are_what_the_model_wrote() {
    cases(|format, case, all, expected| {
        let around = [("", ""), ("Well: ", ""), ("Ça — \n", " So.")];
        for (before, after) in around.into_iter().take(if stands_alone(format) { 1 } else { 3 }) {
            // Mistral's markup has no end, so what comes after is of the last call.
            let whole = format!("{before}{all}{after}");
            let (parts, stopped, reply) = case.read(&whole);
            let read = calls(&parts);
            assert_eq!((read.len(), reply.calls(), stopped), (expected.len(), expected.len(), None), "{whole}");
            for (read, expected) in read.iter().zip(expected) {
                assert_eq!(read.0, expected["name"], "{whole}");
                assert!(same(&read.1, &expected["arguments"]), "{whole}: {} for {}", read.1, expected["arguments"]);
                let id = expected.get("id").map(|id| id.as_str().unwrap());
                assert_eq!(read.2.as_deref(), id, "{whole}");
            }
            assert_eq!(said(&parts), format!("{before}{after}"), "{whole}");
        }
        let single = Case { options: ReplyOptions { single_call: true, ..case.options.clone() }, ..case };
        let (parts, stopped, _) = single.read(all);
        assert_eq!((calls(&parts).len(), stopped), (1, Some(Stop::Call)), "{all}");
    });
}

#[test]
fn calls_of_functions_that_nobody_offered_are_text() {
    cases(|format, case, all, _| {
        let all = all.replace("weather", "whether").replace("clock", "cl0ck").replace("note", "n0te");
        let (parts, _, reply) = case.read(&all);
        assert_eq!(reply.calls(), 0);
        if format == "harmony" {
            let bare = |t: &str| ["<|call|>", "<|start|>assistant"].iter().fold(t.to_owned(), |t, m| t.replace(m, ""));
            assert_eq!(bare(&said(&parts)).replace("\n\n", ""), bare(&all).trim_start());
        } else {
            assert_eq!(parts, [text(&all)]);
        }
    });
}

#[test]
fn calls_cut_off_anywhere_lose_nothing() {
    cases(|_, case, all, _| {
        let tokenizer = tokenizer(case.template, case.markers, &[]);
        let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
        let whole = case.run(&tokenizer, &ids(all)).0;
        let json = |parts: &[Part], at: usize| -> String {
            let one = |p: &Part| match p {
                Part::Arguments { index, json } if *index == at => Some(json.clone()),
                _ => None,
            };
            parts.iter().filter_map(one).collect()
        };
        for (i, _) in all.char_indices().skip(1) {
            let cut = Case { finish: Finish::Length, options: case.options.clone(), ..case };
            let (parts, _, reply) = cut.run(&tokenizer, &ids(&all[..i]));
            // Either nothing of a call came, and all is text, or what came is the beginning of what comes.
            if reply.calls() == 0 {
                let text = said(&parts);
                assert!(text == all[..i] || all.starts_with("<|channel|>") || all.starts_with(" to="), "{text}");
            }
            for at in 0..reply.calls() {
                let (part, full) = (json(&parts, at), json(&whole, at));
                assert!(full.starts_with(&part) || part == "{}" || part.ends_with('}'), "{part} of {full}");
            }
        }
    });
}

/// Numbers from a counter.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }
}

#[test]
fn text_of_any_kind_loses_nothing() {
    let words = [
        "a",
        " ",
        "\n",
        "é",
        "日",
        "{",
        "}",
        "\"",
        "[",
        "]",
        ",",
        ":",
        "1",
        "f",
        "g",
        "<",
        ">",
        "</",
        "<tool_call>",
        "</tool_call>",
        "name",
        "arguments",
        "call:",
        "(",
        ")",
        "=",
        "<function=",
        "<parameter=",
        "</parameter>",
        "</function>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "<|tool_call>",
        "<|\"|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<invoke name=",
        "<minimax:tool_call>",
        "<|python_tag|>",
        "<|tool_call_start|>",
        "functions.",
        "<function name=",
        "<param name=",
        "<![CDATA[",
        "whether",
    ];
    let templates = [
        "<tool_call>",
        "<minimax:tool_call>",
        "<|tool_call> <tool_call|>",
        "<start_function_call>",
        "<arg_key>",
        "<|tool_call_start|>",
        "<tool_call>\n<function=",
        "<|tool_calls_section_begin|>",
        "<function name=\" <param name=\"",
        "[TOOL_CALLS]",
        "<atem:function_calls>",
        "<|python_tag|>",
        "<｜tool▁calls▁begin｜>",
        "｜DSML｜",
        "functools[",
        "<|tool_call|>",
        "<|START_ACTION|>",
        "no tools",
    ];
    let mut random = Random(7);
    for template in templates {
        let tokenizer = tokenizer(template, &THINK, &[]);
        // Nobody offered what these texts may call.
        let tools = vec![json!({"type": "function", "function": {"name": "nobody"}})];
        for _ in 0..200 {
            let all: String = (0..random.next(60)).map(|_| words[random.next(words.len())]).collect();
            let case = Case { options: ReplyOptions { tools: tools.clone(), ..ReplyOptions::default() }, ..case() };
            let ids: Vec<u32> = all.bytes().map(u32::from).collect();
            let (parts, stopped, reply) = case.run(&tokenizer, &ids);
            // Byte-level text begins without its space.
            let bare = all.strip_prefix(' ').unwrap_or(&all);
            assert_eq!((said(&parts), stopped, reply.calls()), (bare.to_owned(), None, 0), "{template}");
        }
        // Very long texts take no longer than they are.
        for word in words {
            let all = template.to_owned() + &word.repeat(60_000 / word.len());
            let mut reply =
                Reply::new(&tokenizer, &[], ReplyOptions { tools: tools.clone(), ..ReplyOptions::default() });
            let mut came = 0;
            let last = all.len() - 1;
            for (i, byte) in all.bytes().enumerate() {
                let parts = reply.add(byte.into(), (i == last).then_some(Finish::Length)).unwrap().parts;
                came += said(&parts).len();
            }
            assert_eq!(came, all.strip_prefix(' ').unwrap_or(&all).len(), "{template}: {word:?}");
        }
    }
}

#[test]
fn long_calls_are_read_as_they_come() {
    cases(|_, case, all, expected| {
        let long = "Zü <b> ".repeat(20_000);
        let all = all.replace("Zürich", &format!("Zürich{long}"));
        let tokenizer = tokenizer(case.template, case.markers, &[]);
        let ids: Vec<u32> = all.bytes().map(u32::from).collect();
        let read = calls(&case.run(&tokenizer, &ids).0);
        let city =
            |call: &Value| call["arguments"]["city"].as_str().unwrap_or("").replace("Zürich", &format!("Zürich{long}"));
        for (read, expected) in read.iter().zip(expected) {
            assert_eq!(read.1["city"].as_str().unwrap_or(""), city(expected));
        }
        assert_eq!(read.len(), expected.len());
    });
}

/// A text under a grammar, chosen by chance, with a liking for what ends things.
fn wander(tokenizer: &Tokenizer, grammar: &Grammar, random: &mut Random, end: u32) -> Vec<u32> {
    let eos = Arc::new(BTreeSet::from([end]));
    let mut constraint = grammar.constraint(&eos);
    let mut ids = Vec::new();
    for _ in 0..6000 {
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        constraint.restrict(&mut logits).unwrap();
        let open: Vec<u32> = (0..logits.len() as u32).filter(|&i| logits[i as usize] == 0.0).collect();
        let ends: Vec<u32> = open.iter().copied().filter(|&i| i >= 256 || b"<\"}])/e".contains(&(i as u8))).collect();
        let from = if ends.is_empty() || random.next(3) == 0 { &open } else { &ends };
        let id = from[random.next(from.len())];
        if id == end {
            return ids;
        }
        constraint.accept(id).unwrap();
        ids.push(id);
    }
    Vec::new()
}

#[test]
fn grammars_make_calls_that_are_read_as_such() {
    let properties = json!({
        "s": {"type": "string"}, "n": {"type": "integer"}, "b": {"type": "boolean"}, "e": {"enum": ["x y", "z"], "type": "string"},
        "o": {"type": "object", "properties": {"k": {"type": "boolean"}}, "additionalProperties": false},
    });
    let parameters =
        json!({"type": "object", "properties": properties, "required": ["s", "b"], "additionalProperties": false});
    let tools = vec![
        json!({"type": "function", "function": {"name": "make_it", "parameters": parameters}}),
        json!({"type": "function", "function": {"name": "stop"}}),
    ];
    let seen = RefCell::new(BTreeSet::new());
    cases(|_, case, _, _| {
        if !seen.borrow_mut().insert(case.template.to_owned()) {
            return;
        }
        let mut random = Random(3);
        let tokenizer = tokenizer(case.template, &[case.markers, &["<eos>"]].concat(), &[]);
        let format = Format::of(&tokenizer).unwrap();
        let end = tokenizer.token_id("<eos>").unwrap();
        let case = Case { options: ReplyOptions { tools: tools.clone(), ..case.options.clone() }, ..case };
        let mut finished = 0;
        for (named, single) in [(None, false), (None, true), (Some("make_it"), false)] {
            let grammar = call_grammar(&tokenizer, &tools, named, single).unwrap_or_else(|e| panic!("{format:?}: {e}"));
            for _ in 0..3 {
                let ids = wander(&tokenizer, &grammar, &mut random, end);
                if ids.is_empty() {
                    continue;
                }
                finished += 1;
                let text = String::from_utf8_lossy(&ids.iter().map(|&i| i as u8).collect::<Vec<u8>>()).into_owned();
                let (parts, _, reply) = case.run(&tokenizer, &ids);
                assert!(
                    reply.calls() > 0 && (reply.calls() == 1 || !single && named.is_none()),
                    "{format:?}: {text:?}, {parts:?}"
                );
                assert_eq!(said(&parts), "", "{format:?}: {text}");
                for (name, arguments, _) in calls(&parts) {
                    let good = |key: &str, ok: &dyn Fn(&Value) -> bool| arguments.get(key).is_none_or(ok);
                    assert!(name == "stop" || arguments.get("b").is_some_and(Value::is_boolean), "{format:?}: {text}");
                    // Where strings are text, some spell other values: so are these formats.
                    assert!(name == "stop" || arguments.get("s").is_some(), "{format:?}: {text}");
                    assert!(good("n", &|n| n.is_number()), "{format:?}: {text}");
                    assert!(good("e", &|e| e == "x y" || e == "z"), "{format:?}: {text}");
                    assert!(good("o", &Value::is_object), "{format:?}: {text}");
                    assert!(named.is_none_or(|named| named == name));
                }
            }
        }
        assert!(finished > 0, "{format:?}: no text has an end");
    });
}

/// A real tokenizer beside the repository.
fn real(name: &str) -> Option<Tokenizer> {
    let dir = shared(&format!("data/tokenizers/{name}"))?;
    let json = match std::fs::read(dir.join("tokenizer.json")) {
        Ok(json) => json,
        Err(_) => {
            let unpacked = Command::new("gzip").arg("-dc").arg(dir.join("tokenizer.json.gz")).output().unwrap();
            assert!(unpacked.status.success());
            unpacked.stdout
        }
    };
    let read = |file: &str| std::fs::read(dir.join(file)).ok();
    let mut config = read("tokenizer_config.json").map_or(json!({}), |c| serde_json::from_slice(&c).unwrap());
    if let Some(template) = read("chat_template.jinja") {
        config["chat_template"] = String::from_utf8(template).unwrap().into();
    }
    Some(Tokenizer::from_json(&json, config).unwrap())
}

#[test]
fn real_vocabularies_have_their_formats() {
    let arguments = r#"{"a": 1, "s": "é {x}"}"#;
    let think = "<think>\nhm\n</think>\n\n";
    let harmony = format!(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{arguments}"
    );
    let rows = [
        (
            "qwen3",
            Format::JsonTools,
            format!("{think}<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>"),
        ),
        ("gpt-oss", Format::Harmony, harmony),
        ("llama-3.2", Format::Llama3, format!("{{\"name\": \"f\", \"parameters\": {arguments}}}")),
        ("mistral-nemo", Format::Mistral, format!("[TOOL_CALLS] [{{\"name\": \"f\", \"arguments\": {arguments}}}]")),
        ("mistral-7b-v0.3", Format::Mistral, format!("[TOOL_CALLS] [{{\"name\": \"f\", \"arguments\": {arguments}}}]")),
        (
            "deepseek-v3",
            Format::DeepSeek,
            format!(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            ),
        ),
    ];
    for (name, format, all) in rows {
        let Some(tokenizer) = real(name) else { return };
        assert_eq!(Format::of(&tokenizer), Some(format), "{name}");
        let ids = tokenizer.encode(&all, false).unwrap();
        let prompt = tokenizer.encode("<|start|>assistant", false).unwrap();
        let mut reply = Reply::new(&tokenizer, &prompt, ReplyOptions { tools: tools(), ..ReplyOptions::default() });
        let mut taken: Vec<Taken> = ids.iter().map(|&id| reply.add(id, None).unwrap()).collect();
        taken.push(reply.add(0, Some(Finish::Stop)).unwrap());
        let (parts, _) = joined(taken);
        let thought = if reply.reasoning_tokens() > 0 { vec![reasoning("hm")] } else { Vec::new() };
        assert_eq!(thought.is_empty(), !["qwen3", "gpt-oss"].contains(&name));
        assert_eq!(parts, [thought, call(0, "f", arguments).to_vec()].concat(), "{name}");
        // And that is what its grammar allows.
        let grammar = call_grammar(&tokenizer, &tools(), None, true).unwrap();
        let eos = Arc::new(BTreeSet::from([tokenizer.eos_ids().first().copied().unwrap_or(2)]));
        let mut constraint = grammar.constraint(&eos);
        for id in ids {
            constraint.accept(id).unwrap_or_else(|e| panic!("{name}: {e} {:?}", tokenizer.token_text(id)));
        }
        constraint.accept(*eos.first().unwrap()).unwrap();
    }
}

#[test]
fn harmony_messages_are_told_apart() {
    let template = "<|channel|><|message|>";
    let c = Case { template, markers: &[], ..case() };
    let all = "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>analysis<|message|>two<|end|>\
               <|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>final\
               <|message|>It is ≥ 4.\n<|return|>";
    assert_eq!(c.parts(all), [reasoning("one\n\ntwo"), text("Let me see.\n\nIt is ≥ 4.\n")]);
    assert_eq!(c.parts("Hello <b>"), [text("Hello <b>")]);
    assert_eq!(c.parts("<|start|>assistant<|channel|>"), [text("<|start|>assistant<|channel|>")]);
    let unknown = "<|channel|>commentary to=browser.search code<|message|>{\"q\": 1}";
    assert_eq!(c.parts(unknown), [text(unknown)]);
    let prefilled = Case { prompt: "<|start|>assistant<|channel|>final<|message|>So", ..case() };
    let prefilled = Case { template, markers: &["<|start|>"], ..prefilled };
    assert_eq!(prefilled.parts(" it is"), [text("it is")]);
    // What the model's makers publish of it.
    let Some(file) = shared("data/conformance/openai-harmony/test-data/test_streamable_parser.txt") else { return };
    let Some(tokenizer) = real("gpt-oss") else { return };
    let all = std::fs::read_to_string(file).unwrap();
    let tools =
        vec![json!({"type": "function", "function": {"name": "browser.search", "parameters": {"type": "object"}}})];
    let mut reply = Reply::new(&tokenizer, &[], ReplyOptions { tools, ..ReplyOptions::default() });
    let ids = tokenizer.encode(&all, false).unwrap();
    let (parts, _) = joined(ids.iter().map(|&id| reply.add(id, None).unwrap()));
    let thought = all
        .split("<|message|>")
        .nth(1)
        .unwrap()
        .strip_suffix("<|end|><|start|>assistant<|channel|>commentary to=browser.search code")
        .unwrap();
    assert_eq!(parts[0], reasoning(thought));
    let query = r#"{"query": "current US president July 2025", "topn": 10, "source": "news"}"#;
    assert_eq!(parts[1..3], call(0, "browser.search", query));
    assert_eq!(said(&parts[3..]), "{\"result\": \"https://openai.com/\"}");
}
