//! The formats in which models write calls: which one a model uses, and what reads it.

use super::Calls;
use super::markup::{self, Markup, Trim};
use super::objects::{self, Head, Heading, Objects};
use super::pairs::{self, Pairs};
use super::values::Values;
use super::whole::{self, Whole};
use crate::tokenizer::Tokenizer;

/// How a model writes calls of tools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `<minimax:tool_call><invoke name="f"><parameter name="p">v</parameter></invoke></minimax:tool_call>`.
    MinimaxM2,
    /// `<|tool_call>call:f{k:<|"|>text<|"|>,n:1}<tool_call|>`.
    Gemma4,
    /// `<start_function_call>call:f{k:<escape>text<escape>,n:1}<end_function_call>`.
    FunctionGemma,
    /// `<longcat_tool_call>f<longcat_arg_key>k</longcat_arg_key><longcat_arg_value>v</longcat_arg_value>...`, or JSON.
    Longcat,
    /// `<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`; Laguna's too.
    Glm47,
    /// `<|tool_call_start|>[f(a=1, b="x")]<|tool_call_end|>`.
    Pythonic,
    /// `<tool_call><function=f><parameter=p>v</parameter></function></tool_call>`.
    Qwen3Coder,
    /// `<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>...`.
    KimiK2,
    /// `<function name="f"><param name="p">v</param></function>`.
    Minicpm5,
    /// `[TOOL_CALLS]f[ARGS]{...}`, or a JSON list.
    Mistral,
    /// `<atem:function_calls><atem:invoke name="f"><atem:parameter name="p">v</atem:parameter></atem:invoke>...`.
    MuseSpark,
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen and many others.
    JsonTools,
    /// `<|open|>tools<|sep|><|open|>call tool="f"<|sep|>...`.
    KimiK3,
    /// `{"name": ..., "parameters": ...}` at the beginning of a reply or after `<|python_tag|>`, `<function=f>{...}</function>`.
    Llama3,
    /// gpt-oss's channels.
    Harmony,
    /// `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{...}<｜tool▁call▁end｜>...`: V3, R1, V3.1.
    DeepSeek,
    /// `<｜DSML｜function_calls><｜DSML｜invoke name="f"><｜DSML｜parameter name="p" string="true">v...`.
    DeepSeekV32,
    /// `<|tool_call|>[{"name": ..., "arguments": ...}]<|/tool_call|>`.
    Phi4,
    /// `<|tool_call|>[{"name": ..., "arguments": ...}]`.
    Granite,
    /// `<|START_ACTION|>[{"tool_name": ..., "parameters": ...}]<|END_ACTION|>`, or a list after `Action:`.
    CommandR,
}

/// Values of `tool_parser_type`.
const NAMES: [(&str, Format); 22] = [
    ("minimax_m2", Format::MinimaxM2),
    ("gemma4", Format::Gemma4),
    ("function_gemma", Format::FunctionGemma),
    ("longcat", Format::Longcat),
    ("glm47", Format::Glm47),
    ("laguna", Format::Glm47),
    ("pythonic", Format::Pythonic),
    ("qwen3_coder", Format::Qwen3Coder),
    ("kimi_k2", Format::KimiK2),
    ("minicpm5", Format::Minicpm5),
    ("mistral", Format::Mistral),
    ("muse_spark", Format::MuseSpark),
    ("json_tools", Format::JsonTools),
    ("kimi_k3", Format::KimiK3),
    ("hermes", Format::JsonTools),
    ("llama3_json", Format::Llama3),
    ("harmony", Format::Harmony),
    ("deepseek_v3", Format::DeepSeek),
    ("deepseek_v32", Format::DeepSeekV32),
    ("phi4", Format::Phi4),
    ("granite", Format::Granite),
    ("command_r", Format::CommandR),
];

