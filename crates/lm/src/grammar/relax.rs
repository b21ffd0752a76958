//! JSON schemas without what grammars cannot say, for those who would rather have most of a schema than none of it.

use lapis::Result;
use serde_json::{Value, json};

use super::clock::Clock;
use super::schema::Fault;
use super::tokens::Tokens;
use super::{TIME, compile_schema};

/// Keywords that are left out of a schema.
const MAX_LEFT: usize = 256;

/// Leaves out of a schema what keeps it from being compiled, and says what that was.
pub(super) fn relaxed(tokens: &Tokens, mut schema: Value) -> Result<(Value, Vec<String>)> {
    let clock = Clock::new();
    let mut said = Vec::new();
    loop {
        let Fault { error, place } = match compile_schema(tokens, &schema) {
            Ok(_) => return Ok((schema, said)),
            Err(fault) => fault,
        };
        let goes_on = said.len() < MAX_LEFT && !clock.left(TIME).is_zero();
        if !goes_on || !place.is_some_and(|(path, key)| leave(&mut schema, &path, &key)) {
            return Err(error);
        }
        let what = error.message().trim_start_matches("[schema] ").replace(" is not supported", "");
        said.push(format!("{what} is not held to"));
    }
}

/// Leaves a keyword out of the schema at a place, so that no less is valid; false where it is not there.
fn leave(schema: &mut Value, path: &str, key: &str) -> bool {
    let Some(object) = schema.pointer_mut(path).and_then(Value::as_object_mut) else { return false };
    let Some(value) = object.remove(key) else {
        return key == "minProperties" && object.remove("maxProperties").is_some();
    };
    match (key, value) {
        // One of them holds, and maybe others.
        ("oneOf", Value::Array(all)) => {
            let some = json!({"anyOf": all});
            match object.get_mut("allOf").and_then(Value::as_array_mut) {
                Some(together) => together.push(some),
                None => _ = object.insert("allOf".into(), json!([some])),
            }
        }
        // What it says of names would be left to what says less.
        ("patternProperties", _) => _ = object.remove("additionalProperties"),
        _ => {}
    }
    true
}
