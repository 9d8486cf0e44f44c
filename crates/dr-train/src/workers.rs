//! Devices of other machines: a `dr-train worker` there serves them by Burn Remote, and a training computes on them as on its own.
//!
//! Only who has the token opens a session. What goes over the network is not encrypted, and neither is the token: the port of a worker
//! belongs in a network that one trusts.

use crate::config::{DeviceKind, WorkerAddress};
use crate::files::FileError;
use crate::note::detail;
use burn::tensor::Device;
use std::any::Any;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::thread::{self, sleep};
use std::time::Duration;
use thiserror::Error;

/// Why a worker's devices cannot be used, or a worker cannot serve.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The program was built without them.
    #[error("workers are not compiled in: expected a build with the feature `remote`")]
    NotCompiled,
    /// No token.
    #[error("`{0}`: expected --token-file, a file with the token of its worker")]
    NoToken(WorkerAddress),
    /// A file with no token.
    #[error("`{}`: holds no token: expected a line with one", .0.display())]
    EmptyToken(PathBuf),
    /// The file with the token.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing listens there.
    #[error("`{address}`: no worker answers: {reason}")]
    Unreachable {
        /// Where.
        address: WorkerAddress,
        /// What the network says.
        reason: String,
    },
    /// It has another token.
    #[error("`{0}`: the worker refuses the token: expected that of its --token-file")]
    Token(WorkerAddress),
    /// Another version serves there.
    #[error("`{address}`: a worker of version {found}: expected {expected}, that of this program")]
    Version {
        /// Where.
        address: WorkerAddress,
        /// Its version.
        found: String,
        /// The version here.
        expected: String,
    },
    /// It does not answer as a worker does.
    #[error("`{address}`: not a `dr-train worker`: {reason}")]
    Session {
        /// Where.
        address: WorkerAddress,
        /// What it does instead.
        reason: String,
    },
    /// It was there when the training began.
    #[error("`{0}`: the worker is gone")]
    Lost(WorkerAddress),
    /// All answer, but a session is over.
    #[error("a worker ended its session: {0}")]
    Ended(String),
    /// The port.
    #[error("port {port}: {source}: expected one that nothing listens on")]
    Port {
        /// Which.
        port: u16,
        /// What the system says.
        source: io::Error,
    },
    /// Serving stopped.
    #[error("cannot serve `{device}`: {reason}")]
    Serve {
        /// Which devices.
        device: DeviceKind,
        /// Why.
        reason: String,
    },
}

