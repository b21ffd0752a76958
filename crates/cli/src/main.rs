//! `lapis`: language models on your own machine.
//!
//! One file a command under `commands/`; what a library user would want is in `lapis-lm`. Called through a link named
//! `mlx_lm.generate` (and so on), the program is that command with mlx-lm's defaults.

mod commands;
mod grammar;
mod hub;
mod interrupt;
mod model;
mod quantizing;
mod ranks;
mod say;
mod settings;
mod writing;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lapis::{Error, distributed};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "lapis", version, about = "Language models on your own machine", disable_help_subcommand = true)]
struct Arguments {
    /// Say errors only; -q, too, of commands that have no other -q
    #[arg(long, global = true)]
    quiet: bool,
    /// Bytes of memory to use at most: 8GB, 500MB, 7.5GiB
    #[arg(long, global = true, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// Threads to compute with [default: one for each core]
    #[arg(long, global = true)]
    threads: Option<usize>,
    /// Accepted; code in a model repository is never run
    #[arg(long, global = true, hide = true)]
    trust_remote_code: bool,
    /// Accepted; one process computes all layers
    #[arg(long, global = true, hide = true)]
    pipeline: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write text after a prompt
    Generate(Box<commands::generate::Arguments>),
    /// Talk to a model
    Chat(commands::chat::Arguments),
    /// Answer the clients of OpenAI and Anthropic
    #[command(visible_alias = "server")]
    Serve(Box<commands::serve::Arguments>),
    /// Convert and quantize a model; `quantize` is `convert -q`
    #[command(visible_alias = "quantize")]
    Convert(commands::convert::Arguments),
    /// Pack a model's weights after scaling them by what their inputs need (AWQ)
    Awq(Box<commands::awq::Arguments>),
    /// Train the scales of a packed model to foresee what the model itself does (DWQ)
    Dwq(Box<commands::dwq::Arguments>),
    /// Pack a model with more bits for the layers that need them
    DynamicQuant(Box<commands::dynamic_quant::Arguments>),
    /// Pack a model's weights column by column, each taking up the error of those before (GPTQ)
    Gptq(Box<commands::gptq::Arguments>),
    /// Fine-tune a model on texts of your own
    Lora(Box<commands::lora::Arguments>),
    /// Make an adapter a part of its model
    Fuse(commands::fuse::Arguments),
    /// Read a prompt and keep what the model remembers of it in a file
    CachePrompt(commands::cache_prompt::Arguments),
    /// Say how much servers remember of prompts on disk, or remove it
    Cache(commands::cache::Arguments),
    /// Measure prefill and decode
    Benchmark(commands::benchmark::Arguments),
    /// Say how well a model foresees a text
    Perplexity(commands::perplexity::Arguments),
    /// Say how far a model is from another
    Kld(commands::kld::Arguments),
    /// Say how well a model answers the questions of a task
    Evaluate(Box<commands::evaluate::Arguments>),
    /// Run a command by several processes that compute together, over Open MPI
    Launch(commands::launch::Arguments),
    /// Write the logits of given tokens to a file
    Logits(commands::logits::Arguments),
    /// Say whether a model fits this machine, for how long a context and how fast
    Fit(commands::fit::Arguments),
    /// Fetch a model from the hub
    Pull(commands::pull::Arguments),
    /// List the models that are here
    Ls(commands::manage::List),
    /// Remove models
    Rm(commands::manage::Remove),
    /// List or delete models, in mlx-lm's manner
    Manage(commands::manage::Arguments),
    /// Send a model to other machines, over ssh
    Share(commands::share::Arguments),
    /// Upload a model to the hub
    Upload(commands::upload::Arguments),
    /// Say which flags are set by variables and files
    Config(commands::config::Arguments),
    /// Say what the code of an error means
    Explain(commands::explain::Arguments),
    /// Say what this machine has and what it can do
    Doctor(commands::doctor::Arguments),
    /// Print what completes commands in a shell
    Completions(commands::completions::Arguments),
    /// Print the manual, or write its pages to a folder
    Man(commands::man::Arguments),
}

#[cfg(test)]
mod tests;

/// In whose manner the program was called: some defaults differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// `lapis ...`
    Own,
    /// `mlx_lm...`
    Mlx,
}

/// The arguments as `lapis <command> ...`, whatever name the program was called by.
fn arguments() -> (Manner, Vec<String>) {
    // What a word that is not UTF-8 would become is another file's name.
    let word = |a: std::ffi::OsString| {
        a.into_string().unwrap_or_else(|a| {
            say::error(&Error::value(format!("the argument {a:?} is not UTF-8")));
            std::process::exit(2)
        })
    };
    let mut all: Vec<String> = std::env::args_os().map(word).collect();
    let called = all.first().map_or("lapis", |a| a.rsplit('/').next().unwrap_or(a)).to_string();
    let mut manner = Manner::Own;
    if called == "mlx_lm" {
        manner = Manner::Mlx;
    } else if let Some(command) = called.strip_prefix("mlx_lm.") {
        manner = Manner::Mlx;
        all.insert(1, command.to_string());
    }
    // Behind what may stand before it.
    let mut at = 1;
    while let Some(flag) = all.get(at).filter(|a| a.starts_with('-')) {
        at += if ["--memory-limit", "--threads"].contains(&flag.as_str()) { 2 } else { 1 };
    }
    if let Some(command) = all.get(at).and_then(|a| a.strip_prefix("mlx_lm.")).map(str::to_string) {
        manner = Manner::Mlx;
        all[at] = command;
    }
    // argparse takes it for one flag.
    all.iter_mut().filter(|a| *a == "-qa").for_each(|a| *a = "--quantize-activations".into());
    if let Some(command) = all.get_mut(at) {
        *command = command.replace('_', "-");
        if command == "quantize" {
            all.insert(at + 1, "--quantize".into());
        }
    }
    if let Some(first) = all.first_mut() {
        *first = "lapis".into();
    }
    (manner, all)
}

