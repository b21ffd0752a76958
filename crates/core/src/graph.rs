//! The graph of what is still to be computed, as text for people.

use crate::array::Array;
use crate::shape::show;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The graph that named arrays stand for in the DOT language of Graphviz (`mx.export_to_dot`): a box an op, an ellipse
/// an array that is there already, and the names at the bottom. Nothing is evaluated.
pub fn to_dot(outputs: &[(&str, &Array)]) -> String {
    // By id, which is an order of building: the text does not depend on how the graph is walked.
    let mut nodes: BTreeMap<u64, (String, Vec<(u64, u32)>)> = BTreeMap::new();
    let mut open: Vec<Array> = outputs.iter().map(|(_, a)| (*a).clone()).collect();
    while let Some(a) = open.pop() {
        if nodes.contains_key(&a.node.id) {
            continue;
        }
        let outs: Vec<String> = a.node.outs.iter().map(|o| format!("{} {}", o.dtype, show(&o.shape))).collect();
        let inputs = a.node.inputs();
        let (name, shape) = if inputs.is_some() { (a.node.op.name(), "box") } else { ("array", "ellipse") };
        let label = format!("label=\"{name}\\n{}\", shape={shape}", outs.join("\\n"));
        let inputs = inputs.unwrap_or_default();
        nodes.insert(a.node.id, (label, inputs.iter().map(|i| (i.node.id, i.index)).collect()));
        open.extend(inputs);
    }
    let number: BTreeMap<u64, usize> = nodes.keys().enumerate().map(|(i, &id)| (id, i)).collect();
    let mut out = String::from("digraph {\n");
    let _ = nodes.iter().try_for_each(|(id, (label, inputs))| {
        writeln!(out, "  n{} [{label}];", number[id])?;
        inputs.iter().try_for_each(|(from, output)| {
            let which = if *output == 0 { String::new() } else { format!(" [label={output}]") };
            writeln!(out, "  n{} -> n{}{which};", number[from], number[id])
        })
    });
    for (i, (name, a)) in outputs.iter().enumerate() {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        let _ = writeln!(out, "  o{i} [label=\"{name}\", shape=plaintext];\n  n{} -> o{i};", number[&a.node.id]);
    }
    out.push_str("}\n");
    out
}
