//! Decides how a graph is computed: which elementwise nodes fuse, in which order steps run, when values die.
//!
//! A plan depends only on structure (ops, dtypes, edges, which nodes outsiders hold, which products have few rows), not on
//! shapes, values, attributes or addresses, so that equal graphs share it: the second evaluation skips all of this, also
//! where something has grown, as what a model remembers does from token to token.

use super::collect::{Edge, Graph};
use super::tape::{Instr, Src, Tape};
use crate::dtype::Dtype;
use crate::node::Node;
use crate::ops::{Class, Ew, Op};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::sync::{Arc, Mutex};

/// A numbered place for a tensor during an evaluation.
pub(super) type Slot = u32;

/// One call of the backend, or one view.
pub(super) struct Step {
    /// The node whose outputs the step makes.
    pub(super) entry: u32,
    /// First slot of its outputs.
    pub(super) out: Slot,
    /// Where inputs lie. For fused steps: the inputs of the tape.
    pub(super) inputs: SmallVec<[Slot; 4]>,
    /// The program of a fused step.
    pub(super) tape: Option<Tape>,
    /// Entries (all `Full`) that give the tape's constants.
    pub(super) consts: SmallVec<[u32; 2]>,
    /// Leaves needed here for the first time.
    pub(super) leaves: SmallVec<[u32; 2]>,
    /// Slots nobody needs after this step.
    pub(super) release: SmallVec<[Slot; 4]>,
    /// To be computed together with the step before: a product of the same rows, or behind products the fused step that alone reads
    /// what they give.
    pub(super) joined: bool,
    /// For a product that reads weights: the weights of the next such product, as outputs of leaves.
    pub(super) soon: SmallVec<[(u32, u32); 2]>,
}

impl Step {
    /// Whether it is the fused step behind joined products.
    pub(super) fn is_tail(&self) -> bool {
        self.joined && self.tape.is_some()
    }
}

/// Steps at the front that are computed together.
pub(super) fn group(steps: &[Step]) -> usize {
    1 + steps[1..].iter().take_while(|step| step.joined).count()
}

/// How to compute a graph.
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) slots: usize,
    /// First slot of each leaf.
    pub(super) leaf_slots: Vec<Slot>,
    /// The weights that the first product reads.
    pub(super) first_weights: SmallVec<[(u32, u32); 2]>,
}

/// The most instructions and inputs in a group: its registers and inputs should stay in the first-level cache.
const MAX_INSTRS: u32 = 64;
const MAX_INPUTS: u32 = 12;

/// Plans that were used lately. When the young ones take half of the room they become the old ones, and the old ones
/// that nobody asked for since are dropped: graphs whose shapes change from step to step do not push out those that stay.
#[derive(Default)]
struct Cache {
    young: FxHashMap<Box<[u64]>, Arc<Plan>>,
    old: FxHashMap<Box<[u64]>, Arc<Plan>>,
    /// Of the young.
    bytes: usize,
}

/// Bytes of all plans that are kept.
const ROOM: usize = 64 << 20;

impl Cache {
    fn get(&mut self, key: &[u64]) -> Option<Arc<Plan>> {
        if let Some(plan) = self.young.get(key) {
            return Some(plan.clone());
        }
        let (key, plan) = self.old.remove_entry(key)?;
        self.put(key, plan.clone());
        Some(plan)
    }

    fn put(&mut self, key: Box<[u64]>, plan: Arc<Plan>) {
        let bytes = plan.bytes() + size_of_val(&*key);
        if self.bytes + bytes > ROOM / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        if bytes <= ROOM / 2 {
            self.bytes += bytes;
            self.young.insert(key, plan);
        }
    }
}

impl Plan {
    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        let tapes = self.steps.iter().filter_map(|step| step.tape.as_ref());
        size_of_val(&*self.steps)
            + size_of_val(&*self.leaf_slots)
            + tapes.map(|t| 64 + size_of_val(&*t.instrs)).sum::<usize>()
    }
}

