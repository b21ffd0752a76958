//! The order of contractions: exact search over subsets for few operands, greedy beyond.
//!
//! Knows label sets and sizes only. The cost of a step is the number of multiplications: the product of the sizes of
//! all labels that take part.

use super::subscripts::{Label, Subscripts};
use std::fmt::Write;

/// Most operands that are searched exactly: 3^8 splits.
const EXACT: usize = 8;

/// Pairs to contract, as positions (first below second) in a list that loses both and gains their result at its end.
pub(super) struct Path {
    pub(super) pairs: Vec<(usize, usize)>,
}

/// A set of labels: the labels of a summation, numbered, as bits.
type Set = u128;

/// Labels as bits, beside their sizes.
struct Problem {
    sizes: Vec<f64>,
    terms: Vec<Set>,
    output: Set,
}

impl Problem {
    fn new(spec: &Subscripts) -> Problem {
        let mut labels: Vec<Label> = spec.inputs.iter().flatten().copied().collect();
        labels.sort_unstable();
        labels.dedup();
        // More than 128 labels: the rest count as size 1, the order is merely less well chosen.
        let set = |ls: &[Label]| {
            ls.iter().filter_map(|l| labels.binary_search(l).ok()).filter(|&i| i < 128).fold(0, |s, i| s | 1 << i)
        };
        let terms = spec.inputs.iter().map(|ls| set(ls)).collect();
        let output = set(&spec.output);
        Problem { sizes: labels.iter().map(|&l| spec.size(l) as f64).collect(), terms, output }
    }

    fn volume(&self, set: Set) -> f64 {
        let labels = (0..self.sizes.len().min(128)).filter(|i| set >> i & 1 == 1);
        labels.map(|i| self.sizes[i]).product()
    }

    /// Multiplications, and additions where something is summed.
    fn flops(&self, all: Set, kept: Set, terms: usize) -> f64 {
        let factor = terms.saturating_sub(1).max(1) + usize::from(all & !kept != 0);
        self.volume(all) * factor as f64
    }
}

impl Path {
    pub(super) fn choose(spec: &Subscripts) -> Path {
        let n = spec.inputs.len();
        if n < 2 {
            return Path { pairs: Vec::new() };
        }
        if n == 2 {
            return Path { pairs: vec![(0, 1)] };
        }
        let problem = Problem::new(spec);
        if n <= EXACT { exact(&problem) } else { greedy(&problem) }
    }

    /// The text of `einsum_path`.
    pub(super) fn report(&self, spec: &Subscripts) -> String {
        let problem = Problem::new(spec);
        let all = problem.terms.iter().fold(0, |s, t| s | t);
        let naive = problem.flops(all, problem.output, problem.terms.len());
        let (mut scaling, mut flops) = (0, 0.0);
        let mut terms = problem.terms.clone();
        for &(i, j) in &self.pairs {
            let pair = terms.remove(j) | terms.remove(i);
            let kept = terms.iter().fold(problem.output, |s, t| s | t);
            scaling = scaling.max(pair.count_ones());
            flops += problem.flops(pair, kept, 2);
            terms.push(pair & kept);
        }
        if self.pairs.is_empty() {
            (scaling, flops) = (all.count_ones(), naive);
        }
        let mut text = String::new();
        let _ = writeln!(text, "  Complete contraction:  {}", spec.text);
        let _ = writeln!(text, "         Naive scaling:  {}", all.count_ones());
        let _ = writeln!(text, "     Optimized scaling:  {scaling}");
        let _ = writeln!(text, "      Naive FLOP count:  {naive}");
        let _ = writeln!(text, "  Optimized FLOP count:  {flops}");
        text
    }
}

/// The cheapest tree: the best split of every subset of operands, smaller subsets first.
fn exact(problem: &Problem) -> Path {
    let n = problem.terms.len();
    let full = (1usize << n) - 1;
    let union = |subset: usize| (0..n).filter(|i| subset >> i & 1 == 1).fold(0, |s, i| s | problem.terms[i]);
    // What a subset's result keeps: labels that others or the output have.
    let kept = |subset: usize| union(subset) & (union(full & !subset) | problem.output);
    let results: Vec<Set> = (0..=full).map(kept).collect();
    let mut best = vec![(f64::INFINITY, 0usize); full + 1];
    for subset in 1..=full {
        if subset.is_power_of_two() {
            best[subset].0 = 0.0;
            continue;
        }
        let lowest = subset & subset.wrapping_neg();
        let mut part = (subset - 1) & subset;
        while part > 0 {
            // Each split once: the half with the lowest operand.
            if part & lowest != 0 {
                let rest = subset & !part;
                let step = problem.volume(results[part] | results[rest]);
                let cost = best[part].0 + best[rest].0 + step;
                if cost < best[subset].0 || best[subset].1 == 0 {
                    best[subset] = (cost, part);
                }
            }
            part = (part - 1) & subset;
        }
    }
    let mut order = Vec::new();
    let mut open = vec![full];
    while let Some(subset) = open.pop() {
        if !subset.is_power_of_two() {
            let part = best[subset].1;
            order.push((part, subset & !part));
            open.extend([part, subset & !part]);
        }
    }
    // Positions: replay the tree from its leaves.
    let mut list: Vec<usize> = (0..n).map(|i| 1 << i).collect();
    let mut pairs = Vec::new();
    for (a, b) in order.into_iter().rev() {
        let at = |s: usize, list: &[usize]| list.iter().position(|&x| x == s).unwrap_or(0);
        let (i, j) = (at(a, &list), at(b, &list));
        let (i, j) = (i.min(j), i.max(j));
        list.remove(j);
        list.remove(i);
        list.push(a | b);
        pairs.push((i, j));
    }
    Path { pairs }
}

/// Always the pair whose result grows memory least, then the cheapest.
fn greedy(problem: &Problem) -> Path {
    let mut terms = problem.terms.clone();
    let mut pairs = Vec::new();
    while terms.len() > 1 {
        let mut best: Option<(f64, f64, usize, usize)> = None;
        for j in 1..terms.len() {
            for i in 0..j {
                let others = (0..terms.len()).filter(|&o| o != i && o != j);
                let kept = others.fold(problem.output, |s, o| s | terms[o]);
                let pair = terms[i] | terms[j];
                let growth = problem.volume(pair & kept) - problem.volume(terms[i]) - problem.volume(terms[j]);
                let cost = problem.volume(pair);
                if best.is_none_or(|(g, c, _, _)| (growth, cost) < (g, c)) {
                    best = Some((growth, cost, i, j));
                }
            }
        }
        let Some((_, _, i, j)) = best else { break };
        let pair = terms.remove(j) | terms.remove(i);
        let kept = terms.iter().fold(problem.output, |s, t| s | t);
        terms.push(pair & kept);
        pairs.push((i, j));
    }
    Path { pairs }
}
