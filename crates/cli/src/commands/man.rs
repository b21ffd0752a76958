//! `lapis man`: manual pages, from the table that parses commands.

use clap::Command;
use clap_mangen::Man;
use lapis::io::atomic::AtomicFile;
use lapis::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Of this command alone
    command: Option<String>,
    /// Write a page for each command into this folder
    #[arg(long, conflicts_with = "command")]
    output_dir: Option<PathBuf>,
}

pub(crate) fn run(a: Arguments, mut command: Command) -> Result<()> {
    command.build();
    if let Some(dir) = &a.output_dir {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("{}: {e}", dir.display())))?;
        write(dir, "lapis.1", &page(command.clone())?)?;
        for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = format!("lapis-{}", sub.get_name());
            write(dir, &format!("{name}.1"), &page(named(sub, &name))?)?;
        }
        return Ok(());
    }
    let page = match &a.command {
        None => page(command)?,
        Some(name) => {
            let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            let unknown = || Error::value(format!("{name:?} is no command; there are {}", names.join(", ")));
            let sub = command.find_subcommand(name).ok_or_else(unknown)?;
            page(named(sub, &format!("lapis-{}", sub.get_name())))?
        }
    };
    // Whoever wanted to read it may be gone.
    drop(std::io::stdout().write_all(&page));
    Ok(())
}

/// A command by the name that its page has.
fn named(command: &Command, name: &str) -> Command {
    command.clone().name(name.to_string()).display_name(name.to_string())
}

fn page(command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page).map_err(|e| Error::io(format!("manual: {e}")))?;
    Ok(page)
}

fn write(dir: &Path, name: &str, page: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(dir.join(name), "man", page.len() as u64)?;
    file.write(page)?;
    file.commit()
}