/// The plan of `graph`, from the cache if an equal graph was planned before.
pub(super) fn plan(graph: &Graph) -> Arc<Plan> {
    static CACHE: Mutex<Option<Cache>> = Mutex::new(None);
    let cached = || CACHE.lock().unwrap_or_else(|e| e.into_inner());
    let key = key(graph);
    if let Some(plan) = cached().get_or_insert_default().get(&key) {
        return plan;
    }
    let plan = Arc::new(build(graph));
    cached().get_or_insert_default().put(key.into_boxed_slice(), plan.clone());
    plan
}

/// Everything a plan depends on.
fn key(graph: &Graph) -> Vec<u64> {
    let mut key = Vec::with_capacity(graph.entries.len() * 4 + 1);
    // Slots of leaves follow from how many outputs each has: nearly always one.
    let wide = || graph.leaves.iter().enumerate().filter(|(_, leaf)| leaf.outs.len() != 1);
    key.push(graph.leaves.len() as u64 | (wide().count() as u64) << 32);
    key.extend(wide().map(|(i, leaf)| i as u64 | (leaf.outs.len() as u64) << 32));
    for entry in &graph.entries {
        let node = &entry.node;
        let (tag, to) = match &node.op {
            Op::Elementwise(e) => (e.op as u64 + 8, e.to as u64),
            op => {
                let weights = u64::from(op.reads_weights()) << 1 | u64::from(reads_ahead(node)) << 2;
                (op.class() as u64, u64::from(op.shares_left()) | weights)
            }
        };
        let head = tag | to << 8 | u64::from(entry.is_external) << 16 | (node.outs.len() as u64) << 20;
        key.push(head | (entry.edges.len() as u64) << 40);
        for e in &entry.edges {
            let dtype = edge_dtype(graph, *e) as u64;
            key.push(u64::from(e.index) | u64::from(e.output) << 32 | dtype << 56 | u64::from(e.leaf) << 63);
        }
    }
    key
}

fn edge_dtype(graph: &Graph, e: Edge) -> Dtype {
    let node = if e.leaf { &graph.leaves[e.index as usize] } else { &graph.entries[e.index as usize].node };
    node.outs[e.output as usize].dtype
}

/// What is known about the consumers of a node.
#[derive(Clone, Copy, PartialEq)]
enum Consumers {
    None,
    /// All are members of this group.
    Group(u32),
    Several,
}

/// Group of each elementwise or reducing node, by the index of the group's last node.
fn groups(graph: &Graph) -> Vec<u32> {
    const NONE: u32 = u32::MAX;
    let n = graph.entries.len();
    let mut group = vec![NONE; n];
    let mut consumers = vec![Consumers::None; n];
    let mut instrs = vec![0u32; n];
    let mut inputs = vec![0u32; n];
    for i in (0..n).rev() {
        let entry = &graph.entries[i];
        let class = entry.node.op.class();
        let fusable = matches!(class, Class::Elementwise | Class::Reduce);
        if fusable {
            group[i] = i as u32;
            if let Consumers::Group(g) = consumers[i]
                && class == Class::Elementwise
                && !entry.is_external
                && instrs[g as usize] < MAX_INSTRS
                && inputs[g as usize] + entry.edges.len() as u32 <= MAX_INPUTS + 1
            {
                group[i] = g;
            }
            let g = group[i] as usize;
            instrs[g] += 1;
            inputs[g] += entry.edges.len() as u32;
            inputs[g] -= u32::from(g != i);
        }
        for e in entry.edges.iter().filter(|e| !e.leaf) {
            let c = &mut consumers[e.index as usize];
            *c = match *c {
                _ if !fusable => Consumers::Several,
                Consumers::None => Consumers::Group(group[i]),
                Consumers::Group(g) if g == group[i] => Consumers::Group(g),
                _ => Consumers::Several,
            };
        }
    }
    group
}

