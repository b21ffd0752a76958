//! Products of matrices and tensors.

use crate::call::{Call, Outcome, narrow, one, positions};
use lapis::ops::{self, Contraction};
use lapis::{Array, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    if c.op == "einsum_path" {
        let path = ops::einsum_path(c.attrs.text("subscripts").unwrap(), &c.arrays().iter().collect::<Vec<_>>());
        return Some(path.map(|(steps, _)| steps.iter().map(|step| positions(step)).collect()));
    }
    one(product(c)?)
}

fn product(c: &Call) -> Option<Result<Array>> {
    let number = |name, default| c.attrs.float(name).unwrap_or(default);
    Some(match c.op {
        "matmul" => ops::matmul(&c.array(0), &c.array(1)),
        "addmm" => ops::addmm(&c.array(0), &c.array(1), &c.array(2), number("alpha", 1.0), number("beta", 1.0)),
        "inner" => ops::inner(&c.array(0), &c.array(1)),
        "outer" => ops::outer(&c.array(0), &c.array(1)),
        "kron" => ops::kron(&c.array(0), &c.array(1)),
        "vecdot" => ops::vecdot(&c.array(0), &c.array(1), c.axis("axis", -1)),
        "tensordot" => ops::tensordot(&c.array(0), &c.array(1), contraction(c)),
        "einsum" => ops::einsum(c.attrs.text("subscripts").unwrap(), &c.arrays().iter().collect::<Vec<_>>()),
        "hadamard_transform" => ops::hadamard_transform(&c.array(0), c.attrs.float("scale")),
        "block_masked_mm" => c.count("block_size").and_then(|size| {
            let masks = [c.maybe(2), c.maybe(3), c.maybe(4)];
            let [out, lhs, rhs] = masks.each_ref().map(Option::as_ref);
            ops::block_masked_mm(&c.array(0), &c.array(1), size.unwrap_or(64), out, lhs, rhs)
        }),
        "gather_mm" => {
            let sorted = c.attrs.flag("sorted_indices");
            ops::gather_mm(&c.array(0), &c.array(1), c.maybe(2).as_ref(), c.maybe(3).as_ref(), sorted)
        }
        "segmented_mm" => ops::segmented_mm(&c.array(0), &c.array(1), &c.array(2)),
        _ => return None,
    })
}

fn contraction(c: &Call) -> Contraction {
    if !c.attrs.is_list("axes") {
        return Contraction::Count(c.attrs.int("axes").map_or(2, |n| n as usize));
    }
    let lists: Vec<Vec<i32>> =
        c.attrs.lists("axes").unwrap().into_iter().map(|l| l.into_iter().map(narrow).collect()).collect();
    Contraction::Pairs(lists[0].clone(), lists[1].clone())
}
