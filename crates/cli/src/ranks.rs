//! What a process does that is one of several (`lapis launch`): they find each other, the first of them speaks for all, and none
//! outlives another's fault.

use crate::{interrupt, say};
use lapis::distributed::{self, Group};
use lapis::{Array, Error, Result};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

// Linked for what starts processes.
#[cfg(feature = "mpi")]
use lapis_mpi as _;

/// How long a process with a fault waits for the first one to tell of the same and to end it: longer than `launch` lets pass until then.
const PATIENCE: Duration = Duration::from_secs(6);

static GROUP: OnceLock<Group> = OnceLock::new();

/// Where there is no launcher.
pub(crate) fn without() -> Error {
    Error::unsupported(
        "this lapis was built without MPI: build it with cargo build --release -p lapis-cli --features mpi",
    )
}

/// The processes that compute together; those but the first say nothing from now on.
pub(crate) fn join() -> Result<Group> {
    let several = std::env::var("OMPI_COMM_WORLD_SIZE").is_ok_and(|n| n != "1");
    if several && !cfg!(feature = "mpi") {
        return Err(without());
    }
    let group = distributed::init(false)?;
    if group.rank() > 0 {
        say::quiet();
    }
    Ok(*GROUP.get_or_init(|| group))
}

/// Says that one process alone can do this.
pub(crate) fn alone(group: Group, what: &str) -> Result<()> {
    match group.size() {
        1 => Ok(()),
        n => Err(Error::unsupported(format!("{what} does not work with {n} processes; leave it out, or start one"))),
    }
}

/// What the first process holds.
pub(crate) fn first(group: Group, words: Vec<u32>) -> Result<Vec<u32>> {
    if group.size() == 1 {
        return Ok(words);
    }
    let told = |words: Vec<u32>| {
        let n = words.len();
        group.broadcast(&Array::from_vec(words, &[n]), 0)?.to_vec::<u32>()
    };
    let n = told(vec![words.len() as u32])?[0] as usize;
    let mut words = words;
    words.resize(n, 0);
    told(words)
}

/// A number that the first process holds.
pub(crate) fn first_number(group: Group, number: u64) -> Result<u64> {
    let words = first(group, vec![number as u32, (number >> 32) as u32])?;
    Ok(words.iter().rev().fold(0, |all, &word| all << 32 | u64::from(word)))
}

/// Says what went wrong, and in which process.
pub(crate) fn told(error: &Error) {
    match GROUP.get().filter(|group| group.rank() > 0) {
        None => say::error(error),
        Some(group) => {
            // A fault of all is told once: the first process ends the others.
            let began = Instant::now();
            while began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(50));
                if interrupt::seen() {
                    return;
                }
            }
            let text = error.message();
            let text = text.split_once("] ").filter(|_| text.starts_with('[')).map_or(text, |(_, text)| text);
            say::error(&Error::new(error.kind(), format!("process {} of {}: {text}", group.rank(), group.size())));
        }
    }
}
