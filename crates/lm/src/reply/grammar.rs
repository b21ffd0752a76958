//! Grammars of replies that call tools, in each model's own markup.

use std::collections::HashMap;
use std::fmt::Write;

use lapis::{Error, Result};
use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

use super::format::Format;
use crate::grammar::{ANSWER, Answer, Grammar};
use crate::tokenizer::Tokenizer;

/// How calls are written. `$f` is the function, `$k` a parameter, `$n` a number of the model's choice.
struct Writing {
    /// Before all calls, between two, after all.
    calls: [&'static str; 3],
    /// Before a call's arguments, and after.
    call: [&'static str; 2],
    arguments: Arguments,
}

enum Arguments {
    /// A JSON object.
    Json,
    /// A JSON object, and so is the call around it, however it is spaced.
    Whole,
    /// One parameter after the other.
    Each {
        /// Before a value that is text, and after.
        text: [&'static str; 2],
        /// Before a value that is JSON, and after.
        json: [&'static str; 2],
        /// Between two parameters.
        between: &'static str,
        /// Which values are text.
        texts: Texts,
    },
}

/// Which values are written as text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Texts {
    /// Those that may be strings.
    MayBe,
    /// Those that are strings.
    Only,
    /// None.
    None,
}

const fn objects(calls: [&'static str; 3], call: [&'static str; 2]) -> Writing {
    Writing { calls, call, arguments: Arguments::Json }
}

const fn tags(
    calls: [&'static str; 3],
    call: [&'static str; 2],
    text: [&'static str; 2],
    json: [&'static str; 2],
    texts: Texts,
) -> Writing {
    Writing { calls, call, arguments: Arguments::Each { text, json, between: "", texts } }
}

const fn listed(
    calls: [&'static str; 3],
    call: [&'static str; 2],
    text: [&'static str; 2],
    json: &'static str,
) -> Writing {
    let arguments = Arguments::Each { text, json: [json, ""], between: ",", texts: Texts::Only };
    Writing { calls, call, arguments }
}

impl Writing {
    fn of(format: Format, tokenizer: &Tokenizer) -> Writing {
        let has = |word: &str| tokenizer.token_id(word).is_some();
        let shows = |text: &str| tokenizer.template_sources().iter().any(|t| t.contains(text));
        let named = ["{\"name\": \"$f\", \"arguments\": ", "}"];
        match format {
            Format::JsonTools => objects(["<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"], named),
            Format::Llama3 => objects(["", "; ", ""], ["{\"name\": \"$f\", \"parameters\": ", "}"]),
            Format::Phi4 if !has("<|tool_call|>") => objects(["functools[", ", ", "]"], named),
            Format::Phi4 => objects(["<|tool_call|>[", ", ", "]<|/tool_call|>"], named),
            Format::Granite => objects(["<|tool_call|>[", ", ", "]"], named),
            Format::CommandR if has("<|START_ACTION|>") => objects(
                ["<|START_ACTION|>[\n    ", ",\n    ", "\n]<|END_ACTION|>"],
                ["{\"tool_call_id\": \"$n\", \"tool_name\": \"$f\", \"parameters\": ", "}"],
            ),
            Format::CommandR => objects(
                ["Action: ```json\n[\n    ", ",\n    ", "\n]\n```"],
                ["{\"tool_name\": \"$f\", \"parameters\": ", "}"],
            ),
            Format::Mistral if has("[ARGS]") => objects(["", "", ""], ["[TOOL_CALLS]$f[ARGS]", ""]),
            Format::Mistral => objects(["[TOOL_CALLS] [", ", ", "]"], named),
            Format::KimiK2 => objects(
                ["<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>"],
                ["<|tool_call_begin|>functions.$f:$n<|tool_call_argument_begin|>", "<|tool_call_end|>"],
            ),
            Format::DeepSeek if shows("```json") => objects(
                ["<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>"],
                ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>$f\n```json\n", "\n```<｜tool▁call▁end｜>"],
            ),
            Format::DeepSeek => objects(
                ["<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>"],
                ["<｜tool▁call▁begin｜>$f<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
            ),
            // A token that ends replies ends the call.
            Format::Harmony => {
                objects(["<|channel|>commentary to=functions.", "", ""], ["$f <|constrain|>json<|message|>", ""])
            }
            Format::MinimaxM2 => tags(
                ["<minimax:tool_call>\n", "\n", "\n</minimax:tool_call>"],
                ["<invoke name=\"$f\">\n", "</invoke>"],
                ["<parameter name=\"$k\">", "</parameter>\n"],
                ["<parameter name=\"$k\">", "</parameter>\n"],
                Texts::MayBe,
            ),
            Format::Qwen3Coder => tags(
                ["<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"],
                ["<function=$f>\n", "</function>"],
                ["<parameter=$k>\n", "\n</parameter>\n"],
                ["<parameter=$k>\n", "\n</parameter>\n"],
                Texts::MayBe,
            ),
            Format::Minicpm5 => tags(
                ["", "\n", ""],
                ["<function name=\"$f\">", "</function>"],
                ["<param name=\"$k\">", "</param>"],
                ["<param name=\"$k\">", "</param>"],
                Texts::MayBe,
            ),
            Format::MuseSpark => tags(
                ["<atem:function_calls>\n", "\n", "\n</atem:function_calls>"],
                ["<atem:invoke name=\"$f\">\n", "</atem:invoke>"],
                ["<atem:parameter name=\"$k\">", "</atem:parameter>\n"],
                ["<atem:parameter name=\"$k\">", "</atem:parameter>\n"],
                Texts::Only,
            ),
            Format::KimiK3 => tags(
                ["<|open|>tools<|sep|>", "", "<|close|>tools<|sep|>"],
                ["<|open|>call tool=\"$f\" index=\"$n\"<|sep|>", "<|close|>call<|sep|>"],
                ["<|open|>argument key=\"$k\" type=\"string\"<|sep|>", "<|close|>argument<|sep|>"],
                ["<|open|>argument key=\"$k\" type=\"object\"<|sep|>", "<|close|>argument<|sep|>"],
                Texts::Only,
            ),
            Format::DeepSeekV32 => tags(
                ["<｜DSML｜function_calls>\n", "", "</｜DSML｜function_calls>"],
                ["<｜DSML｜invoke name=\"$f\">\n", "</｜DSML｜invoke>\n"],
                ["<｜DSML｜parameter name=\"$k\" string=\"true\">", "</｜DSML｜parameter>\n"],
                ["<｜DSML｜parameter name=\"$k\" string=\"false\">", "</｜DSML｜parameter>\n"],
                Texts::Only,
            ),
            Format::Glm47 => tags(
                ["<tool_call>", "</tool_call>\n<tool_call>", "</tool_call>"],
                ["$f\n", ""],
                ["<arg_key>$k</arg_key>\n<arg_value>", "</arg_value>\n"],
                ["<arg_key>$k</arg_key>\n<arg_value>", "</arg_value>\n"],
                Texts::Only,
            ),
            Format::Longcat => objects(
                ["<longcat_tool_call>", "</longcat_tool_call>\n<longcat_tool_call>", "</longcat_tool_call>"],
                named,
            ),
            Format::Gemma4 => listed(
                ["<|tool_call>", "<tool_call|><|tool_call>", "<tool_call|>"],
                ["call:$f{", "}"],
                ["$k:<|\"|>", "<|\"|>"],
                "$k:",
            ),
            Format::FunctionGemma => listed(
                ["<start_function_call>", "<end_function_call><start_function_call>", "<end_function_call>"],
                ["call:$f{", "}"],
                ["$k:<escape>", "<escape>"],
                "$k:",
            ),
            Format::Pythonic => Writing {
                calls: ["<|tool_call_start|>[", ", ", "]<|tool_call_end|>"],
                call: ["$f(", ")"],
                arguments: Arguments::Each { text: ["", ""], json: ["$k=", ""], between: ", ", texts: Texts::None },
            },
        }
    }
}

/// A grammar of replies that call tools: at least one of them, or exactly the one that is `named`; in the model's own
/// markup ([`Format`]), with arguments of each tool's schema. Where the model can think it may do so first; it says
/// nothing else.
///
/// In formats where parameters are text, those whose schema allows strings are free text, or one of the schema's `enum`.
/// A function with a `grammar` (in Lark's syntax) has one parameter, a string that is a text of that grammar.
///
/// # Errors
/// `Unsupported` for a model that is not known to call tools and for schemas that grammars cannot say (as
/// [`Grammar::json_schema`]); `Value` for no tools, or none of that name.
pub fn call_grammar(tokenizer: &Tokenizer, tools: &[Value], named: Option<&str>, single: bool) -> Result<Grammar> {
    let Some(format) = Format::of(tokenizer) else {
        return Err(Error::unsupported("[tools] the model is not known to call tools: its markup is not known"));
    };
    let mut lark = Lark::new(tokenizer);
    let writing = Writing::of(format, tokenizer);
    let single = single || named.is_some() || format == Format::Harmony;
    let calls = lark.calls(&writing, &functions(tools, named)?, single)?;
    let thinking = lark.thinking(format, tokenizer);
    Grammar::made(tokenizer, format!("start: {thinking} {calls}\n{}", lark.rules), lark.parts)
}

/// A grammar of replies that call tools, as [`call_grammar`], or are the answer that a `response_format` asks for
/// ([`Grammar::from_response_format`]). None where the format is free text.
///
/// # Errors
/// Those of both.
pub fn call_or_answer(
    tokenizer: &Tokenizer,
    tools: &[Value],
    single: bool,
    response_format: &Value,
) -> Result<Option<Grammar>> {
    // What is wrong with the answer alone is told as ever.
    let alone = Grammar::from_response_format(tokenizer, response_format)?;
    let (Some(format), Some(answer)) = (Format::of(tokenizer), Answer::of(response_format)?) else {
        return Ok(alone);
    };
    let mut lark = Lark::new(tokenizer);
    let mut writing = Writing::of(format, tokenizer);
    if format == Format::Llama3 {
        // Answers may begin as calls do.
        writing.arguments = Arguments::Whole;
    }
    let calls = lark.calls(&writing, &functions(tools, None)?, single || format == Format::Harmony)?;
    let thinking = lark.thinking(format, tokenizer);
    let has = |word: &str| tokenizer.token_id(word).is_some();
    let wrapped = match format {
        Format::Harmony => {
            let [begin, json, body] = ["<|channel|>final", " <|constrain|>json", "<|message|>"].map(|t| lark.text(t));
            format!("{begin} ({json})? {body} @{ANSWER}")
        }
        Format::CommandR if has("<|START_RESPONSE|>") => {
            let [begin, end] = ["<|START_RESPONSE|>", "<|END_RESPONSE|>"].map(|t| lark.text(t));
            format!("@{ANSWER} | {begin} @{ANSWER} {end}")
        }
        Format::KimiK3 => {
            let [begin, end] = ["<|open|>response<|sep|>", "<|close|>response<|sep|>"].map(|t| lark.text(t));
            format!("@{ANSWER} | {begin} @{ANSWER} {end}")
        }
        _ => format!("@{ANSWER}"),
    };
    let [calls, wrapped] = [calls, wrapped].map(|body| lark.rule(&body));
    let grammar = format!("start: {thinking} ({calls} | {wrapped})\n{}", lark.rules);
    Grammar::made(tokenizer, grammar, lark.parts.into_iter().chain([answer.part()?])).map(Some)
}

/// A grammar of replies that are free text, and may then call tools, as [`call_grammar`]: arguments are of each tool's schema,
/// and what begins as a call is one. None for a model whose markup is not known.
///
/// # Errors
/// As [`call_grammar`].
pub fn call_or_text(tokenizer: &Tokenizer, tools: &[Value], single: bool) -> Result<Option<Grammar>> {
    let Some(format) = Format::of(tokenizer) else { return Ok(None) };
    let mut lark = Lark::new(tokenizer);
    let mut writing = Writing::of(format, tokenizer);
    let functions = functions(tools, None)?;
    let single = single || format == Format::Harmony;
    let said = match format {
        Format::Harmony => {
            let calls = lark.calls(&writing, &functions, single)?;
            let told = lark.until("<|end|>");
            let [begin, body, next] = ["<|channel|>", "<|message|>", "<|start|>assistant"].map(|t| lark.text(t));
            format!(
                "({begin} /analysis|commentary/ {body} {told} {next})* ({calls} | {begin} \"final\" {body} /(?s:.*)/)"
            )
        }
        Format::Llama3 => {
            writing.arguments = Arguments::Whole;
            let calls = lark.calls(&writing, &functions, single)?;
            // A brace at the beginning begins a call.
            let free = lark.free(tokenizer, format.begins(), "/\\s*\\{(?s:.*)/");
            let python = lark.text("<|python_tag|>");
            let begin = if python.starts_with("<[") { format!("({python})?") } else { String::new() };
            format!("{} ({begin} {calls} | {free})", lark.thinking(format, tokenizer))
        }
        _ => {
            let thinking = lark.thinking(format, tokenizer);
            let whole = [writing.calls[0], writing.call[0]].concat();
            let marker = format.begins().iter().find(|m| whole.starts_with(**m)).copied().unwrap_or_default();
            let free = lark.free(tokenizer, format.begins(), "");
            if lark.text(marker).starts_with("<[") || marker.is_empty() {
                let calls = lark.calls(&writing, &functions, single)?;
                format!("{thinking} {free} ({calls})?")
            } else {
                // Of a marker that is text, the text before it ends with it.
                let mut after = Writing::of(format, tokenizer);
                match (after.calls[0].strip_prefix(marker), after.call[0].strip_prefix(marker)) {
                    (Some(rest), _) => after.calls[0] = rest,
                    (None, Some(rest)) => after.call[0] = rest,
                    (None, None) => return Ok(None),
                }
                let others: Vec<&str> = format.begins().iter().copied().filter(|m| *m != marker).collect();
                let body = lark.without(&others, "");
                let before = lark.attributed(&format!("[suffix={}]", Value::from(marker)), &body);
                let first = lark.call_of(&after, &functions)?;
                let next = lark.call_of(&writing, &functions)?;
                let ([begin, ..], [_, between, end]) =
                    (after.calls.map(|text| lark.text(text)), writing.calls.map(|text| lark.text(text)));
                let more = if single { String::new() } else { format!("({between} {next})*") };
                format!("{thinking} ({free} | {before} {begin} {first} {more} {end})")
            }
        }
    };
    Grammar::made(tokenizer, format!("start: {said}\n{}", lark.rules), lark.parts).map(Some)
}

/// What may be called.
struct Function<'a> {
    name: &'a str,
    schema: &'a Value,
    /// What its one parameter, a string, is held to.
    grammar: Option<&'a str>,
}

/// The functions of tools; the one that is `named`.
fn functions<'a>(tools: &'a [Value], named: Option<&str>) -> Result<Vec<Function<'a>>> {
    let functions: Vec<Function> = tools
        .iter()
        .filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?;
            let grammar = function.get("grammar").and_then(Value::as_str);
            Some(Function { name, schema: function.get("parameters").unwrap_or(&Value::Null), grammar })
        })
        .filter(|f| named.is_none_or(|n| n == f.name))
        .collect();
    if functions.is_empty() {
        return Err(Error::value(match named {
            Some(name) => format!("[tools] there is no tool {name:?} to call"),
            None => "[tools] there are no tools to call".to_owned(),
        }));
    }
    Ok(functions)
}

/// A grammar being written.
struct Lark {
    special: Vec<(u32, String)>,
    rules: String,
    count: usize,
    /// Rules of free text, by what ends it.
    texts: HashMap<String, String>,
    /// Grammars that rules name.
    parts: Vec<GrammarWithLexer>,
}

impl Lark {
    fn new(tokenizer: &Tokenizer) -> Lark {
        let special = tokenizer.special_words();
        Lark { special, rules: String::new(), count: 0, texts: HashMap::new(), parts: Vec::new() }
    }

    /// Calls, or one call, of functions.
    fn calls(&mut self, writing: &Writing, functions: &[Function], single: bool) -> Result<String> {
        let call = self.call_of(writing, functions)?;
        let [begin, between, end] = writing.calls.map(|text| self.text(text));
        let more = if single { String::new() } else { format!("({between} {call})*") };
        Ok(format!("{begin} {call} {more} {end}"))
    }

    /// One call of one of the functions.
    fn call_of(&mut self, writing: &Writing, functions: &[Function]) -> Result<String> {
        let calls = functions.iter().map(|function| self.call(writing, function));
        let calls = calls.collect::<Result<Vec<_>>>()?.join(" | ");
        Ok(self.rule(&calls))
    }

    /// Free text in which none of the markers is; special tokens that are no markers and end nothing may be. It does not
    /// begin as `other` has it, a regular expression, where there is one.
    fn free(&mut self, tokenizer: &Tokenizer, markers: &[&str], other: &str) -> String {
        let begins = |word: &str| markers.iter().any(|m| m.starts_with(word));
        let silent =
            |(id, word): &&(u32, String)| !word.is_empty() && !begins(word) && !tokenizer.eos_ids().contains(id);
        let special: Vec<String> = self.special.iter().filter(silent).map(|(id, _)| id.to_string()).collect();
        let (first, text) = (self.without(markers, other), self.without(markers, ""));
        match special.is_empty() {
            true => first,
            false => self.rule(&format!("{first} (<[{}]> {text})*", special.join(","))),
        }
    }

    /// A terminal of any text without some words, that does not begin as `other` has it.
    fn without(&mut self, words: &[&str], other: &str) -> String {
        let mut body = String::from("/(?s:.*)/");
        for word in words.iter().filter(|word| !self.text(word).starts_with("<[")) {
            let _ = write!(body, " & ~(/(?s:.*)/ {} /(?s:.*)/)", Value::from(*word));
        }
        if !other.is_empty() {
            let _ = write!(body, " & ~{other}");
        }
        self.count += 1;
        let name = format!("T{}", self.count);
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// Thinking before anything else, where the model can think.
    fn thinking(&mut self, format: Format, tokenizer: &Tokenizer) -> String {
        match (format, tokenizer.thinking()) {
            (Format::Harmony, _) => {
                let thought = self.until("<|end|>");
                let (begin, end) = (self.text("<|channel|>analysis<|message|>"), self.text("<|start|>assistant"));
                format!("({begin} {thought} {end})?")
            }
            (_, Some(thinking)) => {
                let (begin, thought) = (self.text(&thinking.start), self.until(&thinking.end));
                format!("({begin} {thought})? /\\n{{0,2}}/")
            }
            _ => String::new(),
        }
    }

    /// A new rule's name.
    fn rule(&mut self, body: &str) -> String {
        self.attributed("", body)
    }

    fn attributed(&mut self, attributes: &str, body: &str) -> String {
        self.count += 1;
        let name = format!("r{}", self.count);
        let _ = writeln!(self.rules, "{name}{attributes}: {body}");
        name
    }

    /// A text that is written as it is; in it, special tokens are what they are and `$n` is a number.
    fn text(&self, text: &str) -> String {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        let flush = |plain: &mut String, pieces: &mut Vec<String>| {
            if !plain.is_empty() {
                pieces.push(Value::from(std::mem::take(plain)).to_string());
            }
        };
        while let Some(c) = rest.chars().next() {
            let special = self.special.iter().filter(|(_, word)| !word.is_empty() && rest.starts_with(word.as_str()));
            if let Some((id, word)) = special.max_by_key(|(_, word)| word.len()) {
                flush(&mut plain, &mut pieces);
                pieces.push(format!("<[{id}]>"));
                rest = &rest[word.len()..];
            } else if let Some(after) = rest.strip_prefix("$n") {
                flush(&mut plain, &mut pieces);
                pieces.push("/[0-9]{1,3}/".into());
                rest = after;
            } else {
                plain.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        flush(&mut plain, &mut pieces);
        pieces.join(" ")
    }

    /// As [`Lark::text`], of a text that may be empty where something must stand.
    fn choice(&self, text: &str) -> String {
        if text.is_empty() { "\"\"".into() } else { self.text(text) }
    }

    /// Free text and what ends it.
    fn until(&mut self, end: &str) -> String {
        if let Some(rule) = self.texts.get(end) {
            return rule.clone();
        }
        let written = self.text(end);
        let rule = if written.starts_with("<[") {
            self.rule(&format!("/(?s:.*)/ {written}"))
        } else {
            // Up to a special token, or all of it.
            let (first, rest) = match written.find(" <[") {
                Some(at) => (&written[..at], &written[at..]),
                None => (written.as_str(), ""),
            };
            let free = self.attributed(&format!("[suffix={first}]"), "/(?s:.*)/");
            self.rule(&format!("{free}{rest}"))
        };
        self.texts.insert(end.to_owned(), rule.clone());
        rule
    }

    /// A call of a function.
    fn call(&mut self, writing: &Writing, &Function { name, schema, grammar }: &Function) -> Result<String> {
        let [begin, end] = writing.call.map(|text| self.text(&text.replace("$f", name)));
        let schema = match schema {
            Value::Object(object) if !object.is_empty() => {
                let mut schema = schema.clone();
                schema["type"] = "object".into();
                schema
            }
            _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        };
        let parameter = schema.get("properties").and_then(Value::as_object).and_then(|p| p.keys().next());
        if let (Some(grammar), Some(key)) = (grammar, parameter) {
            let arguments = self.held(writing, name, key, grammar)?;
            let whole = matches!(writing.arguments, Arguments::Whole);
            return Ok(self.rule(&if whole { arguments } else { format!("{begin} {arguments} {end}") }));
        }
        let arguments = match &writing.arguments {
            Arguments::Json => Grammar::json_piece(&schema)?,
            Arguments::Whole => return Ok(self.rule(&Grammar::call_piece(name, &schema)?)),
            Arguments::Each { text, json, between, texts } => {
                let mut all = Vec::new();
                let required = |key: &str| {
                    schema.get("required").and_then(Value::as_array).is_some_and(|r| r.iter().any(|k| k == key))
                };
                for (key, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                    let value = self.value(key, inner, &schema, [text, json], *texts)?;
                    all.push((self.rule(&value), required(key)));
                }
                self.sequence(&all, between)
            }
        };
        Ok(self.rule(&format!("{begin} {arguments} {end}")))
    }

    /// The arguments of a function with one string, which is held to a grammar; or all of the call.
    fn held(&mut self, writing: &Writing, name: &str, key: &str, grammar: &str) -> Result<String> {
        let json = format!("{{{}: \"", Value::from(key));
        let (before, after, quoted) = match &writing.arguments {
            Arguments::Json => (json, "\"}".to_owned(), true),
            Arguments::Whole => {
                (format!("{{\"name\": {}, \"parameters\": {json}", Value::from(name)), "\"}}".to_owned(), true)
            }
            Arguments::Each { json: [before, after], texts: Texts::None, .. } => {
                (before.replace("$k", key) + "\"", format!("\"{after}"), true)
            }
            Arguments::Each { text: [before, after], .. } => (before.replace("$k", key), after.to_string(), false),
        };
        let part = format!("input{}", self.parts.len());
        let body = format!("{} @{part} {}", self.text(&before), self.text(&after));
        self.parts.push(Grammar::lark_part(part, grammar, quoted)?);
        Ok(body)
    }

    /// A parameter with its value.
    fn value(
        &mut self,
        key: &str,
        schema: &Value,
        whole: &Value,
        [text, json]: [&[&'static str; 2]; 2],
        texts: Texts,
    ) -> Result<String> {
        let string = |schema: &Value| schema.get("type").is_some_and(|t| t == "string");
        let choices = schema.get("enum").and_then(Value::as_array).filter(|c| c.iter().all(Value::is_string));
        let is_text = match texts {
            Texts::None => false,
            Texts::Only => string(schema),
            Texts::MayBe => super::values::types(Some(schema)).iter().any(|t| t == "string"),
        };
        if !is_text {
            let mut schema = schema.clone();
            for defs in ["$defs", "definitions"] {
                if let (Some(object), Some(defined)) = (schema.as_object_mut(), whole.get(defs)) {
                    object.insert(defs.into(), defined.clone());
                }
            }
            let piece = Grammar::json_piece(&schema)?;
            return Ok(format!("{} {piece} {}", self.text(&json[0].replace("$k", key)), self.text(json[1])));
        }
        let begin = self.text(&text[0].replace("$k", key));
        Ok(match choices {
            Some(choices) => {
                let choices: Vec<String> = choices.iter().filter_map(|c| Some(self.choice(c.as_str()?))).collect();
                format!("{begin} ({}) {}", choices.join(" | "), self.text(text[1]))
            }
            None => format!("{begin} {}", self.until(text[1])),
        })
    }

    /// Parameters in their order, of which some may be left out.
    fn sequence(&mut self, all: &[(String, bool)], between: &str) -> String {
        let option = |required: bool| if required { "" } else { "?" };
        if between.is_empty() {
            return all
                .iter()
                .map(|(rule, required)| format!("{rule}{}", option(*required)))
                .collect::<Vec<_>>()
                .join(" ");
        }
        // What may follow when something came before, and when nothing did; from the last on.
        let between = self.text(between);
        let (mut after, mut first) = (String::new(), String::new());
        for (rule, required) in all.iter().rev() {
            let alone = if first.is_empty() { String::new() } else { format!(" | {first}") };
            let begun = format!("{rule} {after}");
            first = if *required { begun } else { format!("({begun}{alone})?") };
            after = self.rule(&format!("({between} {rule}){} {after}", option(*required)));
            first = self.rule(&first);
        }
        first
    }
}
