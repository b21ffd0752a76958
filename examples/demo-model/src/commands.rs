//! Which of cargo's commands exist, from the workspace itself. Those of lapis are held against its own command line where that is
//! (crates/cli/src/tests.rs). Knows nothing of questions.

use crate::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What there is to call.
pub(crate) struct Known {
    root: PathBuf,
    metadata: Value,
}

impl Known {
    /// Asks cargo for packages and examples.
    pub(crate) fn new() -> Result<Known> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut cargo = Command::new(cargo);
        cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
        let found = cargo.current_dir(&root).output()?;
        Ok(Known { root, metadata: serde_json::from_slice(&found.stdout)? })
    }

    /// What is wrong with a command.
    pub(crate) fn check(&self, command: &str) -> std::result::Result<(), String> {
        let words = words(command);
        let mut rest = words.iter().map(String::as_str).peekable();
        while let Some((variable, _)) = rest.peek().and_then(|w| w.split_once('=')) {
            let known = ["LAPIS_SIMD", "LAPIS_THREADS"].contains(&variable);
            known.then_some(()).ok_or(format!("{command}: no variable {variable}"))?;
            rest.next();
        }
        let (program, task) = (rest.next().unwrap_or(""), rest.next().unwrap_or(""));
        let rest: Vec<&str> = rest.collect();
        match program {
            "cargo" => self.check_cargo(task, &rest),
            "lapis" => Ok(()),
            _ => Err("neither cargo nor lapis".into()),
        }
        .map_err(|fault: String| format!("{command}: {fault}"))
    }

    fn check_cargo(&self, task: &str, rest: &[&str]) -> std::result::Result<(), String> {
        if task == "xtask" {
            let chores = std::fs::read_to_string(self.root.join("xtask/src/main.rs")).map_err(|e| e.to_string())?;
            let chore = format!("Some(\"{}\")", rest.first().unwrap_or(&""));
            return chores.contains(&chore).then_some(()).ok_or(format!("no chore {chore}"));
        }
        if !["run", "test", "clippy", "doc"].contains(&task) {
            return Err(format!("cargo {task} is not checked"));
        }
        let (own, after) = match rest.iter().position(|w| *w == "--") {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, &[][..]),
        };
        let (mut package, mut example) = (None, None);
        let mut own = own.iter();
        while let Some(word) = own.next() {
            match *word {
                "-p" => package = own.next(),
                "--example" => example = own.next(),
                "--release" | "--workspace" | "--all-targets" | "--no-deps" => {}
                word => return Err(format!("no flag {word}")),
            }
        }
        let packages = self.metadata["packages"].as_array().ok_or("cargo metadata has no packages")?;
        let default = |p: &&Value| {
            let all = self.metadata["workspace_default_members"].as_array();
            all.is_some_and(|all| all.contains(&p["id"]))
        };
        let chosen: Vec<&Value> = match package {
            Some(name) => packages.iter().filter(|p| p["name"] == **name).collect(),
            None => packages.iter().filter(default).collect(),
        };
        if chosen.is_empty() {
            return Err(format!("no package {}", package.unwrap_or(&"")));
        }
        if let Some(name) = example {
            let mut targets = chosen.iter().filter_map(|p| p["targets"].as_array()).flatten();
            let found = targets.any(|t| t["kind"][0] == "example" && t["name"] == **name);
            found.then_some(()).ok_or(format!("no example {name}"))?;
        }
        match (package.copied(), task, after) {
            (_, _, []) | (_, "clippy", ["-D", "warnings"]) => Ok(()),
            (Some("lapis-bench"), "run", flags) => {
                let table = std::fs::read_to_string(self.root.join("bench/src/args.rs")).map_err(|e| e.to_string())?;
                let unknown = flags.iter().find(|f| !table.contains(*f));
                unknown.map_or(Ok(()), |f| Err(format!("lapis-bench has no {f}")))
            }
            _ => Err("arguments of the program".into()),
        }
    }
}

/// The words of a command as a shell reads them; quotes hold words together.
fn words(command: &str) -> Vec<String> {
    let (mut all, mut quoted) = (vec![String::new()], false);
    for c in command.chars() {
        match (c, all.last_mut()) {
            ('"', _) => quoted = !quoted,
            (' ', _) if !quoted => all.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    all.retain(|w| !w.is_empty());
    all
}