fn build(graph: &Graph) -> Plan {
    let n = graph.entries.len();
    let group = groups(graph);

    let mut slot = 0;
    let mut first_slot = Vec::with_capacity(n);
    for entry in &graph.entries {
        first_slot.push(slot);
        slot += entry.node.outs.len() as Slot;
    }
    let mut leaf_slots = Vec::with_capacity(graph.leaves.len());
    for leaf in &graph.leaves {
        leaf_slots.push(slot);
        slot += leaf.outs.len() as Slot;
    }
    let slot_of = |e: &Edge| (if e.leaf { &leaf_slots } else { &first_slot })[e.index as usize] + e.output;

    // Members of each group in topological order; a fill is only a step when something but a tape wants it.
    let mut members: Vec<SmallVec<[u32; 2]>> = vec![SmallVec::new(); n];
    let mut wanted: Vec<bool> = graph.entries.iter().map(|e| e.is_external).collect();
    for (i, entry) in graph.entries.iter().enumerate() {
        match entry.node.op.class() {
            Class::Elementwise | Class::Reduce => members[group[i] as usize].push(i as u32),
            _ => {}
        }
        if entry.node.op.class() != Class::Elementwise {
            entry.edges.iter().filter(|e| !e.leaf).for_each(|e| wanted[e.index as usize] = true);
        }
    }

    let mut builder = TapeBuilder::new(n);
    let mut steps: Vec<Step> = Vec::with_capacity(n.min(1 << 16));
    for (i, entry) in graph.entries.iter().enumerate() {
        let mut step = Step {
            entry: i as u32,
            out: first_slot[i],
            inputs: SmallVec::new(),
            tape: None,
            consts: SmallVec::new(),
            leaves: SmallVec::new(),
            release: SmallVec::new(),
            joined: false,
            soon: SmallVec::new(),
        };
        match entry.node.op.class() {
            Class::Elementwise | Class::Reduce if group[i] as usize != i => continue,
            Class::Elementwise | Class::Reduce => builder.build(graph, &members[i], &slot_of, &mut step),
            Class::Full if !wanted[i] => continue,
            _ => step.inputs = entry.edges.iter().map(slot_of).collect(),
        }
        steps.push(step);
    }
    let mut steps = join(steps, graph, leaf_slots.first().copied().unwrap_or(slot));
    lifetimes(&mut steps, graph, slot as usize, &leaf_slots);
    let first_weights = foresee(&mut steps, graph, &leaf_slots);
    steps.shrink_to_fit();
    Plan { steps, slots: slot as usize, leaf_slots, first_weights }
}

/// Rows of a product up to which reading its weights is what takes the time.
const FEW_ROWS: usize = 16;

/// Whether what a product takes is the time to read its weights.
fn reads_ahead(node: &Node) -> bool {
    node.op.reads_weights() && node.outs[0].shape.iter().rev().skip(1).product::<usize>() <= FEW_ROWS
}

/// Fills in what products read next; behind the last stands the first, because a plan often runs again. Returns what the
/// first one reads.
fn foresee(steps: &mut [Step], graph: &Graph, leaf_slots: &[Slot]) -> SmallVec<[(u32, u32); 2]> {
    // Which output of which leaf a slot shows.
    let mut shown: FxHashMap<Slot, (u32, u32)> = FxHashMap::default();
    for (l, (&slot, leaf)) in leaf_slots.iter().zip(&graph.leaves).enumerate() {
        shown.extend((0..leaf.outs.len() as u32).map(|o| (slot + o, (l as u32, o))));
    }
    let mut products: Vec<(usize, SmallVec<[(u32, u32); 2]>)> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let node = &graph.entries[step.entry as usize].node;
        if node.op.class() == Class::View {
            if let Some(&leaf) = shown.get(&step.inputs[0]) {
                shown.insert(step.out, leaf);
            }
        } else if reads_ahead(node)
            && let Some(&leaf) = shown.get(&step.inputs[1])
        {
            match products.last_mut() {
                Some((_, leaves)) if step.joined => leaves.push(leaf),
                _ => products.push((i, SmallVec::from_slice(&[leaf]))),
            }
        }
    }
    for (n, &(i, _)) in products.iter().enumerate() {
        steps[i].soon = products[(n + 1) % products.len()].1.clone();
    }
    products.into_iter().next().map(|(_, leaves)| leaves).unwrap_or_default()
}

