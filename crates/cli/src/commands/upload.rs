//! `lapis upload`: a model to the hub.

use crate::hub::{HubArguments, Meter};
use crate::interrupt;
use lapis::{Error, Result};
use lapis_lm::hub::{Hub, Name};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The directory to upload
    #[arg(long, default_value = "mlx_model")]
    path: PathBuf,
    /// Where to: owner/name
    #[arg(long)]
    upload_repo: String,
    #[command(flatten)]
    hub: HubArguments,
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let name = Name::parse(&a.upload_repo)?.at(a.hub.revision.as_deref())?;
    interrupt::watch();
    upload(&a.hub.hub()?, &a.path, &name)
}

/// Where a result will go, once it is there. What keeps it from going there is told now.
pub(crate) fn target(hub: &HubArguments, name: &str) -> Result<(Hub, Name)> {
    let (hub, name) = (hub.hub()?, Name::parse(name)?);
    hub.may_upload(&name)?;
    Ok((hub, name))
}

/// Uploads a directory, with a line on a terminal, and says where it is.
pub(crate) fn upload(hub: &Hub, path: &Path, name: &Name) -> Result<()> {
    if !path.join("config.json").is_file() {
        return Err(Error::io(format!("{} is no model: it has no config.json", path.display())));
    }
    let meter = Meter::new(&name.to_string());
    let address = hub.upload(path, name, "Upload with lapis", &|done, total| {
        meter.at(done, total);
        !interrupt::seen()
    })?;
    drop(meter);
    println!("Upload successful, go to {address} for details.");
    Ok(())
}
