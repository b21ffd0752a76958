//! Gathers what an evaluation has to compute: claims lazy nodes and numbers them in topological order.
//!
//! Ids increase as nodes are built, so sorting by id is a topological order; no traversal recurses. One collection
//! runs at a time (the caller holds the submission lock), so claims of two evaluations never interleave and waiting
//! for another evaluation's nodes cannot become a circle.

use crate::array::Array;
use crate::node::{Inputs, Node};
use crate::stream::Stream;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An input of an entry: an output of another entry, or of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Edge {
    pub(super) leaf: bool,
    pub(super) index: u32,
    pub(super) output: u32,
}

/// A claimed node.
pub(super) struct Entry {
    pub(super) node: Arc<Node>,
    pub(super) edges: SmallVec<[Edge; 3]>,
    /// Whether somebody outside this evaluation holds the node, so that its result must be published. Decided once:
    /// who holds no handle now cannot get one later.
    pub(super) is_external: bool,
}

/// The claimed nodes of one stream in topological order, and the nodes they read that others compute.
pub(super) struct Graph {
    pub(super) stream: Stream,
    pub(super) entries: Vec<Entry>,
    pub(super) leaves: Vec<Arc<Node>>,
}

const LEAF: u64 = 1 << 31;

/// Claims everything lazy that `roots` need, one graph a stream.
pub(super) fn collect<'a>(roots: impl Iterator<Item = &'a Array>) -> Vec<Graph> {
    static EPOCH: AtomicU64 = AtomicU64::new(0);
    let epoch = EPOCH.fetch_add(1, Relaxed).wrapping_add(1) << 32;

    let mut claimed: Vec<(Arc<Node>, Inputs)> = Vec::new();
    for root in roots {
        if let Some(inputs) = root.node.claim() {
            claimed.push((root.node.clone(), inputs));
        }
    }
    let mut next = 0;
    while next < claimed.len() {
        for i in 0..claimed[next].1.len() {
            let node = &claimed[next].1[i].node;
            if node.done().is_none()
                && let Some(inputs) = node.claim()
            {
                let node = node.clone();
                claimed.push((node, inputs));
            }
        }
        next += 1;
    }
    claimed.sort_unstable_by_key(|(node, _)| node.id);

    let mut graphs: Vec<Graph> = Vec::new();
    let mut pending: Vec<(usize, Inputs)> = Vec::with_capacity(claimed.len());
    for (node, inputs) in claimed {
        let g = graphs.iter().position(|g| g.stream == node.stream).unwrap_or_else(|| {
            graphs.push(Graph { stream: node.stream, entries: Vec::new(), leaves: Vec::new() });
            graphs.len() - 1
        });
        node.mark.store(epoch | graphs[g].entries.len() as u64, Relaxed);
        graphs[g].entries.push(Entry { node, edges: SmallVec::new(), is_external: false });
        pending.push((g, inputs));
    }

    let mut filled: SmallVec<[usize; 2]> = SmallVec::from_elem(0, graphs.len());
    let mut shared: FxHashMap<(usize, u64), u32> = FxHashMap::default();
    let single = graphs.len() == 1;
    for (g, inputs) in pending {
        let graph = &mut graphs[g];
        let mut edges = SmallVec::new();
        for Array { node, index: output } in inputs {
            let mark = node.mark.load(Relaxed);
            let known = mark & !0xffff_ffff == epoch;
            let edge = if known && mark & LEAF == 0 && (single || node.stream == graph.stream) {
                Edge { leaf: false, index: mark as u32, output }
            } else if single && known {
                Edge { leaf: true, index: (mark & !LEAF) as u32, output }
            } else {
                let index = graph.leaves.len() as u32;
                let index = if single {
                    node.mark.store(epoch | LEAF | u64::from(index), Relaxed);
                    graph.leaves.push(node);
                    index
                } else {
                    *shared.entry((g, node.id)).or_insert_with(|| {
                        graph.leaves.push(node);
                        index
                    })
                };
                Edge { leaf: true, index, output }
            };
            edges.push(edge);
        }
        graph.entries[filled[g]].edges = edges;
        filled[g] += 1;
    }
    for entry in graphs.iter_mut().flat_map(|g| &mut g.entries) {
        entry.is_external = Arc::strong_count(&entry.node) > 1;
    }
    graphs
}
