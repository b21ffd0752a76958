//! Calls in every format: as models write them, cut off, at random, and as grammars make them.

use super::*;

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

pub(super) fn said(parts: &[Part]) -> String {
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
    let data: Value = serde_json::from_str(include_str!("../data/tool_calls.json")).unwrap();
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
            let all = template.to_owned() + &word.repeat(12_000 / word.len());
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
fn wander(tokenizer: &Tokenizer, grammar: &Grammar, random: &mut Random, end: u32, most: usize) -> Vec<u32> {
    let eos = Arc::new(BTreeSet::from([end]));
    let mut constraint = grammar.constraint(&eos);
    let mut ids = Vec::new();
    for _ in 0..most {
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
                let ids = wander(&tokenizer, &grammar, &mut random, end, 6000);
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

/// A short text under a grammar.
fn written(tokenizer: &Tokenizer, grammar: &Grammar, random: &mut Random, end: u32) -> String {
    let ids = (0..100).map(|_| wander(tokenizer, grammar, random, end, 300)).find(|ids| !ids.is_empty());
    tokenizer.decode(&ids.expect("no text has an end"), false).unwrap()
}

/// Whether a text is one of a grammar, to its end.
fn takes(grammar: &Grammar, tokenizer: &Tokenizer, end: u32, text: &str) -> bool {
    let mut constraint = grammar.constraint(&Arc::new(BTreeSet::from([end])));
    let ids = tokenizer.encode(text, false).unwrap();
    ids.into_iter().chain([end]).all(|id| {
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        let open = constraint.restrict(&mut logits).is_ok() && logits[id as usize] == 0.0;
        open && constraint.accept(id).is_ok()
    })
}

#[test]
fn inputs_are_of_their_tools_grammars() {
    let parameters = json!({
        "type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], "additionalProperties": false,
    });
    // With what JSON escapes.
    let grammar = r#"
        start: step~1..2 END
        step: ("+" | "\\") WORD LF -> line
        WORD: /[a-c"\\]{1,3}/
        END: ".\t."
        %import common.LF
    "#;
    let tools =
        vec![json!({"type": "function", "function": {"name": "patch", "parameters": parameters, "grammar": grammar}})];
    let step = |line: &str| {
        let word = line.strip_prefix(['+', '\\']).unwrap_or_default();
        (1..=3).contains(&word.len()) && word.chars().all(|c| "abc\"\\".contains(c))
    };
    let good = |input: &str| {
        let lines: Vec<&str> = input.split('\n').collect();
        let (end, steps) = lines.split_last().unwrap();
        *end == ".\t." && (1..=2).contains(&steps.len()) && steps.iter().all(|line| step(line))
    };
    let seen = RefCell::new(BTreeSet::new());
    cases(|_, case, _, _| {
        if !seen.borrow_mut().insert(case.template.to_owned()) {
            return;
        }
        let mut random = Random(11);
        let tokenizer = tokenizer(case.template, &[case.markers, &["<eos>"]].concat(), &[]);
        let format = Format::of(&tokenizer).unwrap();
        let end = tokenizer.token_id("<eos>").unwrap();
        let case = Case { options: ReplyOptions { tools: tools.clone(), ..case.options.clone() }, ..case };
        let forced = call_grammar(&tokenizer, &tools, None, true).unwrap_or_else(|e| panic!("{format:?}: {e}"));
        let free = call_or_text(&tokenizer, &tools, true).unwrap().unwrap();
        let answer = json!({"type": "json_object"});
        let both = call_or_answer(&tokenizer, &tools, true, &answer).unwrap().unwrap();
        for _ in 0..4 {
            let text = written(&tokenizer, &forced, &mut random, end);
            assert!(takes(&free, &tokenizer, end, &text) && takes(&both, &tokenizer, end, &text), "{format:?}: {text}");
            let (parts, ..) = case.run(&tokenizer, &tokenizer.encode(&text, false).unwrap());
            let inputs: Vec<Value> =
                calls(&parts).into_iter().map(|(_, arguments, _)| arguments["input"].clone()).collect();
            assert!(matches!(&inputs[..], [Value::String(input)] if good(input)), "{format:?}: {text:?}: {inputs:?}");
        }
    });
    assert_eq!(seen.borrow().len(), 24);
}

#[test]
fn calls_and_answers_of_a_format_are_both_free() {
    let parameters = json!({
        "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false,
    });
    let tools = vec![json!({"type": "function", "function": {"name": "make_it", "parameters": parameters}})];
    let schema = json!({
        "type": "object", "properties": {"name": {"type": "boolean"}}, "required": ["name"], "additionalProperties": false,
    });
    let formats = [
        (json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}), "{\"name\": true}"),
        (json!({"type": "json_object"}), "{\"name\": {\"k\": []}}"),
        (json!({"type": "regex", "regex": "[a-c]{3}"}), "abc"),
        (json!({"type": "grammar", "grammar": "start: \"x\" start | \"y\""}), "xxy"),
    ];
    let seen = RefCell::new(BTreeSet::new());
    cases(|_, case, _, _| {
        if !seen.borrow_mut().insert(case.template.to_owned()) {
            return;
        }
        let mut random = Random(5);
        let tokenizer = tokenizer(case.template, &[case.markers, &["<eos>"]].concat(), &[]);
        let format = Format::of(&tokenizer).unwrap();
        let end = tokenizer.token_id("<eos>").unwrap();
        let case = Case { options: ReplyOptions { tools: tools.clone(), ..case.options.clone() }, ..case };
        let forced = call_grammar(&tokenizer, &tools, None, true).unwrap();
        for (response_format, answer) in &formats {
            let both = call_or_answer(&tokenizer, &tools, true, response_format).unwrap().unwrap();
            let answer = match format {
                Format::Harmony => format!("<|channel|>final<|message|>{answer}"),
                _ => answer.to_string(),
            };
            assert!(takes(&both, &tokenizer, end, &answer), "{format:?}: {answer}");
            assert!(!takes(&both, &tokenizer, end, &format!("{answer}!")), "{format:?}: {answer}");
            assert!(!takes(&both, &tokenizer, end, "Well"), "{format:?}");
            let (parts, _, reply) = case.run(&tokenizer, &tokenizer.encode(&answer, false).unwrap());
            let bare = answer.trim_start_matches("<|channel|>final<|message|>");
            assert_eq!((said(&parts).as_str(), reply.calls()), (bare, 0), "{format:?}");
            let call = written(&tokenizer, &forced, &mut random, end);
            assert!(takes(&both, &tokenizer, end, &call), "{format:?}: {call}");
            assert!(!takes(&both, &tokenizer, end, &(call + &answer)), "{format:?}");
        }
        assert!(call_or_answer(&tokenizer, &tools, true, &json!({"type": "text"})).unwrap().is_none());
    });
    assert_eq!(seen.borrow().len(), 24);
}

#[test]
fn free_text_may_be_followed_by_calls_that_are_valid() {
    let parameters = json!({
        "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false,
    });
    let tool =
        |parameters: &Value| json!({"type": "function", "function": {"name": "make_it", "parameters": parameters}});
    let (tools, others) = (
        vec![tool(&parameters)],
        vec![tool(&json!({
            "type": "object", "properties": {"n": {"enum": [3, 4]}}, "required": ["n"], "additionalProperties": false,
        }))],
    );
    let seen = RefCell::new(BTreeSet::new());
    cases(|name, case, _, _| {
        if !seen.borrow_mut().insert(case.template.to_owned()) {
            return;
        }
        let mut random = Random(9);
        let tokenizer = tokenizer(case.template, &[case.markers, &["<eos>"]].concat(), &[]);
        let format = Format::of(&tokenizer).unwrap();
        let end = tokenizer.token_id("<eos>").unwrap();
        let free = call_or_text(&tokenizer, &tools, true).unwrap().unwrap();
        let head = if format == Format::Harmony { "<|channel|>final<|message|>" } else { "" };
        for text in ["Well", "Zürich <b> [1] (2)\n\n日", ""] {
            assert!(takes(&free, &tokenizer, end, &format!("{head}{text}")), "{format:?}: {text}");
        }
        for (offered, valid) in [(&tools, true), (&others, false)] {
            let forced = call_grammar(&tokenizer, offered, None, true).unwrap();
            let call = written(&tokenizer, &forced, &mut random, end);
            for before in ["", "Well: "].into_iter().take(if stands_alone(name) { 1 } else { 2 }) {
                let all = format!("{before}{call}");
                assert!(takes(&free, &tokenizer, end, &all) == valid, "{format:?}: {all}");
            }
        }
    });
}
