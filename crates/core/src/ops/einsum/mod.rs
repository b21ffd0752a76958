//! Einstein summation: subscripts become transposes, batched matrix products and sums.
//!
//! Each operand is first simplified alone (diagonals of repeated letters, sums over letters nobody else has, axes of
//! size 1 that others stretch); then pairs are contracted in the order that `path` chooses.

mod path;
mod subscripts;

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::matmul::product_dtype;
use crate::ops::products::dot_last;
use crate::ops::view::{drop_axes, permute, reshape_to};
use crate::ops::{as_strided, astype, matmul, multiply, sum};
use crate::shape::{Axes, Shape, row_strides};
use path::Path;
use smallvec::SmallVec;
use subscripts::{Label, Labels, Subscripts};

/// Sums of products as `subscripts` say (`mx.einsum`): `"ij,jk->ik"`, `"...ii"`, `"i,j"`. Letters name axes, `...`
/// stands for further axes that broadcast, a letter repeated in one operand takes its diagonal. Without `->` the
/// output has the ellipsis and then, in alphabetical order, the letters that occur once.
///
/// The cheapest order of contractions is taken (exactly for up to 8 operands, greedily beyond). Integers are taken
/// as long as no two operands are contracted.
///
/// # Errors
/// Malformed subscripts, sizes that do not fit, a letter repeated in the output, integers in a contraction.
pub fn einsum(subscripts: &str, operands: &[&Array]) -> Result<Array> {
    let shapes: Vec<&[usize]> = operands.iter().map(|a| a.shape()).collect();
    let spec = Subscripts::parse("einsum", subscripts, &shapes)?;
    let path = Path::choose(&spec);
    let dtype = operands.iter().map(|a| a.dtype()).reduce(Dtype::promote).unwrap_or(Dtype::Float32);
    let mut terms = Vec::with_capacity(operands.len());
    for (i, a) in operands.iter().enumerate() {
        let others = (0..operands.len()).filter(|&j| j != i).map(|j| &spec.inputs[j]);
        let kept = others.flatten().chain(&spec.output).copied().collect();
        let a = if operands.len() > 1 { astype(a, dtype)? } else { (*a).clone() };
        terms.push(simplify(Term { array: a, labels: spec.inputs[i].clone() }, &spec, &kept)?);
    }
    for &(i, j) in &path.pairs {
        let right = terms.remove(j);
        let left = terms.remove(i);
        let kept: Labels = terms.iter().flat_map(|t| &t.labels).chain(&spec.output).copied().collect();
        terms.push(contract(left, right, &spec, &kept)?);
    }
    let Term { array, labels } = terms.remove(0);
    permute(&array, spec.output.iter().filter_map(|l| labels.iter().position(|m| m == l)).collect())
}

/// How [`einsum`] goes about it (`mx.einsum_path`): which operands are contracted in each step, by position in a list
/// from which they are removed and to whose end the result goes, and a report of the cost.
///
/// # Errors
/// As [`einsum`].
pub fn einsum_path(subscripts: &str, operands: &[&Array]) -> Result<(Vec<Vec<usize>>, String)> {
    let shapes: Vec<&[usize]> = operands.iter().map(|a| a.shape()).collect();
    let spec = Subscripts::parse("einsum_path", subscripts, &shapes)?;
    let path = Path::choose(&spec);
    let steps = if operands.len() == 1 { vec![vec![0]] } else { path.pairs.iter().map(|&(i, j)| vec![i, j]).collect() };
    Ok((steps, path.report(&spec)))
}

/// An operand or an intermediate result: distinct labels, one an axis.
struct Term {
    array: Array,
    labels: Labels,
}

