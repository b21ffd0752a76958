//! Chores of the workspace: `cargo xtask <chore>`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask <chore>
  ci      everything a change must pass: .ci/run
  cases   writes testdata/cases anew (needs python3 with mlx[cpu], numpy, mpmath; LAPIS_PYTHON names another interpreter)
  demo-model [ARGS]
          trains the model that ships with lapis, or goes on training it, and scores it; see examples/demo-model
  lines   lists source files over 600 lines";

fn main() -> ExitCode {
    let chore = std::env::args().nth(1);
    let done = match chore.as_deref() {
        Some("ci") => run(Command::new("bash").arg(".ci/run")),
        Some("cases") => {
            let python = std::env::var("LAPIS_PYTHON").unwrap_or_else(|_| "python3".into());
            run(Command::new(python).arg("testdata/generate"))
        }
        Some("demo-model") => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut train = Command::new(cargo);
            train.args(["run", "--release", "--package", "lapis-demo-model", "--"]);
            run(train.args(std::env::args().skip(2)))
        }
        Some("lines") => {
            long_files(&root(), 600);
            true
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

fn run(command: &mut Command) -> bool {
    match command.current_dir(root()).status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("{}: {error}", command.get_program().to_string_lossy());
            false
        }
    }
}

/// Prints Rust files under `folder` with more than `limit` lines.
fn long_files(folder: &Path, limit: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            long_files(&path, limit);
        } else if name.ends_with(".rs")
            && let Ok(text) = std::fs::read_to_string(&path)
            && text.lines().count() > limit
        {
            println!("{} {}", text.lines().count(), path.display());
        }
    }
}
