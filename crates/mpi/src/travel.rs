//! Collectives of any size from exchanges of limited ones.
//!
//! A sum of few bytes gathers everything everywhere and adds: one exchange. Of many, each process adds one part for all:
//! `2 (n - 1) / n` of the bytes travel, the least there can be. Either way numbers are added in the order of ranks, so the two
//! give the same bits, on every process.

use crate::combine::combine;
use crate::open_mpi::Comm;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::ops::collective::Kind;

/// Bytes that one exchange takes from a process; MPI counts to 2^31.
const CHUNK: usize = 16 << 20;
/// Bytes up to which everything is gathered everywhere.
const FEW: usize = 64 << 10;

/// Pieces that one exchange can take.
pub(crate) fn chunks(bytes: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    bytes.chunks_mut(CHUNK)
}

/// `output[i]` is what `kind` makes of the `input[i]` of all.
pub(crate) fn reduce(comm: Comm, kind: &Kind, dtype: Dtype, input: &[u8], output: &mut [u8]) -> Result<()> {
    let n = comm.size;
    if input.len() <= FEW {
        let mut all = vec![0; input.len() * n];
        comm.all_gather(input, &mut all)?;
        combine(kind, dtype, &all, output);
        return Ok(());
    }
    let (mut mine, mut all) = (Vec::new(), Vec::new());
    for (input, output) in input.chunks(CHUNK).zip(output.chunks_mut(CHUNK)) {
        // As many elements for each, zeros at the end.
        let part = (input.len() / dtype.size()).div_ceil(n) * dtype.size();
        all.clear();
        all.extend_from_slice(input);
        all.resize(part * n, 0);
        let mut parts = vec![0; part * n];
        comm.all_to_all(&all, &mut parts)?;
        mine.resize(part, 0);
        combine(kind, dtype, &parts, &mut mine);
        comm.all_gather(&mine, &mut all)?;
        output.copy_from_slice(&all[..output.len()]);
    }
    Ok(())
}

/// This process's part of the sum.
pub(crate) fn scatter(comm: Comm, dtype: Dtype, input: &[u8], output: &mut [u8]) -> Result<()> {
    let part = output.len();
    let mut first = 0;
    for output in output.chunks_mut(CHUNK) {
        let mine = |of: usize| &input[of * part + first..of * part + first + output.len()];
        let sent: Vec<u8> = (0..comm.size).flat_map(mine).copied().collect();
        let mut parts = vec![0; sent.len()];
        comm.all_to_all(&sent, &mut parts)?;
        combine(&Kind::Sum, dtype, &parts, output);
        first += output.len();
    }
    Ok(())
}

/// The inputs of all, one after the other.
pub(crate) fn gather(comm: Comm, input: &[u8], output: &mut [u8]) -> Result<()> {
    if input.len() <= CHUNK {
        return comm.all_gather(input, output);
    }
    let mut first = 0;
    for piece in input.chunks(CHUNK) {
        let mut all = vec![0; piece.len() * comm.size];
        comm.all_gather(piece, &mut all)?;
        for (of, theirs) in all.chunks(piece.len()).enumerate() {
            let at = of * input.len() + first;
            output[at..at + piece.len()].copy_from_slice(theirs);
        }
        first += piece.len();
    }
    Ok(())
}
