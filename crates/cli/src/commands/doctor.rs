//! `lapis doctor`: what this machine has.

use lapis::{Result, memory};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    // The default limit is set when the first value is computed.
    lapis::array([0.0f32]).square().eval()?;
    let (instructions, threads) = (lapis_cpu::isa::isa().name(), lapis_cpu::pool::configured_threads()?);
    if a.json {
        println!(
            "{}",
            serde_json::json!({
                "schema": 1, "version": env!("CARGO_PKG_VERSION"), "instruction_set": instructions,
                "threads": threads, "memory_limit": memory::limit(),
            })
        );
        return Ok(());
    }
    println!("lapis            {}", env!("CARGO_PKG_VERSION"));
    println!("instruction set  {}", instructions);
    println!("threads          {}", threads);
    println!("memory limit     {:.1} GB", memory::limit() as f64 / 1e9);
    Ok(())
}
