//! Flags by other means: `LAPIS_<FLAG>` variables, `lapis.toml` here, `lapis/config.toml` among the user's settings.
//!
//! The command line comes first, then variables, then the project's file, then the user's, then the default. In a file,
//! a key at the top is for every command that has such a flag, one under `[generate]` for that command.

use clap::builder::FalseyValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use lapis::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// One value of a file: for which command (empty: all), and where it stands.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) command: String,
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) file: PathBuf,
}

/// Whether a flag may be given by other means: consent is not given beforehand.
fn may_be_set(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| !matches!(long, "help" | "version" | "yes"))
}

/// The variable of a flag.
pub(crate) fn variable(flag: &str) -> String {
    format!("LAPIS_{}", flag.to_uppercase().replace('-', "_"))
}

/// The files that are read, the one that counts more first.
pub(crate) fn files() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).map(|h| PathBuf::from(h).join(".config"));
    let user = std::env::var_os("XDG_CONFIG_HOME").filter(|d| !d.is_empty()).map(PathBuf::from).or(home);
    let user = user.map(|dir| dir.join("lapis/config.toml"));
    [Some(PathBuf::from("lapis.toml")), user].into_iter().flatten().collect()
}

/// What the files say, in the order in which it counts.
///
/// # Errors
/// A file that cannot be read; a command or key that there is not; a value that is no text, number or truth.
pub(crate) fn entries(command: &Command) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    for file in files() {
        match std::fs::read_to_string(&file) {
            Ok(text) => all.extend(read(command, &file, &text)?),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::io(format!("{}: {e}", file.display()))),
        }
    }
    Ok(all)
}

fn read(command: &Command, file: &Path, text: &str) -> Result<Vec<Entry>> {
    let shown = file.display();
    let table: Table = text.parse().map_err(|e| Error::value(format!("{shown}: {e}")))?;
    let mut found = Vec::new();
    // What stands under a command counts more than what stands at the top.
    for (name, value) in &table {
        let Value::Table(inner) = value else { continue };
        let name = name.replace('_', "-");
        let Some(sub) = command.get_subcommands().find(|c| c.get_name() == name) else {
            return Err(Error::value(format!("{shown}: there is no command {name:?}")));
        };
        for (key, value) in inner {
            found.push(entry(&[sub], sub.get_name(), key, value, file)?);
        }
    }
    let every: Vec<&Command> = std::iter::once(command).chain(command.get_subcommands()).collect();
    for (key, value) in table.iter().filter(|(_, v)| !v.is_table()) {
        found.push(entry(&every, "", key, value, file)?);
    }
    Ok(found)
}

fn entry(commands: &[&Command], command: &str, key: &str, value: &Value, file: &Path) -> Result<Entry> {
    let key = key.replace('_', "-");
    let fail = |what: &str| {
        let place = if command.is_empty() { String::new() } else { format!("[{command}] ") };
        Error::value(format!("{}: {place}{key}: {what}", file.display()))
    };
    let has = |c: &&Command| c.get_arguments().any(|a| a.get_long() == Some(&key) && may_be_set(a));
    if !commands.iter().any(has) {
        return Err(fail("there is no such flag"));
    }
    let value = match value {
        Value::String(s) => s.clone(),
        Value::Integer(n) => n.to_string(),
        Value::Float(x) => x.to_string(),
        Value::Boolean(b) => b.to_string(),
        _ => return Err(fail("a text, a number or true is needed")),
    };
    Ok(Entry { command: command.to_string(), key, value, file: file.to_path_buf() })
}

/// Flags of which the first would be passed over in silence beside the second, by command.
const CLASHES: &[(&str, &str, &str)] = &[
    ("fit", "model", "name"),
    ("generate", "system_prompt", "ignore_chat_template"),
    ("generate", "prefill_response", "ignore_chat_template"),
    ("generate", "system_prompt", "prompt_cache_file"),
    ("generate", "max_kv_size", "prompt_cache_file"),
];

/// That a command line does not contradict itself. What stands in variables and files may be passed over.
///
/// # Errors
/// Two flags that do.
pub(crate) fn check(matches: &ArgMatches) -> Result<()> {
    let Some((name, of)) = matches.subcommand() else { return Ok(()) };
    let given = |id: &str| of.value_source(id) == Some(ValueSource::CommandLine);
    match CLASHES.iter().find(|(command, a, b)| *command == name && given(a) && given(b)) {
        None => Ok(()),
        Some((_, a, b)) => {
            let shown = |id: &str| if id == "name" { "NAME".into() } else { format!("--{}", id.replace('_', "-")) };
            Err(Error::value(format!("{name}: {} cannot be used with {}", shown(a), shown(b))))
        }
    }
}

/// The command line with variables and files as sources of its flags.
pub(crate) fn apply(command: Command, entries: &[Entry]) -> Command {
    // What is said for all commands counts for the flags that all have, too.
    let command = sourced(command, entries, "");
    // `convert -q` packs.
    let quiet = |c: Command| {
        let taken = c.get_arguments().any(|a| a.get_short() == Some('q'));
        if taken { c } else { c.arg(Arg::new(QUIET).short('q').action(ArgAction::SetTrue).hide(true)) }
    };
    quiet(command).mut_subcommands(|sub| {
        let name = sub.get_name().to_string();
        quiet(sourced(sub, entries, &name))
    })
}

/// `-q` of a command.
const QUIET: &str = "q";

/// Whether a command was told `-q`, where that is `--quiet`.
pub(crate) fn is_quiet(matches: &ArgMatches) -> bool {
    let is = |m: &ArgMatches| m.try_get_one::<bool>(QUIET).ok().flatten() == Some(&true);
    is(matches) || matches.subcommand().is_some_and(|(_, of)| is(of))
}

/// One command; `name` is empty for the flags that all commands have.
fn sourced(command: Command, entries: &[Entry], name: &str) -> Command {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    for e in entries.iter().filter(|e| e.command.is_empty() || e.command == name) {
        values.entry(e.key.clone()).or_insert_with(|| e.value.clone());
    }
    command.mut_args(|arg| {
        let Some(long) = arg.get_long().filter(|_| may_be_set(&arg)).map(str::to_string) else { return arg };
        // `-1` is a value, if a wrong one, and no flag.
        let arg = if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
        let truth = matches!(arg.get_action(), ArgAction::SetTrue);
        let arg = if truth { arg.value_parser(FalseyValueParser::new()) } else { arg };
        let arg = match values.get(&long) {
            Some(value) => arg.required(false).default_value(value.clone()),
            None => arg,
        };
        arg.env(variable(&long)).hide_env(true)
    })
}
