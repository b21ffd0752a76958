//! The command line.

use crate::{limits, peers, work};

pub(crate) const USAGE: &str = "\
usage: lapis-bench [--json] [--list] [--only NAME,..] [--peer mlx|numpy|torch].. [--threads N] [--seconds S] [--cpu-time]
  --json        one JSON object a line: name, value, unit, limit, ratio
  --list        names of the benchmarks
  --only        benchmarks whose name contains one of these (limit_* selects the limits alone)
  --peer        measure this peer too; LAPIS_PYTHON names the interpreter (default python3)
  --threads     threads of lapis, the peers and the limit loops (default: all)
  --seconds     time for each benchmark (default 1)
  --cpu-time    count processor time, for a machine that is busy with other things; needs --threads 1";

/// What to run.
pub(crate) struct Args {
    pub(crate) json: bool,
    pub(crate) only: Vec<String>,
    pub(crate) peers: Vec<String>,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
    pub(crate) cpu_time: bool,
}

impl Args {
    /// Whether `--only` lets `name` through.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| name.contains(o.as_str()))
    }
}

pub(crate) enum Command {
    Run(Args),
    Print(String),
}

pub(crate) fn parse(mut argv: impl Iterator<Item = String>) -> Result<Command, String> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut args = Args { json: false, only: vec![], peers: vec![], threads, seconds: 1.0, cpu_time: false };
    while let Some(flag) = argv.next() {
        let (flag, inline) = match flag.split_once('=') {
            Some((f, v)) => (f.to_owned(), Some(v.to_owned())),
            None => (flag, None),
        };
        let mut value = || inline.clone().or_else(|| argv.next()).ok_or(format!("{flag} needs a value"));
        match flag.as_str() {
            "--json" => args.json = true,
            "--only" => args.only.extend(value()?.split(',').filter(|s| !s.is_empty()).map(str::to_owned)),
            "--peer" => {
                for name in value()?.split(',') {
                    if !peers::NAMES.contains(&name) {
                        return Err(format!("--peer {name}: known peers are {}", peers::NAMES.join(", ")));
                    }
                    args.peers.push(name.to_owned());
                }
            }
            "--threads" => args.threads = number(&flag, &value()?, |n: &usize| *n > 0 && *n <= 4096)?,
            "--seconds" => args.seconds = number(&flag, &value()?, |s: &f64| *s > 0.0 && *s <= 3600.0)?,
            "--cpu-time" => args.cpu_time = true,
            "--list" => {
                let names = limits::NAMES.iter().copied().chain(work::all().into_iter().map(|c| c.name));
                return Ok(Command::Print(names.collect::<Vec<_>>().join("\n")));
            }
            "--help" | "-h" => return Ok(Command::Print(USAGE.to_owned())),
            _ => return Err(format!("unknown argument {flag}")),
        }
    }
    if args.cpu_time && args.threads > 1 {
        return Err("--cpu-time needs --threads 1".into());
    }
    Ok(Command::Run(args))
}

fn number<T: std::str::FromStr>(flag: &str, text: &str, ok: impl Fn(&T) -> bool) -> Result<T, String> {
    text.parse().ok().filter(ok).ok_or_else(|| format!("{flag} {text}: not a number in range"))
}
