//! What the commands do, once their arguments are checked.

mod eval;
mod export;
mod info;
mod latency;
mod quantize;
mod train;

pub use eval::eval;
pub use export::export;
pub use info::info;
pub use latency::latency;
pub use quantize::quantize;
pub use train::train;

use super::CommandError;
use crate::artifact::Artifact;
use crate::report::thousands;
use std::path::Path;

/// Prints to the standard output. That its reader went away is no error.
fn print(text: &str) -> Result<(), CommandError> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a model file, and says so.
fn save(artifact: &Artifact, path: &Path) -> Result<(), CommandError> {
    artifact.save(path)?;
    let (kind, bytes) = (artifact.description.kind, thousands(artifact.payload_bytes()));
    print(&format!("wrote {}: {kind}, {bytes} bytes\n", path.display()))
}
