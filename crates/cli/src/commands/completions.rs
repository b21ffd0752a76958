//! `lapis completions`: what a shell needs to complete commands and flags, from the table that parses them.

use clap::Command;
use clap_complete::{Shell, generate};
use lapis::Result;
use std::io::Write;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(a: Arguments, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    generate(a.shell, &mut command, "lapis", &mut script);
    // Whoever wanted to read it may be gone.
    drop(std::io::stdout().write_all(&script));
    Ok(())
}
