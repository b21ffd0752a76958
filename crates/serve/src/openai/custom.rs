//! Custom tools, whose input is a text: for the model they are functions of one argument. A grammar holds that argument.
//!
//! Chats and responses write them in shapes of their own; what is inside is the same, and is here.

use crate::error::ApiError;
use crate::service::InputGrammar;
use serde_json::{Value, json};

/// The one argument.
const INPUT: &str = "input";

fn text<'a>(tool: &'a Value, key: &str) -> Option<&'a str> {
    tool.get(key).and_then(Value::as_str)
}

/// The function that a custom tool is for the model, under the name that the model `known`s it by, and the Lark grammar that
/// holds its input. The tool, with its `description` and `format`, stands `at` a place in the request.
///
/// # Errors
/// A format that is none.
pub(crate) fn function(known: &str, tool: &Value, at: &str) -> Result<(Value, Option<InputGrammar>), ApiError> {
    let format = tool.get("format").unwrap_or(&Value::Null);
    // Chats put the grammar into an object of its own.
    let (inner, place) = match format.get("grammar") {
        Some(inner) => (inner, "format.grammar"),
        None => (format, "format"),
    };
    let mut schema = json!({"type": "string"});
    let (mut more, mut held) = (String::new(), None);
    match (text(format, "type"), text(inner, "syntax"), text(inner, "definition")) {
        (None | Some("text"), ..) => {}
        (Some("grammar"), Some("regex"), Some(regex)) => {
            schema["pattern"] = json!(format!("^(?:{regex})$"));
            more = format!("\nThe input matches this regular expression:\n{regex}");
        }
        (Some("grammar"), Some("lark"), Some(grammar)) => {
            held = Some(InputGrammar { definition: grammar.into(), at: format!("{at}.{place}.definition") });
            more = format!("\nThe input follows this grammar:\n{grammar}");
        }
        _ => {
            let what = "has a format that is neither text nor a grammar with syntax (lark, regex) and definition";
            return Err(ApiError { param: Some("tools".into()), ..ApiError::new(400, format!("{at} {what}")) });
        }
    }
    let about = format!("{}{more}", text(tool, "description").unwrap_or(""));
    let mut function = json!({
        "name": known, "description": about.trim(), "parameters":
            {"type": "object", "properties": {INPUT: schema}, "required": [INPUT], "additionalProperties": false},
    });
    if !more.is_empty() {
        function["strict"] = json!(true);
    }
    Ok((function, held))
}

/// The arguments of a call with some input.
pub(crate) fn arguments(input: &str) -> Value {
    json!({INPUT: input})
}

/// The input of a call whose arguments are all there.
pub(crate) fn input(arguments: &str) -> String {
    let mut input = Input::default();
    let text = input.add(arguments);
    text + &input.rest()
}

/// The text in `{"input": "..."}` while the JSON of it comes in pieces.
#[derive(Default)]
pub(crate) struct Input {
    json: String,
    /// Bytes of the JSON that are read; none before the text begins.
    at: Option<usize>,
    text: String,
    over: bool,
}

impl Input {
    /// Where the text begins.
    fn start(&self) -> Option<usize> {
        let rest = self.json.trim_start().strip_prefix('{')?.trim_start();
        let rest = rest.strip_prefix(&format!("\"{INPUT}\""))?.trim_start().strip_prefix(':')?.trim_start();
        Some(self.json.len() - rest.strip_prefix('"')?.len())
    }

    /// Takes a piece of JSON; the text that is certain with it.
    pub(crate) fn add(&mut self, piece: &str) -> String {
        self.json.push_str(piece);
        self.at = self.at.or_else(|| self.start());
        let Some(at) = self.at.filter(|_| !self.over) else { return String::new() };
        let rest = &self.json.as_bytes()[at..];
        let mut end = 0;
        while let Some(byte) = rest.get(end) {
            // An escape is read when all of it is there, and with the one that it makes a character with.
            let long = match (byte, rest.get(end + 1), rest.get(end + 2), rest.get(end + 3)) {
                (b'"', ..) => {
                    self.over = true;
                    break;
                }
                (b'\\', Some(b'u'), Some(b'd' | b'D'), Some(b'8' | b'9' | b'a' | b'b' | b'A' | b'B')) => 12,
                (b'\\', Some(b'u'), ..) => 6,
                (b'\\', ..) => 2,
                _ => 1,
            };
            if end + long > rest.len() {
                break;
            }
            end += long;
        }
        let fresh: String = serde_json::from_str(&format!("\"{}\"", &self.json[at..at + end])).unwrap_or_default();
        self.at = Some(at + end);
        self.text.push_str(&fresh);
        fresh
    }

    /// What has not come out when nothing more comes: arguments of another form are the input as they are.
    pub(crate) fn rest(&self) -> String {
        let whole: Option<Value> = serde_json::from_str(&self.json).ok();
        let input = whole.as_ref().and_then(|v| v.get(INPUT)?.as_str());
        match input {
            Some(input) => input.strip_prefix(self.text.as_str()).unwrap_or("").to_string(),
            None if self.text.is_empty() && self.at.is_none() => self.json.clone(),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_custom_call_comes_in_pieces() {
        let text = "a \"quoted\"\n\u{1F98A} é\\ end";
        for json in [
            json!({INPUT: text}).to_string(),
            "{ \"input\" : \"a \\\"quoted\\\"\\n\\ud83e\\udd8a \\u00e9\\\\ end\" }".to_string(),
        ] {
            for size in 1..9 {
                let mut input = Input::default();
                let chars: Vec<char> = json.chars().collect();
                let got: String = chars.chunks(size).map(|c| input.add(&c.iter().collect::<String>())).collect();
                assert_eq!((got.as_str(), input.rest().as_str()), (text, ""), "{json} by {size}");
            }
        }
        let mut other = Input::default();
        assert_eq!((other.add("{\"patch\": 5}"), other.rest()), (String::new(), "{\"patch\": 5}".into()));
        let mut cut = Input::default();
        assert_eq!((cut.add("{\"input\": \"ab\\"), cut.rest()), ("ab".into(), String::new()));
    }
}