/// Takes diagonals, drops axes of size 1 that others stretch, sums over labels that nobody else needs.
fn simplify(term: Term, spec: &Subscripts, kept: &Labels) -> Result<Term> {
    let Term { mut array, labels } = term;
    let mut distinct: Labels = Labels::new();
    for &l in &labels {
        if !distinct.contains(&l) {
            distinct.push(l);
        }
    }
    if distinct.len() < labels.len() {
        let strides = row_strides(array.shape());
        let stride = |l: Label| labels.iter().zip(&strides).filter(|(m, _)| **m == l).map(|(_, s)| s).sum();
        let size = |l: Label| labels.iter().position(|m| *m == l).map_or(1, |i| array.shape()[i]);
        let shape: Shape = distinct.iter().map(|&l| size(l)).collect();
        let strides: SmallVec<[isize; 4]> = distinct.iter().map(|&l| stride(l)).collect();
        array = as_strided(&array, &shape, &strides, 0)?;
    }
    let stretched: Vec<usize> =
        (0..distinct.len()).filter(|&i| array.shape()[i] == 1 && spec.size(distinct[i]) != 1).collect();
    array = drop_axes(&array, &stretched)?;
    let left = (0..distinct.len()).filter(|i| !stretched.contains(i)).map(|i| distinct[i]).collect();
    let (array, labels) = sum_out(array, left, kept)?;
    Ok(Term { array, labels })
}

/// Sums over the axes whose labels are not `kept`.
fn sum_out(array: Array, labels: Labels, kept: &[Label]) -> Result<(Array, Labels)> {
    let gone: SmallVec<[i32; 4]> =
        (0..labels.len()).filter(|&i| !kept.contains(&labels[i])).map(|i| i as i32).collect();
    if gone.is_empty() {
        return Ok((array, labels));
    }
    let array = sum(&array, Axes::List(gone), false)?;
    Ok((array, labels.into_iter().filter(|l| kept.contains(l)).collect()))
}

/// The product of two terms, summed over the labels that are not `kept`.
fn contract(a: Term, b: Term, spec: &Subscripts, kept: &Labels) -> Result<Term> {
    // Labels of one operand alone that are no longer needed: their last other holder was contracted away.
    let of = |labels: &Labels, f: &dyn Fn(&Label) -> bool| -> Labels { labels.iter().copied().filter(f).collect() };
    let alone = |x: &Term, y: &Term| -> Labels { of(&x.labels, &|l| kept.contains(l) || y.labels.contains(l)) };
    let (need_a, need_b) = (alone(&a, &b), alone(&b, &a));
    let (a_array, a) = sum_out(a.array, a.labels, &need_a)?;
    let (b_array, b) = sum_out(b.array, b.labels, &need_b)?;

    let batch = of(&a, &|l| b.contains(l) && kept.contains(l));
    let summed = of(&a, &|l| b.contains(l) && !kept.contains(l));
    let (left, right) = (of(&a, &|l| !b.contains(l)), of(&b, &|l| !a.contains(l)));
    let labels: Labels = batch.iter().chain(&left).chain(&right).copied().collect();
    let arranged = |x: &Array, have: &Labels, want: [&Labels; 3]| {
        permute(x, want.into_iter().flatten().filter_map(|l| have.iter().position(|m| m == l)).collect())
    };
    let sizes = |groups: &[&Labels]| -> Shape { groups.iter().copied().flatten().map(|&l| spec.size(l)).collect() };
    let count = |group: &Labels| sizes(&[group]).iter().product::<usize>();
    let x = arranged(&a_array, &a, [&batch, &left, &summed])?;
    if summed.is_empty() {
        let y = arranged(&b_array, &b, [&batch, &right, &summed])?;
        let ones: Labels = left.iter().map(|_| subscripts::ONE).collect();
        let x_shape = sizes(&[&batch, &left]).into_iter().chain(right.iter().map(|_| 1)).collect();
        let array = multiply(reshape_to(&x, x_shape)?, reshape_to(&y, sizes(&[&batch, &ones, &right]))?)?;
        return Ok(Term { array, labels });
    }
    product_dtype("einsum", &[&a_array, &b_array])?;
    let (lead, m, k, n) = (sizes(&[&batch]), count(&left), count(&summed), count(&right));
    let with = |tail: &[usize]| -> Shape { lead.iter().chain(tail).copied().collect() };
    let shape = sizes(&[&batch, &left, &right]);
    let y = arranged(&b_array, &b, [&batch, &summed, &right])?;
    if m == 1 && n == 1 {
        let dot = dot_last(&reshape_to(&x, with(&[k]))?, &reshape_to(&y, with(&[k]))?)?;
        return Ok(Term { array: reshape_to(&dot, shape)?, labels });
    }
    let (x, y) = (reshape_to(&x, with(&[m, k]))?, reshape_to(&y, with(&[k, n]))?);
    Ok(Term { array: reshape_to(&matmul(&x, &y)?, shape)?, labels })
}
