//! YAML files as JSON values. Floats may be written `1e-5`; `!tag value` becomes `{"!tag": value}`.

use lapis::{Error, Result};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};
use std::path::Path;

/// The mapping of a file.
///
/// # Errors
/// A file that cannot be read, is no YAML, or holds something else.
pub fn read(file: &Path) -> Result<Map<String, Value>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(format!("[yaml] {shown}: {e}")))?;
    parse(&text).map_err(|why| Error::value(format!("[yaml] {shown}: {why}")))
}

/// The mapping of a text; the error says why there is none.
///
/// # Errors
/// A text that is no YAML, or holds something else.
pub fn parse(text: &str) -> std::result::Result<Map<String, Value>, String> {
    let documents = Yaml::load_from_str(text).map_err(|e| e.to_string())?;
    match documents.as_slice() {
        [] => Ok(Map::new()),
        [one] => match value(one)? {
            Value::Object(map) => Ok(map),
            Value::Null => Ok(Map::new()),
            _ => Err("a mapping of settings is needed".into()),
        },
        _ => Err("more than one document".into()),
    }
}

fn value(node: &Yaml) -> std::result::Result<Value, String> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(b)) => Value::Bool(*b),
        Yaml::Value(Scalar::Integer(n)) => Value::from(*n),
        Yaml::Value(Scalar::FloatingPoint(x)) => Value::from(x.into_inner()),
        Yaml::Value(Scalar::String(s)) => Value::String(s.to_string()),
        Yaml::Sequence(all) => Value::Array(all.iter().map(value).collect::<std::result::Result<_, _>>()?),
        Yaml::Mapping(all) => {
            let mut map = Map::new();
            for (key, inner) in all {
                let key = match value(key)? {
                    Value::String(s) => s,
                    other => other.to_string(),
                };
                map.insert(key, value(inner)?);
            }
            Value::Object(map)
        }
        Yaml::Tagged(tag, inner) => Value::Object([(format!("!{}", tag.suffix), value(inner)?)].into_iter().collect()),
        Yaml::Representation(text, ..) => Value::String(text.to_string()),
        _ => return Err("aliases and broken values are not read".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use serde_json::json;

    #[test]
    fn settings_as_mlx_lm_writes_them() {
        let text = "# comment\nmodel: \"some/model\"\ntrain: true\nlearning_rate: 1e-5\nkeys: [\"a.b\", 'c']\n\
                    lora_parameters:\n  keys: [\"self_attn.q_proj\"]\n  rank: 8\n  scale: 20.0\nlr_schedule:\n  name: cosine_decay\n  \
                    warmup: 100\n  arguments: [1e-5, 1000, 1e-7]\nresume: null\n";
        let all = serde_json::Value::Object(parse(text).unwrap());
        assert_eq!(all["learning_rate"], json!(1e-5));
        assert_eq!(all["lora_parameters"], json!({"keys": ["self_attn.q_proj"], "rank": 8, "scale": 20.0}));
        assert_eq!(all["lr_schedule"]["arguments"], json!([1e-5, 1000, 1e-7]));
        assert_eq!(all["train"], json!(true));
        assert_eq!(all["resume"], json!(null));
        assert_eq!(parse("a: !function utils.f").unwrap()["a"], json!({"!function": "utils.f"}));
        assert!(parse("- a\n- b").is_err());
        assert!(parse("a: [1").is_err());
    }
}
