//! `lapis launch`: a command by several processes that compute together, over Open MPI.

use crate::ranks;
use lapis::{Error, Result};
use std::process::Command;

/// Commands that know what to do then.
const KNOWN: [&str; 3] = ["lora", "generate", "logits"];
/// Seconds after a fault until mpirun asks the other processes to end, and from then until it kills them: what a step and its state
/// have after Ctrl-C.
const SECONDS: &str = "4";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many processes
    #[arg(short = 'n', long, default_value_t = 2, value_parser = crate::model::positive)]
    processes: usize,
    /// Machines that run them, by name, each with its number of processes if it is not one: one,two:2 [default: this one]
    #[arg(long)]
    hosts: Option<String>,
    /// A word for mpirun, before the program (may be given several times)
    #[arg(long, allow_hyphen_values = true)]
    mpi_arg: Vec<String>,
    /// Print the command in place of running it
    #[arg(long)]
    print: bool,
    /// What they do: lora (each takes a part of every batch), generate or logits (each holds a part of the model), with its flags
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    if !cfg!(feature = "mpi") {
        return Err(ranks::without());
    }
    let command = a.command.iter().find(|word| !word.starts_with('-')).map_or("", String::as_str);
    if !KNOWN.contains(&command.trim_start_matches("mlx_lm.")) {
        let known = KNOWN.join(", ");
        return Err(Error::value(format!("launch: {command:?} is no command of several processes; known are {known}")));
    }
    let program = std::env::current_exe().map_err(|e| Error::io(format!("launch: {e}")))?;
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["-n", &a.processes.to_string(), "--bind-to", "none"]);
    mpirun.args(["--mca", "odls_base_sigkill_timeout", SECONDS]);
    match &a.hosts {
        Some(hosts) => mpirun.args(["--host", hosts]),
        // More processes than cores wait for each other without taking them.
        None => mpirun.args(["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]),
    };
    mpirun.args(&a.mpi_arg).arg(program).args(&a.command);
    // Whoever is root here has decided that before.
    mpirun.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    if a.hosts.is_none() && std::env::var_os("LAPIS_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        mpirun.env("LAPIS_THREADS", (cores / a.processes).max(1).to_string());
    }
    if a.print {
        println!("{}", line(&mpirun));
        return Ok(());
    }
    replace(mpirun)
}

/// A command as a shell reads it.
fn line(command: &Command) -> String {
    let quoted = |word: &std::ffi::OsStr| match word.to_string_lossy() {
        word if word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,".contains(c)) && !word.is_empty() => {
            word.into()
        }
        word => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let set = command.get_envs().filter_map(|(key, value)| Some(format!("{}={}", key.to_str()?, quoted(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    set.chain(words).collect::<Vec<_>>().join(" ")
}

/// Becomes that program, so that signals and the exit code are its own.
#[cfg(unix)]
fn replace(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(Error::io(match error.kind() {
        std::io::ErrorKind::NotFound => {
            "launch: there is no mpirun here: install Open MPI (apt-get install openmpi-bin, brew install open-mpi)"
                .into()
        }
        _ => format!("launch: mpirun: {error}"),
    }))
}

#[cfg(not(unix))]
fn replace(_: Command) -> Result<()> {
    Err(Error::unsupported("launch: Open MPI is for Linux and macOS"))
}