/// Moves products with the same first input behind the first of them, where all else that they read is a leaf (slots from `leaves`
/// on), and behind these the fused step that alone reads what they give, where there is one and there are many rows.
fn join(steps: Vec<Step>, graph: &Graph, leaves: Slot) -> Vec<Step> {
    let joins = |step: &Step| {
        let shares = graph.entries[step.entry as usize].node.op.shares_left();
        shares && step.inputs[1..].iter().all(|&slot| slot >= leaves)
    };
    // Steps by the first of their run, by the slot of what they share.
    let mut first = FxHashMap::default();
    let mut runs: FxHashMap<usize, SmallVec<[usize; 3]>> = FxHashMap::default();
    for (i, step) in steps.iter().enumerate().filter(|(_, step)| joins(step)) {
        let start = *first.entry(step.inputs[0]).or_insert(i);
        runs.entry(start).or_default().push(i);
    }
    if runs.is_empty() {
        return steps;
    }
    tails(&steps, graph, leaves, &mut runs);
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    let mut out = Vec::with_capacity(steps.len());
    for i in 0..steps.len() {
        out.extend(steps[i].take());
        for &j in runs.get(&i).into_iter().flatten() {
            out.extend(steps[j].take().map(|step| Step { joined: true, ..step }));
        }
    }
    out
}

/// Puts the fused step behind each run of products that nobody else wants the results of.
fn tails(steps: &[Step], graph: &Graph, leaves: Slot, runs: &mut FxHashMap<usize, SmallVec<[usize; 3]>>) {
    // What makes a slot, and who reads it.
    let mut maker: FxHashMap<Slot, usize> = FxHashMap::default();
    let mut readers: FxHashMap<Slot, SmallVec<[usize; 2]>> = FxHashMap::default();
    for (i, step) in steps.iter().enumerate() {
        let outs = graph.entries[step.entry as usize].node.outs.len() as Slot;
        maker.extend((step.out..step.out + outs).map(|slot| (slot, i)));
        step.inputs.iter().for_each(|&slot| readers.entry(slot).or_default().push(i));
    }
    for (&start, run) in runs {
        let Some(&[tail]) = readers.get(&steps[start].out).map(|all| &all[..]) else { continue };
        let step = &steps[tail];
        let fuses = step.tape.is_some() && graph.entries[step.entry as usize].node.op.class() == Class::Elementwise;
        let hidden = |&i: &usize| {
            let entry = &graph.entries[steps[i].entry as usize];
            !entry.is_external
                && !reads_ahead(&entry.node)
                && readers.get(&steps[i].out).is_some_and(|r| r[..] == [tail])
        };
        // What else it reads is there before the run begins.
        let there =
            |slot: &Slot| *slot >= leaves || maker.get(slot).is_some_and(|&made| made < start || run.contains(&made));
        if fuses && run.iter().all(hidden) && step.inputs.iter().all(there) {
            run.push(tail);
        }
    }
}

/// Fills in when leaves are first needed and slots last.
fn lifetimes(steps: &mut [Step], graph: &Graph, slots: usize, leaf_slots: &[Slot]) {
    const NEVER: u32 = u32::MAX;
    let mut leaf_of = vec![NEVER; slots];
    for (l, &slot) in leaf_slots.iter().enumerate() {
        for o in 0..graph.leaves[l].outs.len() {
            leaf_of[slot as usize + o] = l as u32;
        }
    }
    let mut loaded = vec![false; leaf_slots.len()];
    let mut last = vec![NEVER; slots];
    for (s, step) in steps.iter_mut().enumerate() {
        for &slot in &step.inputs {
            last[slot as usize] = s as u32;
            let l = leaf_of[slot as usize];
            if l != NEVER && !std::mem::replace(&mut loaded[l as usize], true) {
                step.leaves.push(l);
            }
        }
        for o in 0..graph.entries[step.entry as usize].node.outs.len() {
            last[step.out as usize + o] = s as u32;
        }
        // Outputs of a leaf that nobody reads go as soon as the leaf is loaded.
        for &l in &step.leaves {
            for o in 0..graph.leaves[l as usize].outs.len() {
                let slot = leaf_slots[l as usize] as usize + o;
                if last[slot] == NEVER {
                    last[slot] = s as u32;
                }
            }
        }
    }
    for (slot, &s) in last.iter().enumerate() {
        if s != NEVER {
            steps[s as usize].release.push(slot as Slot);
        }
    }
}