fn main() -> ExitCode {
    say::watch();
    let (manner, all) = arguments();
    let command = Arguments::command().infer_long_args(manner == Manner::Mlx);
    let (entries, broken) = match settings::entries(&command) {
        Ok(entries) => (entries, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let parsed = settings::apply(command.clone(), &entries).try_get_matches_from(all);
    // mlx-lm passes over what contradicts itself.
    let clash = parsed.as_ref().ok().filter(|_| manner == Manner::Own).map_or(Ok(()), settings::check);
    let hushed = parsed.as_ref().is_ok_and(settings::is_quiet);
    let arguments = match parsed.and_then(|m| Arguments::from_arg_matches(&m)) {
        // Help and version are no errors, and need no settings.
        Err(e) if !e.use_stderr() => {
            drop(e.print());
            return ExitCode::SUCCESS;
        }
        parsed => match (broken, parsed) {
            (Some(error), _) => return failed(&error),
            (None, Ok(arguments)) => match clash {
                Ok(()) => arguments,
                Err(error) => return failed(&error),
            },
            (None, Err(e)) => {
                drop(e.print());
                return ExitCode::from(2);
            }
        },
    };
    if arguments.quiet || hushed {
        say::quiet();
    }
    let limit = match arguments.memory_limit.as_deref().map(model::size).transpose() {
        Ok(limit) => limit,
        Err(error) => return failed(&error),
    };
    // What `fit` is to fit into bounds nothing here, and a server plans with it.
    if let Some(bytes) = limit.filter(|_| !matches!(arguments.command, Command::Fit(_) | Command::Serve(_))) {
        lapis::memory::set_limit(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    let threads = || arguments.threads.map_or(Ok(()), lapis_cpu::pool::set_threads);
    if let Err(error) = lapis_cpu::isa::check().and_then(|()| threads()) {
        return failed(&error);
    }
    if arguments.trust_remote_code {
        say::note("--trust-remote-code has no effect: code in a model repository is never run");
    }
    if arguments.pipeline {
        say::note("--pipeline has no effect: one process computes all layers");
    }
    let done = match arguments.command {
        Command::Generate(a) => commands::generate::run(*a, manner),
        Command::Chat(a) => commands::chat::run(a, manner),
        Command::Serve(a) => match commands::serve::run(*a, manner, limit) {
            Ok(code) => return ExitCode::from(code),
            Err(e) => Err(e),
        },
        Command::Convert(a) => commands::convert::run(a),
        Command::Awq(a) => commands::awq::run(*a, manner),
        Command::Dwq(a) => commands::dwq::run(*a, manner),
        Command::DynamicQuant(a) => commands::dynamic_quant::run(*a, manner),
        Command::Gptq(a) => commands::gptq::run(*a, manner),
        Command::Lora(a) => commands::lora::run(*a, manner),
        Command::Fuse(a) => commands::fuse::run(a, manner),
        Command::CachePrompt(a) => commands::cache_prompt::run(a),
        Command::Cache(a) => commands::cache::run(a),
        Command::Benchmark(a) => commands::benchmark::run(a),
        Command::Perplexity(a) => commands::perplexity::run(a),
        Command::Kld(a) => commands::kld::run(a),
        Command::Evaluate(a) => commands::evaluate::run(*a),
        Command::Launch(a) => commands::launch::run(a),
        Command::Logits(a) => commands::logits::run(a),
        // That it does not fit is an answer and no error.
        Command::Fit(a) => match commands::fit::run(a, limit) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(e) => Err(e),
        },
        Command::Pull(a) => commands::pull::run(a),
        Command::Ls(a) => commands::manage::list(a),
        Command::Rm(a) => commands::manage::remove(a),
        Command::Manage(a) => commands::manage::run(a),
        Command::Share(a) => commands::share::run(a),
        Command::Upload(a) => commands::upload::run(a),
        Command::Config(a) => commands::config::run(a, &command, &entries),
        Command::Explain(a) => commands::explain::run(a),
        Command::Doctor(a) => commands::doctor::run(a),
        Command::Completions(a) => commands::completions::run(a, command),
        Command::Man(a) => commands::man::run(a, command),
    };
    match done {
        Ok(()) if interrupt::seen() => {
            distributed::abort(interrupt::code());
            ExitCode::from(interrupt::code())
        }
        Ok(()) => {
            distributed::leave();
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// Says what went wrong; what was interrupted did not go wrong. Processes that compute with this one end with it.
fn failed(error: &Error) -> ExitCode {
    ranks::told(error);
    let code = if interrupt::seen() { interrupt::code() } else { say::code(error) };
    distributed::abort(code);
    ExitCode::from(code)
}
