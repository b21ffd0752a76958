//! The subscripts of an Einstein summation: which axis of which operand is which label.

use crate::error::{Error, Result};
use crate::shape::show;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// A letter, or an axis under an ellipsis (counted from the right, above all letters).
pub(super) type Label = u32;
/// The labels of an operand's axes.
pub(super) type Labels = SmallVec<[Label; 8]>;

/// The label of no axis; its size is 1.
pub(super) const ONE: Label = 0;
const ELLIPSIS: Label = 256;

/// Parsed subscripts beside the shapes they are for.
pub(super) struct Subscripts {
    /// Labels of each operand, one an axis.
    pub(super) inputs: Vec<Labels>,
    /// Labels of the output, distinct.
    pub(super) output: Labels,
    /// The subscripts in explicit form.
    pub(super) text: String,
    sizes: FxHashMap<Label, usize>,
}

impl Subscripts {
    /// Size of a label's axis after broadcasting.
    pub(super) fn size(&self, label: Label) -> usize {
        self.sizes.get(&label).copied().unwrap_or(1)
    }

    pub(super) fn parse(op: &str, text: &str, shapes: &[&[usize]]) -> Result<Subscripts> {
        let fail = |what: String| Error::value(format!("[{op}] {what} in the subscripts {text:?}"));
        let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match plain.split_once("->") {
            Some((l, r)) => (l, Some(r)),
            None => (plain.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != shapes.len() {
            return Err(fail(format!("{} operands for {} terms", shapes.len(), terms.len())));
        }
        let mut spec =
            Subscripts { inputs: Vec::new(), output: Labels::new(), text: String::new(), sizes: FxHashMap::default() };
        let mut widest = 0;
        for (i, (term, shape)) in terms.iter().zip(shapes).enumerate() {
            let (before, after) = letters(term).map_err(&fail)?;
            let named = before.len() + after.as_ref().map_or(0, Labels::len);
            if named > shape.len() || (after.is_none() && named < shape.len()) {
                let s = show(shape);
                let text = format!("[{op}] {named} letters for operand {i} of shape {s} in the subscripts {text:?}");
                return Err(Error::shape(text));
            }
            let hidden = shape.len() - named;
            let mut labels = before;
            if let Some(after) = after {
                widest = widest.max(hidden);
                labels.extend((0..hidden).rev().map(|d| ELLIPSIS + d as Label));
                labels.extend(after);
            }
            for (axis, (&l, &d)) in labels.iter().zip(*shape).enumerate() {
                let twin = labels[..axis].iter().position(|&m| m == l);
                let known = spec.sizes.entry(l).or_insert(d);
                let differs_from_twin = twin.is_some_and(|t| shape[t] != d);
                if differs_from_twin || (*known != d && *known != 1 && d != 1) {
                    let (s, name) = (show(shape), name(l));
                    let text =
                        format!("[{op}] axis {axis} ({name}) of operand {i} with shape {s} does not fit size {known}");
                    return Err(Error::shape(text));
                }
                if *known == 1 {
                    *known = d;
                }
            }
            spec.inputs.push(labels);
        }
        let hidden = (0..widest).rev().map(|d| ELLIPSIS + d as Label);
        spec.output = match right {
            Some(right) => {
                let (mut output, after) = letters(right).map_err(&fail)?;
                if let Some(after) = after {
                    output.extend(hidden);
                    output.extend(after);
                }
                if let Some(l) = output.iter().find(|l| !spec.sizes.contains_key(l)) {
                    return Err(fail(format!("the output letter {} is in no operand", name(*l))));
                }
                if let Some(i) = (1..output.len()).find(|&i| output[..i].contains(&output[i])) {
                    return Err(fail(format!("the letter {} is repeated in the output", name(output[i]))));
                }
                output
            }
            None => {
                let all: Labels = spec.inputs.iter().flatten().copied().filter(|&l| l < ELLIPSIS).collect();
                let mut once: Labels =
                    all.iter().copied().filter(|l| all.iter().filter(|m| *m == l).count() == 1).collect();
                once.sort_unstable();
                hidden.chain(once).collect()
            }
        };
        let output = match right {
            Some(right) => right.to_string(),
            None => {
                let dots = if left.contains("...") { "..." } else { "" };
                spec.output.iter().filter(|&&l| l < ELLIPSIS).fold(dots.to_string(), |s, &l| s + &name(l))
            }
        };
        spec.text = format!("{left}->{output}");
        Ok(spec)
    }
}

/// How messages call a label.
fn name(l: Label) -> String {
    if l >= ELLIPSIS { "...".into() } else { char::from(l as u8).to_string() }
}

/// The labels before and, when there is an ellipsis, after it.
fn letters(term: &str) -> std::result::Result<(Labels, Option<Labels>), String> {
    let read = |part: &str| -> std::result::Result<Labels, String> {
        part.chars()
            .map(|c| if c.is_ascii_alphabetic() { Ok(c as Label) } else { Err(format!("{c:?} is not a letter")) })
            .collect()
    };
    match term.split_once("...") {
        Some((before, after)) => Ok((read(before)?, Some(read(after)?))),
        None => Ok((read(term)?, None)),
    }
}