/// How long a machine may take to accept a connection.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Whether something listens at an address.
fn reach(address: &WorkerAddress) -> Result<(), WorkerError> {
    let unreachable =
        |error: io::Error| WorkerError::Unreachable { address: address.clone(), reason: error.to_string() };
    let found = format!("{}:{}", address.host, address.port).to_socket_addrs().map_err(unreachable)?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for at in found {
        match TcpStream::connect_timeout(&at, ANSWERS_WITHIN) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(unreachable(last))
}

/// The token in a file: its text, without the white space around it.
///
/// # Errors
/// A file that cannot be read, or is empty.
pub fn read_token(path: &Path) -> Result<String, WorkerError> {
    let text = std::fs::read_to_string(path).map_err(crate::files::at(path))?;
    match text.trim() {
        "" => Err(WorkerError::EmptyToken(path.to_owned())),
        token => Ok(token.to_owned()),
    }
}

/// All devices that a worker serves, if it takes the token in the file and has the version of this program.
///
/// # Errors
/// A worker that does not answer, refuses the token, or is of another version; no token.
pub fn connect(address: &WorkerAddress, token_file: Option<&Path>) -> Result<Vec<Device>, WorkerError> {
    let token = token_file.ok_or_else(|| WorkerError::NoToken(address.clone()))?;
    if cfg!(not(feature = "remote")) {
        return Err(WorkerError::NotCompiled);
    }
    let token = read_token(token)?;
    reach(address)?;
    let devices = open(address, &token)?;
    detail(format_args!("devices of `{address}`: {}", devices.len()));
    Ok(devices)
}

/// The first of the workers that does not answer any more.
fn lost(workers: &[WorkerAddress]) -> Option<WorkerError> {
    let gone = workers.iter().find(|worker| reach(worker).is_err());
    gone.map(|worker| WorkerError::Lost(worker.clone()))
}

/// Runs a training on devices of `workers`. Burn panics where a result does not come: that is the error of a worker.
///
/// # Errors
/// Those of `training`, or of the worker that they come from.
pub fn on_workers<T, E: From<WorkerError>>(
    workers: &[WorkerAddress], training: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    if workers.is_empty() {
        return training();
    }
    let hook = take_hook();
    set_hook(Box::new(|panic| detail(panic)));
    let result = catch_unwind(AssertUnwindSafe(training));
    set_hook(hook);
    match result {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(lost(workers).map_or(error, E::from)),
        Err(panic) => Err(lost(workers).unwrap_or_else(|| WorkerError::Ended(message(&*panic))).into()),
    }
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a reason").to_owned()
}

/// How often a worker is looked after, and how long a training has to notice by itself that one is gone.
const LOOKS_EVERY: Duration = Duration::from_secs(2);
const NOTICES_WITHIN: Duration = Duration::from_secs(10);

/// Looks after workers as long as the program runs. A machine without power ends no connection, and a training would wait for its
/// results: then `stop` is called.
pub fn look_after(workers: Vec<WorkerAddress>, stop: impl FnOnce(WorkerError) + Send + 'static) {
    if workers.is_empty() {
        return;
    }
    thread::spawn(move || {
        let gone = loop {
            sleep(LOOKS_EVERY);
            if let Some(gone) = lost(&workers) {
                break gone;
            }
        };
        sleep(NOTICES_WITHIN);
        stop(gone);
    });
}

#[cfg(not(feature = "remote"))]
fn open(_: &WorkerAddress, _: &str) -> Result<Vec<Device>, WorkerError> {
    Err(WorkerError::NotCompiled)
}

#[cfg(not(feature = "remote"))]
pub(crate) fn tell_operations(_: &[Device]) {}

#[cfg(feature = "remote")]
use sessions::open;
#[cfg(feature = "remote")]
pub(crate) use sessions::tell_operations;
#[cfg(feature = "remote")]
pub use sessions::{listen, serve};

/// What needs Burn Remote.
#[cfg(feature = "remote")]
mod sessions {
    use super::WorkerError;
    use crate::config::{DeviceKind, WorkerAddress};
    use crate::note::{detail, note};
    use burn::remote::{ConnectError, RemoteHost};
    use burn::server::{AuthorizationRequest, PeerAuthorizer, TokenAuthorizer, WebSocketTransport};
    use burn::tensor::Device;
    use dr_kernels::remote::{Version, Worker, serving};
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The devices of the worker at an address where something listens.
    pub(super) fn open(address: &WorkerAddress, token: &str) -> Result<Vec<Device>, WorkerError> {
        let at = || address.clone();
        let WorkerAddress { host, port } = address;
        let host = RemoteHost::websocket(&format!("ws://{host}:{port}")).with_credential(token);
        let devices = host.devices().map_err(|error| match error {
            ConnectError::Unauthorized => WorkerError::Token(at()),
            ConnectError::IncompatibleProtocol { client_version, server_version } => WorkerError::Version {
                address: at(),
                found: format!("{server_version} of the protocol"),
                expected: client_version.to_string(),
            },
            error => WorkerError::Session { address: at(), reason: error.to_string() },
        })?;
        let devices = devices.into_vec();
        if let Some(device) = devices.first() {
            let Worker { version, .. } = Worker::of(device)
                .map_err(|error| WorkerError::Session { address: at(), reason: error.to_string() })?;
            if version != Version::HERE {
                let (found, expected) = (version.to_string(), Version::HERE.to_string());
                return Err(WorkerError::Version { address: at(), found, expected });
            }
        }
        Ok(devices)
    }

    /// Says how many operations of `dr-kernels` the worker of each device has run.
    pub(crate) fn tell_operations(devices: &[Device]) {
        for (number, worker) in devices.iter().map(Worker::of).enumerate() {
            let operations = worker.map_or(0, |worker| worker.operations);
            detail(format_args!("device {number}: its worker has run {operations} operations of dr-kernels"));
        }
    }

    /// Takes a port, of 0 any that is free.
    ///
    /// # Errors
    /// A port that is taken.
    pub fn listen(port: u16) -> Result<TcpListener, WorkerError> {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|source| WorkerError::Port { port, source })
    }

    /// Says which clients come.
    struct Said(TokenAuthorizer);

    impl PeerAuthorizer for Said {
        fn authorize(&self, request: AuthorizationRequest<'_>) -> Result<(), String> {
            let (client, device) = (request.client, request.device_index);
            let result = self.0.authorize(request);
            let what = if result.is_ok() { "opens" } else { "has another token for" };
            note(format_args!("{client} {what} device {device}"));
            result
        }
    }

    /// Says what goes wrong in sessions.
    struct Warnings;

    impl log::Log for Warnings {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Warn
        }

        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                note(record.args());
            }
        }

        fn flush(&self) {}
    }

    /// Serves devices to who has the token, until Ctrl-C or the end of the process is asked for; how many operations of `dr-kernels` that
    /// were.
    ///
    /// # Errors
    /// Devices that Burn Remote cannot serve, and a network that fails.
    pub fn serve(
        listener: TcpListener, devices: Vec<Device>, kind: DeviceKind, token: &str,
    ) -> Result<u64, WorkerError> {
        let failed = |reason: String| WorkerError::Serve { device: kind, reason };
        // A session that panics ends with a warning.
        std::panic::set_hook(Box::new(|_| {}));
        let _ = log::set_logger(&Warnings).map(|()| log::set_max_level(log::LevelFilter::Warn));
        let authorizer = TokenAuthorizer::new(token).map_err(|error| failed(error.to_string()))?;
        let run = Arc::new(AtomicU64::new(0));
        let server = serving(devices, &run).with_authorizer(Said(authorizer));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        let result = runtime.block_on(async {
            tokio::select! {
                served = server.serve_async(WebSocketTransport::from_listener(listener)) => {
                    served.map_err(|error| failed(error.to_string()))
                }
                () = stopped() => Ok(()),
            }
        });
        runtime.shutdown_background();
        result.map(|()| run.load(Ordering::Relaxed))
    }

    /// Ends with Ctrl-C, or where a service is asked to end.
    async fn stopped() {
        let interrupt = tokio::signal::ctrl_c();
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            if let Ok(mut terminate) = signal(SignalKind::terminate()) {
                tokio::select! {
                    _ = interrupt => {}
                    _ = terminate.recv() => {}
                }
                return;
            }
        }
        let _ = interrupt.await;
    }
}