/// Writes groups as tapes, with registers reused as soon as their value is dead.
struct TapeBuilder {
    /// Register of each entry of the present group, and the instruction that reads it last.
    register: Vec<u16>,
    last_read: Vec<u32>,
}

impl TapeBuilder {
    fn new(entries: usize) -> TapeBuilder {
        TapeBuilder { register: vec![0; entries], last_read: vec![0; entries] }
    }

    fn build(&mut self, graph: &Graph, members: &[u32], slot_of: &impl Fn(&Edge) -> Slot, step: &mut Step) {
        let is_member = |e: &Edge| !e.leaf && members.binary_search(&e.index).is_ok();
        for &m in members {
            for e in graph.entries[m as usize].edges.iter().filter(|e| is_member(e)) {
                self.last_read[e.index as usize] = m;
            }
        }
        let mut tape = Tape {
            instrs: Vec::with_capacity(members.len()),
            inputs: Vec::new(),
            consts: Vec::new(),
            result: Src::Reg(0),
            registers: 0,
        };
        let mut free: SmallVec<[u16; 8]> = SmallVec::new();
        for &m in members {
            let entry = &graph.entries[m as usize];
            let mut args = [Src::Input(0); 3];
            let mut ended: SmallVec<[u16; 3]> = SmallVec::new();
            let sources = entry.edges.len().min(3);
            for (arg, e) in args.iter_mut().zip(&entry.edges) {
                *arg = if is_member(e) {
                    let reg = self.register[e.index as usize];
                    if self.last_read[e.index as usize] == m && !ended.contains(&reg) {
                        ended.push(reg);
                    }
                    Src::Reg(reg)
                } else {
                    self.outside(graph, e, slot_of, step, &mut tape)
                };
            }
            // Places without an argument repeat the first, so that every place can be looked up.
            let first = args[0];
            args[sources..].fill(first);
            let Op::Elementwise(op) = &entry.node.op else {
                // The reduction at the end of its group reads its input as it comes.
                tape.result = args[0];
                continue;
            };
            // Never where an argument stands: only loops over places that do not overlap are vectorised by compilers.
            let out = free.pop().unwrap_or_else(|| {
                tape.registers += 1;
                tape.registers - 1
            });
            free.extend(ended);
            self.register[m as usize] = out;
            let from = edge_dtype(graph, entry.edges[sources - 1]);
            debug_assert!(op.op != Ew::Select || sources == 3);
            tape.instrs.push(Instr { op: op.op, from, to: op.to, args, out });
            tape.result = Src::Reg(out);
        }
        step.tape = Some(tape);
    }

