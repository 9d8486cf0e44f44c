//! CubeCL kernels, compiled at run time for CUDA, wgpu, Vulkan and CubeCL's CPU runtime.
