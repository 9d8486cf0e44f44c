//! From the name of a device to the device.

use crate::config::{DeviceKind, Devices, Place, TrainConfig, WorkerAddress};
use crate::note::detail;
use crate::workers::{WorkerError, connect};
use burn::tensor::Device;
use thiserror::Error;

/// A device that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The program was built without it.
    #[error("device `{0}` is not compiled in: expected {available}", available = compiled())]
    NotCompiled(DeviceKind),
    /// This machine has none.
    #[error("device `{0}`: this machine has none, or its driver is missing; expected {available}", available = compiled())]
    NotThere(DeviceKind),
    /// This machine has fewer.
    #[error("device {number} of `{kind}`: this machine has {count}; expected 0 to {}", count - 1)]
    NoSuch {
        /// The kind.
        kind: DeviceKind,
        /// What was asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// The same of a worker.
    #[error("device {number} of `{worker}`: it serves {count}; expected 0 to {}", count.saturating_sub(1))]
    NotServed {
        /// The worker.
        worker: WorkerAddress,
        /// What was asked for.
        number: usize,
        /// How many it serves.
        count: usize,
    },
    /// Workers and devices of something else at the same time.
    #[error("--devices {devices} with --device {device}: expected one of them")]
    TwoPlaces {
        /// What was asked for.
        device: Place,
        /// And what else.
        devices: Devices,
    },
    /// Workers where devices of this machine are served.
    #[error("devices `{0}`: expected `all`, or numbers such as `0,1`, of this machine")]
    Elsewhere(Devices),
    /// A worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// The names of the devices that are compiled in.
fn compiled() -> String {
    let names = DeviceKind::ALL.iter().filter(|kind| is_compiled(**kind)).map(|kind| kind.name());
    format!("one of {}", names.collect::<Vec<_>>().join(", "))
}

fn is_compiled(kind: DeviceKind) -> bool {
    match kind {
        DeviceKind::Auto | DeviceKind::Flex => true,
        DeviceKind::Wgpu => cfg!(feature = "wgpu"),
        DeviceKind::Vulkan => cfg!(feature = "vulkan"),
        DeviceKind::Cuda => cfg!(feature = "cuda"),
        DeviceKind::Cpu => cfg!(feature = "cpu"),
    }
}

/// The first device of that name, and which kind it is: [`DeviceKind::Auto`] takes the first GPU of cuda, vulkan and wgpu that
/// is compiled in and there, else flex.
///
/// # Errors
/// A device that is not compiled in, or not there.
pub fn open(kind: DeviceKind) -> Result<(Device, DeviceKind), DeviceError> {
    let (devices, kind) = open_several(kind, &Devices::Numbers(vec![0]))?;
    let first = devices.into_iter().next();
    first.map(|device| (device, kind)).ok_or(DeviceError::NotThere(kind))
}

/// The same of several devices of one kind, in the order of `devices`.
///
/// # Errors
/// Those of [`open`], and a number that no device has.
pub fn open_several(kind: DeviceKind, devices: &Devices) -> Result<(Vec<Device>, DeviceKind), DeviceError> {
    if kind != DeviceKind::Flex {
        dr_kernels::keep_compiled_kernels();
    }
    if kind == DeviceKind::Auto {
        let gpus = [DeviceKind::Cuda, DeviceKind::Vulkan, DeviceKind::Wgpu];
        let found = gpus.into_iter().find(|&gpu| !there(gpu).is_empty());
        return open_several(found.unwrap_or(DeviceKind::Flex), devices);
    }
    if !is_compiled(kind) {
        return Err(DeviceError::NotCompiled(kind));
    }
    let found = there(kind);
    let count = found.len();
    if count == 0 {
        return Err(DeviceError::NotThere(kind));
    }
    detail(format_args!("device: {kind}, {devices} of {count}"));
    match devices {
        Devices::All => Ok((found, kind)),
        Devices::Workers(_) => Err(DeviceError::Elsewhere(devices.clone())),
        Devices::Numbers(numbers) => {
            let get = |&number: &usize| {
                found.get(number).cloned().ok_or(DeviceError::NoSuch { kind, number, count })
            };
            Ok((numbers.iter().map(get).collect::<Result<_, _>>()?, kind))
        }
    }
}

/// The devices of a training.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Those that train together; there is at least one.
    pub devices: Vec<Device>,
    /// What they are called.
    pub name: String,
    /// The workers that serve them, if they are not of this machine.
    pub workers: Vec<WorkerAddress>,
}

/// The devices that a training is to take: without numbers the first of its place, and all of workers.
///
/// # Errors
/// Those of [`open_several`] and of [`connect`].
pub fn open_for(config: &TrainConfig) -> Result<Opened, DeviceError> {
    let (token, workers) = (config.token_file.as_deref(), config.workers());
    let first = Devices::Numbers(vec![0]);
    match (&config.device, config.devices.as_ref().unwrap_or(&first)) {
        (Place::Here(DeviceKind::Auto), devices @ Devices::Workers(_)) => {
            let found = workers.iter().map(|worker| connect(worker, token)).collect::<Result<Vec<_>, _>>()?;
            Ok(Opened { devices: found.concat(), name: devices.to_string(), workers })
        }
        (device, devices @ Devices::Workers(_)) => {
            Err(DeviceError::TwoPlaces { device: device.clone(), devices: devices.clone() })
        }
        (Place::Here(kind), devices) => {
            let (devices, kind) = open_several(*kind, devices)?;
            Ok(Opened { devices, name: kind.to_string(), workers })
        }
        (Place::Worker(worker), devices) => {
            let found = connect(worker, token)?;
            let count = found.len();
            let get = |&number: &usize| {
                let missing = || DeviceError::NotServed { worker: worker.clone(), number, count };
                found.get(number).cloned().ok_or_else(missing)
            };
            let devices = match devices {
                Devices::Numbers(numbers) => numbers.iter().map(get).collect::<Result<_, _>>()?,
                Devices::All | Devices::Workers(_) => found,
            };
            Ok(Opened { devices, name: worker.to_string(), workers })
        }
    }
}

/// All devices of a kind. Drivers that are not there panic or abort inside the libraries that look for them: ask, quietly, first.
fn there(kind: DeviceKind) -> Vec<Device> {
    std::panic::catch_unwind(|| all(kind)).unwrap_or_default()
}

/// All devices of a kind.
fn all(kind: DeviceKind) -> Vec<Device> {
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]
    use burn::tensor::DeviceType;
    match kind {
        DeviceKind::Flex => vec![Device::flex()],
        #[cfg(feature = "wgpu")]
        DeviceKind::Wgpu => Device::enumerate(DeviceType::Wgpu).into_vec(),
        #[cfg(feature = "vulkan")]
        DeviceKind::Vulkan => Device::enumerate(DeviceType::Vulkan).into_vec(),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => Device::enumerate(DeviceType::Cuda).into_vec(),
        #[cfg(feature = "cpu")]
        DeviceKind::Cpu => vec![Device::cpu()],
        _ => vec![],
    }
}
