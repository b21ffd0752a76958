//! The card of a converted model: README.md with the front matter that hubs read, what was done, and how to use it.

use lapis::Result;
use lapis::io::atomic::{AtomicFile, human};
use serde_json::{Map, Value};
use std::path::Path;

/// What a card tells.
pub struct Card<'a> {
    /// The card of the source, whose front matter (licence, languages, ...) goes along.
    pub source: Option<&'a str>,
    /// The name of the source on a hub.
    pub base: Option<&'a str>,
    /// The command that made the model.
    pub command: &'a str,
    /// Bits a weight.
    pub bits_per_weight: f64,
    /// What was measured of it, as sentences.
    pub measured: Option<&'a str>,
}

impl Card<'_> {
    /// Writes the card of the model in a directory.
    ///
    /// # Errors
    /// A directory that cannot be read or written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let config = crate::checkpoint::read_object(&dir.join("config.json"))?;
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let weights = files.filter(|e| e.path().extension().is_some_and(|x| x == "safetensors"));
        let bytes: u64 = weights.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
        let text = self.text(&config, bytes);
        let mut file = AtomicFile::create(dir.join("README.md"), "convert", text.len() as u64)?;
        file.write(text.as_bytes())?;
        file.commit()
    }

    fn text(&self, config: &Map<String, Value>, bytes: u64) -> String {
        let mut out = front(self.source.unwrap_or_default(), self.base);
        let from = match self.base {
            Some(base) => format!(" from [{base}](https://huggingface.co/{base})"),
            None => String::new(),
        };
        let (version, command) = (env!("CARGO_PKG_VERSION"), self.command);
        out.push_str(&format!("\nConverted{from} with lapis {version}:\n\n    {command}\n\n"));
        out.push_str(&format!("Weights: {}, {:.3} bits each", human(bytes), self.bits_per_weight));
        out.push_str(&match config.get("quantization").and_then(Value::as_object) {
            Some(block) => format!(" ({}).\n", packing(block)),
            None => ".\n".to_string(),
        });
        if let Some(measured) = self.measured {
            out.push_str(&format!("\n{measured}\n"));
        }
        let licence = licence(self.source.unwrap_or_default());
        out.push_str(&match licence.as_deref() {
            Some(licence) => format!("\nLicence: {licence}, that of the source.\n"),
            None => "\nLicence: the source does not say.\n".to_string(),
        });
        out
    }
}

/// `affine 4 bits in groups of 64, other widths for 14 layers`.
fn packing(block: &Map<String, Value>) -> String {
    let number = |key: &str| block.get(key).and_then(Value::as_u64).unwrap_or(0);
    let mode = block.get("mode").and_then(Value::as_str).unwrap_or("affine");
    let base = format!("{mode}, {} bits in groups of {}", number("bits"), number("group_size"));
    let own = |v: &Value| v.get("bits").is_some_and(|b| b.as_u64() != Some(number("bits")));
    match block.values().filter(|v| own(v)).count() {
        0 => base,
        n => format!("{base}; other widths for {n} layers"),
    }
}

/// The front matter of a card, with what says that the model is for MLX.
fn front(source: &str, base: Option<&str>) -> String {
    let mut lines = source.lines();
    let inside: Vec<&str> = match lines.next().map(str::trim_end) {
        Some("---") => lines.take_while(|l| l.trim_end() != "---").collect(),
        _ => Vec::new(),
    };
    // A key at the left margin, and what belongs to it.
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    for line in inside {
        let key = !line.starts_with([' ', '-', '#', '\t']) && line.contains(':');
        match blocks.last_mut() {
            Some(block) if !key => block.push(line),
            _ => blocks.push(vec![line]),
        }
    }
    let key = |block: &Vec<&str>| block[0].split(':').next().unwrap_or_default().trim().to_string();
    let tags: Vec<String> = blocks.iter().filter(|b| key(b) == "tags").flat_map(|b| items(b)).collect();
    let mut replaced = vec!["library_name", "pipeline_tag", "tags"];
    replaced.extend(base.map(|_| "base_model"));
    let mut out = String::from("---\n");
    for line in blocks.iter().filter(|b| !replaced.contains(&key(b).as_str())).flatten() {
        out.push_str(&format!("{line}\n"));
    }
    out.push_str("library_name: mlx\npipeline_tag: text-generation\n");
    out.push_str(&base.map(|b| format!("base_model: {b}\n")).unwrap_or_default());
    out.push_str("tags:\n");
    for tag in tags.iter().map(String::as_str).filter(|t| *t != "mlx").chain(["mlx"]) {
        out.push_str(&format!("- {tag}\n"));
    }
    out + "---\n"
}

/// The licence that the front matter of a card names.
fn licence(source: &str) -> Option<String> {
    let inside = source.strip_prefix("---")?.lines().skip(1).take_while(|line| line.trim_end() != "---");
    let value = |key: &str| {
        let line = inside.clone().find_map(|line| line.strip_prefix(key))?;
        let value = line.trim().trim_matches(['"', '\'']).to_string();
        (!value.is_empty()).then_some(value)
    };
    // Of one that has no name of its own, what it is called.
    value("license:").filter(|name| name != "other").or_else(|| value("license_name:")).or_else(|| value("license:"))
}

/// The entries of a list, in either of YAML's forms.
fn items(block: &[&str]) -> Vec<String> {
    let first = block[0].split_once(':').map_or("", |(_, rest)| rest).trim();
    let inline = first.trim_start_matches('[').trim_end_matches(']').split(',');
    let below = block[1..].iter().map(|l| l.trim().trim_start_matches('-'));
    let all = inline.chain(below).map(|i| i.trim().to_string());
    all.filter(|i| !i.is_empty() && !i.starts_with('#')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_front_matter_of_the_source_goes_along() {
        let source = "---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\ntags:\n- chat\nlibrary_name: transformers\n\
                      base_model:\n  - other/thing\n---\n# Title\n\ntext\n";
        let config = json!({"quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 6, "group_size": 64}}});
        let card = Card {
            source: Some(source),
            base: Some("a/b"),
            command: "lapis convert -q",
            bits_per_weight: 4.5,
            measured: Some("Perplexity 3."),
        };
        let text = card.text(config.as_object().unwrap(), 3 << 20);
        let want = "---\nlicense: apache-2.0\nlanguage:\n- en\n- fr\nlibrary_name: mlx\npipeline_tag: text-generation\n\
                    base_model: a/b\ntags:\n- chat\n- mlx\n---\n";
        assert!(text.starts_with(want), "{text}");
        for part in [
            "[a/b](https://huggingface.co/a/b)",
            "    lapis convert -q",
            "3.0 MiB, 4.500 bits",
            "for 1 layers",
            "\nPerplexity 3.\n",
            "Licence: apache-2.0",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("Title"));
    }

    #[test]
    fn cards_without_front_matter_get_one() {
        let bare = "---\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n---\n";
        for source in ["", "# Title\n---\nlicense: x\n---\n", "---\ntags: [mlx]\n---\n", "---"] {
            assert_eq!(front(source, None), bare, "{source:?}");
        }
        for (source, name) in [
            ("---\nlicense: other\nlicense_name: 'llama 3'\n---\n", Some("llama 3")),
            ("---\nlicense: other\n---\n", Some("other")),
            ("---\ntags: []\n---\nlicense: mit\n", None),
            ("license: mit\n", None),
        ] {
            assert_eq!(licence(source).as_deref(), name, "{source:?}");
        }
        assert!(front("---\ntags: [a, b]\n", None).contains("- a\n- b\n- mlx\n"));
    }
}
