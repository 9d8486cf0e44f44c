//! `dr-train worker`.

use crate::cli::CommandError;
use crate::cli::values::one_of;
use crate::config::{DeviceKind, Devices};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `dr-train worker`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dr-train worker --token-file token                                   on each machine
  dr-train train --devices remote:gpu1:3000,remote:gpu2:3000 --token-file token")]
pub struct WorkerArgs {
    /// The port to listen on; 0 is any that is free
    #[arg(long, value_name = "PORT", default_value_t = 3000)]
    pub port: u16,
    /// File with the token that a training must have too
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// What to serve
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Which devices of that kind: `all`, or numbers such as `0,1`
    #[arg(long, value_name = "LIST", default_value_t = Devices::All)]
    pub devices: Devices,
}

/// Serves devices of this machine to trainings elsewhere, until Ctrl-C.
///
/// # Errors
/// A port that is taken, a device that is not there, no token; a build without workers.
#[cfg(feature = "remote")]
pub fn worker(args: &WorkerArgs) -> Result<(), CommandError> {
    use super::print;
    use crate::device::open_several;
    use crate::report::thousands;
    use crate::workers::{WorkerError, listen, read_token, serve};

    let token = read_token(&args.token_file)?;
    let listener = listen(args.port).map_err(|error| match error {
        WorkerError::Port { .. } => CommandError::from(error).with_hint("`--port 0` takes one that is free"),
        other => other.into(),
    })?;
    let (devices, kind) = open_several(args.device, &args.devices)?;
    let (count, port) = (devices.len(), listener.local_addr()?.port());
    let devices_word = if count == 1 { "device" } else { "devices" };
    print(&format!("serving {count} {devices_word} of {kind} on port {port}\n"))?;
    let operations = serve(listener, devices, kind, &token)?;
    print(&format!("ran {} operations of dr-kernels\n", thousands(operations as usize)))
}

/// The same in a build without workers.
///
/// # Errors
/// Always.
#[cfg(not(feature = "remote"))]
pub fn worker(_: &WorkerArgs) -> Result<(), CommandError> {
    Err(crate::workers::WorkerError::NotCompiled.into())
}
