//! From the name of a device to the device.

use crate::config::DeviceKind;
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

/// The device of that name, and which kind it is: [`DeviceKind::Auto`] takes the first GPU of cuda, vulkan and wgpu that
/// is compiled in and there, else flex.
///
/// # Errors
/// A device that is not compiled in, or not there.
pub fn open(kind: DeviceKind) -> Result<(Device, DeviceKind), DeviceError> {
    if kind == DeviceKind::Auto {
        let gpus = [DeviceKind::Cuda, DeviceKind::Vulkan, DeviceKind::Wgpu];
        let found = gpus.into_iter().find_map(|gpu| open(gpu).ok());
        return Ok(found.unwrap_or_else(|| (Device::flex(), DeviceKind::Flex)));
    }
    if !is_compiled(kind) {
        return Err(DeviceError::NotCompiled(kind));
    }
    // Drivers that are not there panic or abort inside the libraries that look for them: ask, quietly, first.
    let found = std::panic::catch_unwind(|| first(kind)).ok().flatten();
    found.map(|device| (device, kind)).ok_or(DeviceError::NotThere(kind))
}

fn first(kind: DeviceKind) -> Option<Device> {
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda", feature = "cpu"))]
    use burn::tensor::DeviceType;
    match kind {
        DeviceKind::Flex => Some(Device::flex()),
        #[cfg(feature = "wgpu")]
        DeviceKind::Wgpu => Device::enumerate(DeviceType::Wgpu).into_vec().into_iter().next(),
        #[cfg(feature = "vulkan")]
        DeviceKind::Vulkan => Device::enumerate(DeviceType::Vulkan).into_vec().into_iter().next(),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => Device::enumerate(DeviceType::Cuda).into_vec().into_iter().next(),
        #[cfg(feature = "cpu")]
        DeviceKind::Cpu => Some(Device::cpu()),
        _ => None,
    }
}
