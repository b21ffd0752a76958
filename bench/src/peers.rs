//! Runs the same work in other frameworks, through their Python packages, and puts their figures beside lapis's.
//!
//! A peer is a script in `bench/peers/`. It is told which benchmarks to run and for how long, and prints one JSON
//! line each: `{"name", "value", "unit"}`. A package that is missing is one line of advice, not a failure.

use crate::args::Args;
use crate::report::Report;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// The peers there are.
pub(crate) const NAMES: &[&str] = &["mlx", "numpy", "torch"];

const COMMON: &str = include_str!("../peers/common.py");
const MLX: &str = include_str!("../peers/mlx.py");
const NUMPY: &str = include_str!("../peers/numpy.py");
const TORCH: &str = include_str!("../peers/torch.py");

/// Runs one peer and adds its rows to the report. Returns what the user should know.
pub(crate) fn run(peer: &str, args: &Args, report: &mut Report) -> Vec<String> {
    let script = match peer {
        "mlx" => MLX,
        "torch" => TORCH,
        _ => NUMPY,
    };
    let python = std::env::var("LAPIS_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(&python);
    command.arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.env("LAPIS_BENCH_SECONDS", args.seconds.to_string()).env("LAPIS_BENCH_ONLY", args.only.join(","));
    for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(name, args.threads.to_string());
    }
    if args.cpu_time {
        command.env("LAPIS_BENCH_CPU_TIME", "1");
    }
    if let Some(core) = openblas_core() {
        command.env("OPENBLAS_CORETYPE", core);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            return vec![format!("peer {peer}: cannot run {python} ({e}); LAPIS_PYTHON names another interpreter")];
        }
    };
    let mut notes = Vec::new();
    if let Some(mut stdin) = child.stdin.take()
        && let Err(e) = stdin.write_all(format!("{COMMON}\n{script}").as_bytes())
    {
        notes.push(format!("peer {peer}: {python} does not take the script: {e}"));
    }
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(|l| l.ok()) {
            let Ok(v) = serde_json::from_str::<Value>(&line) else {
                notes.push(format!("peer {peer}: {line}"));
                continue;
            };
            match (v["name"].as_str(), v["value"].as_f64(), v["unit"].as_str()) {
                (Some(name), Some(value), Some(unit)) => report.peer_row(peer, name, value, unit),
                _ => notes.push(format!("peer {peer}: {}", v["note"].as_str().unwrap_or(&line))),
            }
        }
    }
    match child.wait() {
        Ok(status) if !status.success() => notes.push(format!("peer {peer}: {python} ended with {status}")),
        Ok(_) => {}
        Err(e) => notes.push(format!("peer {peer}: {e}")),
    }
    notes
}

/// OpenBLAS runs its AVX2 kernels on AMD cores that have AVX-512; its best kernels are the fair comparison.
/// What the user set stays.
fn openblas_core() -> Option<&'static str> {
    if std::env::var_os("OPENBLAS_CORETYPE").is_some() {
        return None;
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let has = |word: &str| cpu.split_ascii_whitespace().any(|w| w == word);
    match (has("AuthenticAMD"), has("avx512_bf16"), has("avx512f")) {
        (true, true, _) => Some("COOPERLAKE"),
        (true, false, true) => Some("SKYLAKEX"),
        _ => None,
    }
}
