//! What CubeCL compiles: whether it is kept on disk, and how much it is.

#[cfg(feature = "cube")]
use burn_cubecl::cubecl::{hash::StableHash, launched::LaunchedKernels};

/// Lets CubeCL keep compiled kernels on disk, where it keeps what its tuner chose: a later run then reads them. Without effect in a build without
/// the feature `persistence`, where a `cubecl.toml` or `burn.toml` says something, and after the first use of a device of CubeCL.
/// `wgpu` compiles anew in every process.
pub fn keep_compiled_kernels() {
    #[cfg(all(feature = "cube", feature = "persistence"))]
    {
        use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
        let mut config = CubeClRuntimeConfig::from_current_dir();
        // Settings cannot be compared otherwise.
        if format!("{config:?}") == format!("{:?}", CubeClRuntimeConfig::default()) {
            config.compilation.cache = true;
            CubeClRuntimeConfig::try_set(config.override_from_env());
        }
    }
}

/// Counts the different kernels that this process launches on devices of CubeCL, those that its tuner compares among them. Each
/// is compiled, or read, when it is launched first, so the count grows while a program waits for its first results. A launch takes a lock
/// and a hash more as long as the counter is there.
#[derive(Debug)]
pub struct LaunchCounter {
    #[cfg(feature = "cube")]
    known: std::collections::HashSet<StableHash>,
    #[cfg(feature = "cube")]
    open: LaunchedKernels,
}

impl LaunchCounter {
    /// Counts from now on, if a device of CubeCL is compiled in.
    #[must_use]
    pub fn start() -> Option<Self> {
        #[cfg(feature = "cube")]
        return Some(Self { known: Default::default(), open: LaunchedKernels::new() });
        #[cfg(not(feature = "cube"))]
        None
    }

    /// How many different kernels there were up to now.
    pub fn count(&mut self) -> usize {
        #[cfg(feature = "cube")]
        {
            // The next collection begins before this one ends, so that no launch is between them.
            let before = std::mem::replace(&mut self.open, LaunchedKernels::new());
            self.known.extend(before.finish());
            self.known.len()
        }
        #[cfg(not(feature = "cube"))]
        0
    }
}