/// What a chat template shows of a format: one of several lists of texts that are all there. The first that fits counts;
/// mlx-lm's come first, in its order.
const TEMPLATES: [(Format, &[&[&str]]); 21] = [
    (Format::MinimaxM2, &[&["<minimax:tool_call>"]]),
    (Format::Gemma4, &[&["<|tool_call>", "<tool_call|>"]]),
    (Format::FunctionGemma, &[&["<start_function_call>"]]),
    (Format::Longcat, &[&["<longcat_tool_call>"]]),
    (Format::Glm47, &[&["<arg_key>"]]),
    (Format::Pythonic, &[&["<|tool_list_start|>"], &["<|tool_call_start|>"]]),
    (Format::Qwen3Coder, &[&["<tool_call>\\n<function="], &["<tool_call>\n<function="]]),
    (Format::KimiK2, &[&["<|tool_calls_section_begin|>"]]),
    (Format::Minicpm5, &[&["<function name=\"", "<param name=\""]]),
    (Format::Mistral, &[&["[TOOL_CALLS]"]]),
    (Format::MuseSpark, &[&["<atem:function_calls>"]]),
    (Format::JsonTools, &[&["<tool_call>", "tool_call.name"]]),
    (Format::Harmony, &[&["<|channel|>", "<|message|>"]]),
    (Format::DeepSeekV32, &[&["｜DSML｜"]]),
    (Format::DeepSeek, &[&["<｜tool▁calls▁begin｜>"]]),
    (Format::CommandR, &[&["<|START_ACTION|>"], &["Action: ```json"], &["Action:```json"]]),
    (Format::Phi4, &[&["<|/tool_call|>"], &["functools["]]),
    (Format::Granite, &[&["<|tool_call|>"]]),
    (Format::JsonTools, &[&["<tool_call>"]]),
    (Format::Llama3, &[&["<|python_tag|>"], &["<|start_header_id|>", "parameters"]]),
    (Format::KimiK3, &[&["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]]),
];

/// Words that only the vocabulary of a format has, in the order in which they are looked for; mlx-lm's come first.
const VOCABULARIES: [(Format, &[&str]); 12] = [
    (Format::KimiK3, &["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]),
    (Format::Pythonic, &["<|tool_call_start|>", "<|tool_call_end|>"]),
    (Format::Harmony, &["<|channel|>", "<|message|>", "<|call|>"]),
    (Format::DeepSeekV32, &["｜DSML｜"]),
    (Format::DeepSeek, &["<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"]),
    (Format::KimiK2, &["<|tool_calls_section_begin|>"]),
    (Format::Mistral, &["[TOOL_CALLS]"]),
    (Format::Phi4, &["<|tool_call|>", "<|/tool_call|>"]),
    (Format::CommandR, &["<|START_ACTION|>"]),
    (Format::JsonTools, &["<tool_call>", "</tool_call>"]),
    (Format::Llama3, &["<|python_tag|>"]),
    (Format::Granite, &["<|tool_call|>"]),
];

impl Format {
    /// The format of a model: what `tool_parser_type` in tokenizer_config.json says, else what the chat template shows,
    /// else what the vocabulary has.
    pub fn of(tokenizer: &Tokenizer) -> Option<Format> {
        if let Some((_, format)) = NAMES.iter().find(|(name, _)| tokenizer.tool_parser() == Some(name)) {
            return Some(*format);
        }
        let templates = tokenizer.template_sources();
        let shows = |texts: &&[&str]| templates.iter().any(|t| texts.iter().all(|text| t.contains(text)));
        let shown = TEMPLATES.iter().find(|(_, any)| any.iter().any(shows));
        let has = |words: &[&str]| words.iter().all(|word| tokenizer.token_id(word).is_some());
        shown.map(|f| f.0).or_else(|| VOCABULARIES.iter().find(|(_, words)| has(words)).map(|f| f.0))
    }

    /// Markers that calls begin with.
    pub(super) fn begins(self) -> &'static [&'static str] {
        match self {
            Format::MinimaxM2 => &["<minimax:tool_call>"],
            Format::Gemma4 => &["<|tool_call>"],
            Format::FunctionGemma => &["<start_function_call>"],
            Format::Longcat => &["<longcat_tool_call>"],
            Format::Glm47 | Format::JsonTools => &["<tool_call>"],
            Format::Pythonic => &["<|tool_call_start|>"],
            Format::Qwen3Coder => &["<tool_call>", "<function="],
            Format::KimiK2 => &["<|tool_calls_section_begin|>"],
            Format::Minicpm5 => &["<function name="],
            Format::Mistral => &["[TOOL_CALLS]"],
            Format::MuseSpark => &["<atem:function_calls>"],
            Format::KimiK3 => &["<|open|>tools<|sep|>"],
            Format::Llama3 => &["<|python_tag|>", "<function="],
            Format::Harmony => &[],
            Format::DeepSeek => &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
            Format::DeepSeekV32 => &["<｜DSML｜function_calls>"],
            Format::Phi4 => &["<|tool_call|>", "functools["],
            Format::Granite => &["<|tool_call|>", "<function_call>"],
            Format::CommandR => &["<|START_ACTION|>", "Action: ```json", "Action:```json"],
        }
    }

    /// Markers that say nothing to a reader.
    pub(super) fn silent(self) -> &'static [&'static str] {
        match self {
            Format::KimiK3 => {
                &["<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"]
            }
            Format::CommandR => &["<|START_RESPONSE|>", "<|END_RESPONSE|>"],
            _ => &[],
        }
    }

    /// What reads the calls after a marker.
    pub(super) fn calls(self, marker: &str) -> Box<dyn Calls> {
        match self {
            Format::MinimaxM2 => Box::new(Markup::new(&MINIMAX, marker)),
            Format::Qwen3Coder => Box::new(Markup::new(&QWEN, marker)),
            Format::Minicpm5 => Box::new(Markup::new(&MINICPM, marker)),
            Format::MuseSpark => Box::new(Markup::new(&MUSE, marker)),
            Format::KimiK3 => Box::new(Markup::new(&KIMI_K3, marker)),
            Format::DeepSeekV32 => Box::new(Markup::new(&DSML, marker)),
            Format::Longcat => Box::new(Pairs::new(&LONGCAT)),
            Format::Glm47 => Box::new(Pairs::new(&GLM)),
            Format::Gemma4 => Box::new(Whole(&GEMMA)),
            Format::FunctionGemma => Box::new(Whole(&FUNCTION_GEMMA)),
            Format::Pythonic => Box::new(Whole(&PYTHON)),
            Format::JsonTools | Format::Harmony => Box::new(Objects::new(&HERMES)),
            Format::KimiK2 => Box::new(Objects::new(&KIMI_K2)),
            Format::Mistral => Box::new(Objects::new(&MISTRAL)),
            Format::Llama3 if marker == "<function=" => Box::new(Objects::new(&LLAMA_FUNCTION)),
            Format::Llama3 => Box::new(Objects::new(&LLAMA)),
            Format::DeepSeek => Box::new(Objects::new(&DEEPSEEK)),
            Format::Phi4 => Box::new(Objects::new(&PHI)),
            Format::Granite => Box::new(Objects::new(&GRANITE)),
            Format::CommandR => Box::new(Objects::new(&COMMAND_R)),
        }
    }

    /// What a call begins with that stands at the beginning of a reply without a marker.
    pub(super) fn bare(self) -> Option<&'static str> {
        (self == Format::Llama3).then_some("{")
    }
}

/// Objects between two markers.
const OBJECTS: objects::Rules = objects::Rules { end: &[], between: &[], head: None, bare: false, holds: false };

static HERMES: objects::Rules = objects::Rules { end: &["</tool_call>"], ..OBJECTS };
static PHI: objects::Rules = objects::Rules { end: &["<|/tool_call|>"], ..OBJECTS };
static GRANITE: objects::Rules = objects::Rules { between: &["<|tool_call|>", "<function_call>"], ..OBJECTS };
static COMMAND_R: objects::Rules = objects::Rules { end: &["<|END_ACTION|>", "```"], ..OBJECTS };
static LLAMA: objects::Rules = objects::Rules { between: &["<|python_tag|>"], bare: true, ..OBJECTS };
static LLAMA_FUNCTION: objects::Rules = objects::Rules { end: &["</function>"], head: Some(function_head), ..OBJECTS };
static MISTRAL: objects::Rules =
    objects::Rules { between: &["[TOOL_CALLS]"], head: Some(mistral_head), holds: true, ..OBJECTS };
static KIMI_K2: objects::Rules = objects::Rules {
    end: &["<|tool_calls_section_end|>"],
    between: &["<|tool_call_begin|>", "<|tool_call_end|>"],
    head: Some(kimi_head),
    ..OBJECTS
};
static DEEPSEEK: objects::Rules = objects::Rules {
    end: &["<｜tool▁calls▁end｜>"],
    between: &["<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "```"],
    head: Some(deepseek_head),
    ..OBJECTS
};

/// Whether a text is of characters that names have.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
}

/// `f>`.
fn function_head(text: &str, whole: bool) -> Heading {
    let name = text.trim_end().trim_end_matches('>');
    match is_name(name) {
        true if whole => Heading::Is(Head { id: None, name: name.to_owned() }),
        true => Heading::MayBe,
        false => Heading::Not,
    }
}

/// `f[ARGS]`, `f[CALL_ID]id[ARGS]`, `f`.
fn mistral_head(text: &str, whole: bool) -> Heading {
    let end = text.find(|c: char| c.is_whitespace() || c == '[').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let rest = rest.trim();
    let begins = |mark: &str| mark.starts_with(rest) || rest.starts_with(mark);
    if !is_name(name) || !begins("[ARGS]") && !begins("[CALL_ID]") {
        return Heading::Not;
    }
    let id = match rest.strip_prefix("[CALL_ID]") {
        _ if !whole => return Heading::MayBe,
        Some(rest) => rest.strip_suffix("[ARGS]").map(|id| Some(id.trim().to_owned())),
        None => (rest.is_empty() || rest == "[ARGS]").then_some(None),
    };
    id.map_or(Heading::Not, |id| Heading::Is(Head { id, name: name.to_owned() }))
}

/// `functions.f:0<|tool_call_argument_begin|>`; the id is all before the marker.
fn kimi_head(text: &str, whole: bool) -> Heading {
    if !whole {
        return Heading::MayBe;
    }
    let head = text.trim_end().strip_suffix("<|tool_call_argument_begin|>").map(str::trim).and_then(|id| {
        let (name, count) = id.rsplit_once(':')?;
        let counts = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
        let name = name.strip_prefix("functions.").unwrap_or(name).to_owned();
        counts.then(|| Head { id: Some(id.to_owned()), name })
    });
    head.map_or(Heading::Not, Heading::Is)
}

/// `function<｜tool▁sep｜>f` and a fence, or `f<｜tool▁sep｜>`.
fn deepseek_head(text: &str, whole: bool) -> Heading {
    let head = |(before, after): (&str, &str)| {
        let name = after.trim().trim_end_matches("```json").trim();
        let name = if name.is_empty() { before.trim() } else { name };
        Head { id: None, name: name.to_owned() }
    };
    match text.split_once("<｜tool▁sep｜>").map(head) {
        _ if !whole => Heading::MayBe,
        Some(head) => Heading::Is(head),
        None => Heading::Not,
    }
}

/// Tags as XML has them, with values in text.
const TAGS: markup::Rules = markup::Rules {
    end: &[],
    call: "<invoke name=",
    call_end: "</invoke>",
    parameter: "<parameter name=",
    parameter_end: "</parameter>",
    tag_end: ">",
    function: None,
    key: None,
    string: None,
    object: None,
    literal: None,
    trim: Trim::Blanks,
    values: Values::Schema,
};

static MINIMAX: markup::Rules = markup::Rules { end: &["</minimax:tool_call>"], ..TAGS };
static QWEN: markup::Rules = markup::Rules {
    end: &["</tool_call>"],
    call: "<function=",
    call_end: "</function>",
    parameter: "<parameter=",
    trim: Trim::Newline,
    values: Values::Type,
    ..TAGS
};
static MINICPM: markup::Rules = markup::Rules {
    call: "<function name=",
    call_end: "</function>",
    parameter: "<param name=",
    parameter_end: "</param>",
    literal: Some(("<![CDATA[", "]]>")),
    ..TAGS
};
static MUSE: markup::Rules = markup::Rules {
    end: &["</atem:function_calls>"],
    call: "<atem:invoke",
    call_end: "</atem:invoke>",
    parameter: "<atem:parameter",
    parameter_end: "</atem:parameter>",
    function: Some("name"),
    key: Some("name"),
    values: Values::Json,
    ..TAGS
};
static KIMI_K3: markup::Rules = markup::Rules {
    end: &["<|close|>tools<|sep|>"],
    call: "<|open|>call",
    call_end: "<|close|>call<|sep|>",
    parameter: "<|open|>argument",
    parameter_end: "<|close|>argument<|sep|>",
    tag_end: "<|sep|>",
    function: Some("tool"),
    key: Some("key"),
    string: Some(("type", "string")),
    object: Some(("<|open|>json", "<|close|>json<|sep|>")),
    trim: Trim::Nothing,
    values: Values::Json,
    ..TAGS
};
static DSML: markup::Rules = markup::Rules {
    end: &["</｜DSML｜function_calls>"],
    call: "<｜DSML｜invoke",
    call_end: "</｜DSML｜invoke>",
    parameter: "<｜DSML｜parameter",
    parameter_end: "</｜DSML｜parameter>",
    function: Some("name"),
    key: Some("name"),
    string: Some(("string", "true")),
    trim: Trim::Nothing,
    values: Values::Json,
    ..TAGS
};

static GLM: pairs::Rules = pairs::Rules {
    end: "</tool_call>",
    key: ("<arg_key>", "</arg_key>"),
    value: ("<arg_value>", "</arg_value>"),
    plain: true,
};
static LONGCAT: pairs::Rules = pairs::Rules {
    end: "</longcat_tool_call>",
    key: ("<longcat_arg_key>", "</longcat_arg_key>"),
    value: ("<longcat_arg_value>", "</longcat_arg_value>"),
    plain: false,
};

static GEMMA: whole::Rules = whole::Rules { end: "<tool_call|>", parse: whole::gemma4 };
static FUNCTION_GEMMA: whole::Rules = whole::Rules { end: "<end_function_call>", parse: whole::function_gemma };
static PYTHON: whole::Rules = whole::Rules { end: "<|tool_call_end|>", parse: whole::python };
