//! `limbeck demo`
use crate::error::Result;
/// Demo
#[derive(clap::Args)]
pub struct Args {}
pub fn run(_: &Args) -> Result<()> {
    Ok(())
}
