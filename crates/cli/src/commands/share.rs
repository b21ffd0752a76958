//! `lapis share`: a model from this machine to others, over ssh.

use crate::hub::Meter;
use crate::interrupt;
use crate::model::Source;
use lapis::{Error, Result};
use lapis_lm::hub::share::{receive, send};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The directory to send
    #[arg(long, conflicts_with = "model")]
    path: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// The machines to send to: mlx's host file, [{"ssh": "name", "ips": [...]}, ...]; this one is left out
    #[arg(long, required_unless_present = "receive")]
    hostfile: Option<PathBuf>,
    /// Where it is put there [default: where it is here]
    #[arg(long, required_if_eq("receive", "true"))]
    dst: Option<PathBuf>,
    /// A folder for what has not arrived whole [default: beside the target]
    #[arg(long)]
    tmpdir: Option<PathBuf>,
    /// Take what comes on standard input; this is how the other machines are called
    #[arg(long, hide = true)]
    receive: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let (tmpdir, dst) = (a.tmpdir.as_deref(), a.dst.as_deref());
    if a.receive {
        let shared = receive(&mut std::io::stdin().lock(), dst.unwrap_or(Path::new("")), tmpdir)?;
        println!("{}", json!({"schema": 1, "files": shared.files, "bytes": shared.bytes}));
        return Ok(());
    }
    let source = match (a.path.clone(), a.source.find()?) {
        (Some(path), _) | (None, Some(path)) => path,
        (None, None) => return Err(Error::value("share: name what to send, --path DIR or --model NAME")),
    };
    let here = source.canonicalize().map_err(|e| Error::io(format!("{}: {e}", source.display())))?;
    if !here.is_dir() {
        return Err(Error::io(format!("{} is no directory", source.display())));
    }
    // A snapshot keeps its own name; what it links to is none that others know.
    let whole = std::path::absolute(&source).map_err(|e| Error::io(format!("{}: {e}", source.display())))?;
    let target = dst.unwrap_or(&whole);
    let file = a.hostfile.unwrap_or_default();
    let hosts = hosts(&file)?;
    let others: Vec<&String> =
        hosts.iter().filter(|h| !(is_here(h) && target.canonicalize().is_ok_and(|t| t == here))).collect();
    if others.is_empty() {
        return Err(Error::value(format!("{} names no machine but this one", file.display())));
    }
    interrupt::watch();
    // All at once: each reads the files anew, from memory after the first.
    let done: Vec<Result<u64>> = std::thread::scope(|scope| {
        let to = |host: &String| {
            let (host, here) = (host.clone(), &here);
            scope.spawn(move || to_host(&host, here, target, tmpdir))
        };
        let all: Vec<_> = others.iter().map(|h| to(h)).collect();
        let fault = |_| Err(Error::eval("share: a thread has broken down"));
        all.into_iter().map(|thread| thread.join().unwrap_or_else(fault)).collect()
    });
    let mut sent = Vec::new();
    for (host, bytes) in others.iter().zip(done) {
        let bytes = bytes?;
        if !a.json {
            println!("{host}: {} ({bytes} bytes)", target.display());
        }
        sent.push(json!({"host": host, "bytes": bytes}));
    }
    if a.json {
        println!("{}", json!({"schema": 1, "path": here, "dst": target, "hosts": sent}));
    }
    Ok(())
}

/// Names of machines in a host file of mlx.
fn hosts(file: &Path) -> Result<Vec<String>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(format!("--hostfile {shown}: {e}")))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| Error::value(format!("--hostfile {shown}: {e}")))?;
    let all = value.get("hosts").unwrap_or(&value).as_array().cloned().unwrap_or_default();
    let name = |host: &Value| {
        let name = host.get("ssh").and_then(Value::as_str).filter(|n| {
            // Nothing that ssh would take for a flag.
            !n.is_empty() && !n.starts_with('-') && !n.contains(|c: char| c.is_whitespace() || c.is_control())
        });
        let wrong = || Error::value(format!("--hostfile {shown}: {host} has no \"ssh\" with the name of a machine"));
        name.map(str::to_string).ok_or_else(wrong)
    };
    match all.as_slice() {
        [] => Err(Error::value(format!("--hostfile {shown}: a list of hosts is needed, [{{\"ssh\": \"name\"}}, ...]"))),
        all => all.iter().map(name).collect(),
    }
}

fn is_here(host: &str) -> bool {
    let own = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    ["localhost", "127.0.0.1", "::1", own.trim()].contains(&host)
}

/// Words for a shell on the other side.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Sends a directory to one machine; gives the bytes.
fn to_host(host: &str, dir: &Path, target: &Path, tmpdir: Option<&Path>) -> Result<u64> {
    let mut command = if is_here(host) {
        let own = std::env::current_exe().map_err(|e| Error::io(format!("share: {e}")))?;
        let mut command = Command::new(own);
        command.args(["share", "--receive", "--dst"]).arg(target);
        tmpdir.map(|t| command.arg("--tmpdir").arg(t));
        command
    } else {
        let mut line = format!("lapis share --receive --dst {}", quoted(target));
        tmpdir.iter().for_each(|t| line.push_str(&format!(" --tmpdir {}", quoted(t))));
        let mut command = Command::new("ssh");
        command.args(["-o", "BatchMode=yes", "--", host, &line]);
        command
    };
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|e| Error::io(format!("share: {host} cannot be called: {e}")))?;
    let meter = Meter::new(host);
    let mut input = child.stdin.take().ok_or_else(|| Error::eval("share: a pipe is missing"))?;
    let sent = send(dir, &mut input, &mut |done, total| {
        meter.at(done, total);
        !interrupt::seen()
    });
    drop((input.flush(), input, meter));
    let o = child.wait_with_output().map_err(|e| Error::network(format!("share: {host}: {e}")))?;
    if !o.status.success() {
        // What the other side says is nearer to the cause than a pipe that broke.
        let said = String::from_utf8_lossy(&o.stderr).lines().take(3).collect::<Vec<_>>().join("\n  ");
        return Err(Error::network(format!("share: {host} did not take it:\n  {said}")));
    }
    let said: Value = serde_json::from_slice(&o.stdout).unwrap_or_default();
    let sent = sent?;
    if said["bytes"].as_u64() != Some(sent.bytes) {
        return Err(Error::network(format!(
            "share: {host} does not say that all has arrived: is lapis there as old as here?"
        )));
    }
    Ok(sent.bytes)
}
