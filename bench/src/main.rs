//! Measures lapis against the limits of the machine it runs on, and against peers that are installed.
//!
//! `cargo run --release -p lapis-bench` prints one line a benchmark: what lapis reached (median), what the machine
//! allows (a plain loop without arithmetic, or without memory, measured in turns with the work), and the ratio.
//! Knows lapis by its public interface only.

mod args;
mod clock;
mod limits;
mod loops;
mod measure;
mod peers;
mod report;
mod work;

use args::{Args, Command};
use measure::Bench;
use report::{Report, Row};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = match args::parse(std::env::args().skip(1)) {
        Ok(Command::Run(args)) => args,
        Ok(Command::Print(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("error: {message}\n\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    run(&args)
}

fn run(args: &Args) -> ExitCode {
    // Before the first use of lapis: its pool and the peers read the number of threads when they start.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("LAPIS_THREADS", args.threads.to_string()) };
    if args.cpu_time {
        clock::use_cpu_time();
    }
    let mut report = Report::new(args.json, &args.peers);
    let mut failed = false;

    limits::rows(args, &mut report);
    for case in work::all().into_iter().filter(|c| args.wants(c.name)) {
        report.progress(case.name);
        let bench = Bench { threads: args.threads, seconds: args.seconds };
        match (case.run)(&bench) {
            Ok(m) => report.row(Row::of_lapis(case.name, &m)),
            Err(e) => {
                failed = true;
                eprintln!("{}: {e}", case.name);
            }
        }
    }
    for peer in &args.peers {
        report.progress(peer);
        for note in peers::run(peer, args, &mut report) {
            eprintln!("{note}");
        }
    }
    report.finish();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
