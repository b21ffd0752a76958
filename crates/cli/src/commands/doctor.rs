//! `lapis doctor`: what this machine has.

use lapis::{Result, memory};
use lapis_cpu::quant::Arithmetic;
use lapis_lm::fit::{available, bandwidth};
use lapis_lm::hub::Settings;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    // The default limit is set when the first value is computed.
    lapis::array([0.0f32]).square().eval()?;
    let (instructions, threads) = (lapis_cpu::isa::features().name(), lapis_cpu::pool::configured_threads()?);
    let (free, speed) = (available(), bandwidth()?);
    let arithmetic = match lapis_cpu::quant::arithmetic() {
        Arithmetic::Fast => "fast: inputs of packed layers in half precision are 8-bit numbers (LAPIS_EXACT=1: f32)",
        Arithmetic::Exact => "exact (LAPIS_EXACT)",
    };
    let hub = Settings::from_env();
    let pages = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let pages = pages.split(['[', ']']).nth(1).unwrap_or("unknown");
    if a.json {
        let hub = hub.as_ref().ok();
        println!(
            "{}",
            serde_json::json!({
                "arithmetic": arithmetic, "schema": 1, "version": env!("CARGO_PKG_VERSION"), "instruction_set": instructions,
                "threads": threads, "memory_limit": memory::limit(), "memory_free": free, "bandwidth": speed,
                "huge_pages": pages, "cache": hub.map(|h| &h.cache), "endpoint": hub.map(|h| &h.endpoint),
                "token": hub.is_some_and(|h| h.token.is_some()), "offline": hub.is_some_and(|h| h.offline),
            })
        );
        return Ok(());
    }
    println!("lapis            {}", env!("CARGO_PKG_VERSION"));
    println!("instruction set  {}", instructions);
    println!("threads          {}", threads);
    println!("arithmetic       {arithmetic}");
    println!("memory limit     {:.1} GB, {:.1} GB free", memory::limit() as f64 / 1e9, free as f64 / 1e9);
    println!("memory speed     {:.1} GB/s", speed / 1e9);
    println!("huge pages       {pages}");
    match hub {
        Ok(hub) => {
            println!("cache            {}", hub.cache.display());
            let offline = if hub.offline { ", offline" } else { "" };
            println!("hub              {}{offline}", hub.endpoint);
            println!("token            {}", if hub.token.is_some() { "there" } else { "none" });
        }
        Err(e) => println!("hub              {}", e.message().trim_start_matches("[hub] ")),
    }
    Ok(())
}
