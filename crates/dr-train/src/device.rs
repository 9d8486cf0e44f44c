//! From the name of a device to the device.

use crate::config::{DeviceKind, Devices};
use crate::note::detail;
use burn::tensor::Device;
use thiserror::Error;

/// A device that cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
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
        Devices::Numbers(numbers) => {
            let get = |&number: &usize| {
                found.get(number).cloned().ok_or(DeviceError::NoSuch { kind, number, count })
            };
            Ok((numbers.iter().map(get).collect::<Result<_, _>>()?, kind))
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
