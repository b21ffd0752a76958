//! SmolLM 3: a Llama whose every fourth layer has no positions.

use super::Architecture;
use super::dense::Dense;
use lapis::Error;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["smollm3"], |config, at| {
    let mut d = Dense::read(config, json!({ "no_rope_layer_interval": 4 }))?;
    let n = d.heads.len();
    let interval: usize = d.settings.need("no_rope_layer_interval")?;
    let usual = || (1..=n).map(|i| usize::from(interval == 0 || i % interval != 0)).collect();
    let turned: Vec<usize> = d.settings.get("no_rope_layers")?.unwrap_or_else(usual);
    if turned.len() != n {
        let m = turned.len();
        return Err(Error::value(format!("[load] config.json: no_rope_layers: {m} numbers for {n} layers")));
    }
    for (heads, turned) in d.heads.iter_mut().zip(turned) {
        heads.rope = heads.rope.take().filter(|_| turned != 0);
    }
    Ok(Box::new(d.load(at)?))
});