    /// An argument from outside the group: a constant, or an input of the tape.
    fn outside(
        &self,
        graph: &Graph,
        e: &Edge,
        slot_of: &impl Fn(&Edge) -> Slot,
        step: &mut Step,
        tape: &mut Tape,
    ) -> Src {
        let dtype = edge_dtype(graph, *e);
        if !e.leaf && graph.entries[e.index as usize].node.op.class() == Class::Full {
            // A reduction reads memory, not an immediate.
            let reduces = graph.entries[step.entry as usize].node.op.class() == Class::Reduce;
            let direct = graph.entries[step.entry as usize].edges.contains(e);
            if !(reduces && direct) {
                let i = step.consts.iter().position(|&c| c == e.index).unwrap_or_else(|| {
                    step.consts.push(e.index);
                    tape.consts.push(dtype);
                    step.consts.len() - 1
                });
                return Src::Const(i as u16);
            }
        }
        let slot = slot_of(e);
        let i = step.inputs.iter().position(|&s| s == slot).unwrap_or_else(|| {
            step.inputs.push(slot);
            tape.inputs.push(dtype);
            step.inputs.len() - 1
        });
        Src::Input(i as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::schedule::collect::collect;

    /// What a plan depends on, of rows that grow, are cut and summed, and of a product with weights.
    fn key_of(rows: usize, cut: i64, scale: f32) -> Vec<u64> {
        let x = ops::full(&[rows, 64], scale, Some(Dtype::Float32)).unwrap();
        let seen = ops::slice(&x, &[(None, Some(cut), 1)]).unwrap();
        let sum = ops::sum(&ops::multiply(&seen, &seen).unwrap(), 0, false).unwrap();
        let y = ops::matmul(&x, &crate::array::Array::from_vec(vec![1f32; 64 * 64], &[64, 64])).unwrap();
        let [graph] = collect([&sum, &y].into_iter()).try_into().unwrap_or_else(|_| panic!("one stream"));
        key(&graph)
    }

    #[test]
    fn what_grows_keeps_its_plan() {
        assert_eq!(key_of(2, 1, 1.0), key_of(FEW_ROWS, 7, 2.0));
        assert_eq!(key_of(FEW_ROWS + 1, 1, 1.0), key_of(4096, 4095, 1.0));
        // Weights are asked for ahead where there are few rows.
        assert_ne!(key_of(FEW_ROWS, 1, 1.0), key_of(FEW_ROWS + 1, 1, 1.0));
    }

    #[test]
    fn a_group_follows_products_of_many_rows_that_it_alone_reads() {
        let format = ops::Format::affine(4, 64).unwrap();
        let weights = || {
            let ones = |n| crate::array::Array::from_vec(vec![1f32; 32 * n], &[32, n]);
            let packed = crate::array::Array::from_vec(vec![7u32; 32 * 8], &[32, 8]);
            ops::Quantized { packed, scales: ones(1), biases: Some(ones(1)), global_scale: None, format }
        };
        let tails = |rows: usize, held: bool| {
            let x = crate::array::Array::from_vec(vec![1f32; rows * 64], &[rows, 64]);
            let more = ops::full(&[rows, 32], 2.0, Some(Dtype::Float32)).unwrap();
            let product = || ops::quantized_matmul(&x, &weights(), true).unwrap();
            let (g, u) = (product(), product());
            let y = ops::add(&ops::multiply(&g, &u).unwrap(), &ops::sin(&more).unwrap()).unwrap();
            let held = held.then_some(g);
            drop(u);
            let [graph] = collect([&y].into_iter()).try_into().unwrap_or_else(|_| panic!("one stream"));
            drop(held);
            let plan = build(&graph);
            (plan.steps.len(), plan.steps.iter().filter(|step| step.is_tail()).count())
        };
        assert_eq!(tails(FEW_ROWS + 1, false), (4, 1));
        assert_eq!(tails(FEW_ROWS, false), (4, 0), "weights are what takes the time");
        assert_eq!(tails(FEW_ROWS + 1, true), (4, 0), "somebody holds a product");
    }

    #[test]
    fn plans_in_use_stay_and_the_others_make_room() {
        let mut cache = Cache::default();
        let plan = || {
            let leaf_slots = vec![0; (1 << 20) / size_of::<Slot>()];
            Arc::new(Plan { steps: Vec::new(), slots: 0, leaf_slots, first_weights: SmallVec::new() })
        };
        let all = |cache: &Cache| cache.young.len() + cache.old.len();
        cache.put(vec![u64::MAX].into(), plan());
        for i in 0..1000 {
            cache.put(vec![i].into(), plan());
            assert!(cache.get(&[u64::MAX]).is_some() && cache.get(&[i]).is_some());
            assert!(all(&cache) << 20 <= ROOM, "{} plans of 1 MiB", all(&cache));
        }
        assert!(cache.get(&[3]).is_none() && cache.get(&[999]).is_some());
    }
}
