//! The demo model of lapis, from its text to its score: `cargo xtask demo-model`. See README.md beside this folder.

mod checkpoint;
#[cfg(test)]
mod commands;
mod curve;
mod dice;
mod howto;
mod model;
mod progress;
mod score;
mod tales;
#[cfg(test)]
mod tests;
mod text;
mod tokenize;
mod train;

use score::Chat;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use text::{Stage, Text};
use train::{Recipe, Run};

/// Errors are told to whoever runs the program.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
usage: cargo xtask demo-model [--score | --text N | --rows N | --ask QUESTION | --write] [--bits B]
  (nothing)       trains, or goes on training; writes model/, loss.svg and the score
  --score         scores model/ on the held-out questions and on tales
  --ask QUESTION  asks model/ [--temp T] [--seed N]
  --text N        prints N conversations of the training text [--seed N]
  --rows N        prints them as rows of a data set
  --write         writes model/ from the last saved state
  --model DIR     another folder than examples/demo-model/model
  --state DIR     another folder than target/demo-model
  --bits B        bits of the weights that are written (default 8)";

struct Args {
    task: String,
    value: String,
    model: PathBuf,
    state: PathBuf,
    bits: Option<usize>,
    temperature: f64,
    seed: u64,
}

fn parse(mut argv: impl Iterator<Item = String>) -> Result<Args> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut args = Args {
        task: String::new(),
        value: String::new(),
        model: here.join("model"),
        state: here.join("../../target/demo-model"),
        bits: None,
        temperature: 0.0,
        seed: 0,
    };
    while let Some(flag) = argv.next() {
        let mut value = || argv.next().ok_or(format!("{flag} needs a value\n{USAGE}"));
        match flag.as_str() {
            "--score" | "--write" => args.task = flag,
            "--ask" | "--text" | "--rows" => (args.value, args.task) = (value()?, flag),
            "--model" => args.model = value()?.into(),
            "--state" => args.state = value()?.into(),
            "--bits" => args.bits = Some(value()?.parse()?),
            "--temp" => args.temperature = value()?.parse()?,
            "--seed" => args.seed = value()?.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let text = Text::new()?;
    match args.task.as_str() {
        "--text" | "--rows" => {
            let (mut dice, recipe) = (dice::Dice::new(args.seed, 0), Recipe::full());
            for _ in 0..args.value.parse()? {
                let conversation = text.conversation(&mut dice, Stage::at(recipe.steps));
                match args.task.as_str() {
                    "--rows" => println!("{}", serde_json::json!({"messages": text::messages(&conversation)})),
                    _ => println!("{conversation}"),
                }
            }
            return Ok(());
        }
        "--ask" => {
            println!("{}", read(&args.model)?.answer(&args.value, args.temperature, args.seed)?);
            return Ok(());
        }
        "--score" => {
            read(&args.model)?.score(&text.tales)?;
            return Ok(());
        }
        _ => {}
    }
    // A step frees and takes the same hundreds of megabytes again: kept, they need not be cleared each time.
    lapis::memory::set_cache_limit(2 << 30);
    let mut recipe = Recipe::full();
    recipe.bits = args.bits.unwrap_or(recipe.bits);
    let mut run = Run::new(&recipe, &text)?;
    run.resume(&args.state)?;
    if args.task.is_empty() {
        run.finish(&text, &args.state)?;
    }
    checkpoint::write(&args.model, &run.model, &run.config, &run.tokens, recipe.bits)?;
    let curve = args.model.parent().unwrap_or(Path::new(".")).join("loss.svg");
    checkpoint::write_text(&curve, &curve::svg(&run.losses))?;
    let score = read(&args.model)?.score(&text.tales)?;
    checkpoint::write_text(&args.model.join("score.json"), &format!("{}\n", serde_json::to_string_pretty(&score)?))
}

fn read(dir: &Path) -> Result<Chat> {
    let (model, config, tokens) = checkpoint::read(dir)?;
    Ok(Chat { model, config, tokens })
}
