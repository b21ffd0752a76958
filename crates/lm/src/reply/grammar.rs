//! Grammars of replies that call tools, in each model's own markup.

use std::collections::HashMap;
use std::fmt::Write;

use lapis::{Error, Result};
use serde_json::{Value, json};

use super::format::Format;
use crate::grammar::Grammar;
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
///
/// # Errors
/// `Unsupported` for a model that is not known to call tools and for schemas that grammars cannot say (as
/// [`Grammar::json_schema`]); `Value` for no tools, or none of that name.
pub fn call_grammar(tokenizer: &Tokenizer, tools: &[Value], named: Option<&str>, single: bool) -> Result<Grammar> {
    let Some(format) = Format::of(tokenizer) else {
        return Err(Error::unsupported("[tools] the model is not known to call tools: its markup is not known"));
    };
    let functions: Vec<(&str, &Value)> = tools
        .iter()
        .filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?;
            Some((name, function.get("parameters").unwrap_or(&Value::Null)))
        })
        .filter(|(name, _)| named.is_none_or(|n| n == *name))
        .collect();
    if functions.is_empty() {
        return Err(Error::value(match named {
            Some(name) => format!("[tools] there is no tool {name:?} to call"),
            None => "[tools] there are no tools to call".to_owned(),
        }));
    }
    let writing = Writing::of(format, tokenizer);
    let mut lark = Lark { special: tokenizer.special_words(), rules: String::new(), count: 0, texts: HashMap::new() };
    let calls = functions.iter().map(|(name, schema)| lark.call(&writing, name, schema));
    let calls = calls.collect::<Result<Vec<_>>>()?.join(" | ");
    let call = lark.rule(&calls);
    let [begin, between, end] = writing.calls.map(|text| lark.text(text));
    let more = match single || named.is_some() || format == Format::Harmony {
        true => String::new(),
        false => format!("({between} {call})*"),
    };
    let thinking = match (format, tokenizer.thinking()) {
        (Format::Harmony, _) => {
            let thought = lark.until("<|end|>");
            let (begin, end) = (lark.text("<|channel|>analysis<|message|>"), lark.text("<|start|>assistant"));
            format!("({begin} {thought} {end})?")
        }
        (_, Some(thinking)) => {
            let (begin, thought) = (lark.text(&thinking.start), lark.until(&thinking.end));
            format!("({begin} {thought})? /\\n{{0,2}}/")
        }
        _ => String::new(),
    };
    Grammar::made(tokenizer, format!("start: {thinking} {begin} {call} {more} {end}\n{}", lark.rules))
}

/// A grammar being written.
struct Lark {
    special: Vec<(u32, String)>,
    rules: String,
    count: usize,
    /// Rules of free text, by what ends it.
    texts: HashMap<String, String>,
}

impl Lark {
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
    fn call(&mut self, writing: &Writing, name: &str, schema: &Value) -> Result<String> {
        let [begin, end] = writing.call.map(|text| self.text(&text.replace("$f", name)));
        let schema = match schema {
            Value::Object(object) if !object.is_empty() => {
                let mut schema = schema.clone();
                schema["type"] = "object".into();
                schema
            }
            _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        };
        let arguments = match &writing.arguments {
            Arguments::Json => Grammar::json_piece(&schema)?,
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
