//! References inside a schema: by pointer or by anchor, each target read once and put into `$defs`.

use super::{Place, Reader, Result, below, malformed, refuse};
use serde_json::Value;

impl<'a> Reader<'a> {
    /// A reference, and what it points to as one of `$defs`.
    pub(super) fn reference(&mut self, text: &str, at: Place<'_>) -> Result<String> {
        let id = self.root.get("$id").and_then(Value::as_str).map_or("", |id| id.trim_end_matches('#'));
        let fragment = match text.strip_prefix(id).filter(|_| !id.is_empty()).unwrap_or(text) {
            "" => "",
            rest => rest
                .strip_prefix('#')
                .ok_or_else(|| refuse("$ref", at.path, &format!("outside the schema: {text:?}")))?,
        };
        let missing = || malformed("$ref", at.path, &format!("points nowhere: {text:?}"));
        let fragment = unescaped(fragment).ok_or_else(missing)?;
        let (target, pointer) = self.find(&fragment, at.path, text)?.ok_or_else(missing)?;
        if at.inside.contains(&pointer) {
            return Err(refuse("$ref", at.path, &format!("that comes back to itself: {text:?}")));
        }
        if let Some(name) = self.targets.get(&pointer) {
            return Ok(format!("#/$defs/{name}"));
        }
        let name = self.targets.len().to_string();
        self.targets.insert(pointer.clone(), name.clone());
        let inside: Vec<String> = at.inside.iter().cloned().chain([pointer.clone()]).collect();
        let place = Place { path: &pointer, depth: 0, chain: at.chain + 1, inside: &inside };
        let schema = self.schema(target, place)?;
        self.defs.insert(name.clone(), schema);
        Ok(format!("#/$defs/{name}"))
    }

    /// The schema at a pointer or an anchor, with its pointer.
    fn find(&self, fragment: &str, path: &str, text: &str) -> Result<Option<(&'a Value, String)>> {
        if !fragment.is_empty() && !fragment.starts_with('/') {
            return Ok(anchor(self.root, fragment, String::new()));
        }
        let mut target = self.root;
        for (i, part) in fragment.split('/').skip(1).enumerate() {
            if i > 0 && target.get("$id").and_then(Value::as_str).is_some_and(|id| !id.starts_with('#')) {
                return Err(refuse("$ref", path, &format!("through a schema with `$id`: {text:?}")));
            }
            let part = part.replace("~1", "/").replace("~0", "~");
            let next = match target {
                Value::Object(object) => object.get(&part),
                Value::Array(all) => part.parse::<usize>().ok().and_then(|i| all.get(i)),
                _ => None,
            };
            match next {
                Some(next) => target = next,
                None => return Ok(None),
            }
        }
        Ok(Some((target, fragment.to_string())))
    }
}

/// The schema that has a name. Not looked for inside schemas with an identity of their own, and values.
fn anchor<'a>(value: &'a Value, name: &str, path: String) -> Option<(&'a Value, String)> {
    match value {
        Value::Object(object) => {
            let is = |key: &str, name: &str| object.get(key).and_then(Value::as_str) == Some(name);
            if is("$anchor", name) || is("$dynamicAnchor", name) || is("$id", &format!("#{name}")) {
                return Some((value, path));
            }
            if !path.is_empty() && object.get("$id").and_then(Value::as_str).is_some_and(|id| !id.starts_with('#')) {
                return None;
            }
            let values = ["const", "enum", "default", "examples"];
            let inner = object.iter().filter(|(key, _)| !values.contains(&key.as_str()));
            inner.map(|(key, v)| (below(&path, key), v)).find_map(|(path, v)| anchor(v, name, path))
        }
        Value::Array(all) => all.iter().enumerate().find_map(|(i, v)| anchor(v, name, below(&path, &i.to_string()))),
        _ => None,
    }
}

/// The text of a URI's fragment.
fn unescaped(fragment: &str) -> Option<String> {
    let bytes = fragment.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        if bytes[i] == b'%' {
            let hex = bytes.get(i + 1..i + 3).filter(|h| h.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8(out).ok()
}
