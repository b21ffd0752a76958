//! EXAONE 4: norms after the parts of a layer and of each head; layers behind a window have positions, the others none,
//! where a pattern says which are which.

use super::Architecture;
use super::dense::{Dense, Order, Over};
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["exaone4"], |config, at| {
    let mut d = Dense::read(config, json!({}))?;
    let window = d.window()?;
    // One letter a layer, again and again: L looks at a window, G at everything.
    let pattern: String = d.settings.get("sliding_window_pattern")?.unwrap_or_default();
    for (heads, kind) in d.heads.iter_mut().zip(pattern.chars().cycle()) {
        heads.window = window.filter(|_| kind == 'L');
        heads.rope = heads.rope.take().filter(|_| kind == 'L');
    }
    d.order = Order::After;
    d.head_norms = Over::Each;
    Ok(Box::new(d.load(at)?))
});
