//! The choices that a run, a model file or the program has.

use dr_runtime::file::Resize;
use dr_runtime::named;

named! {
    /// How a step of mixed training draws the precision of a layer.
    #[derive(Default)]
    Sampling, "sampling" {
        /// Sensitive layers draw more bits more often (Hessian-aware stochastic bit-switching).
        #[default]
        Hasb = "hasb",
        /// Every layer draws uniformly.
        Uniform = "uniform",
    }

    /// Which precisions a layer can have in a mixture.
    #[derive(Default)]
    Widths, "widths" {
        /// The precisions of the model.
        #[default]
        Together = "together",
        /// Every width of weights with every width of activations.
        Separate = "separate",
    }

    /// Whose quantization a search takes to cost loss.
    LossTerms, "objective" {
        /// That of the weights.
        Weights = "weights",
        /// That of the weights and of the activations.
        Both = "both",
    }

    /// What the passes of a step of joint training see. The default is what runs had before there was a choice.
    #[derive(Default)]
    Batches, "kind of batches" {
        /// All the same images.
        #[default]
        Same = "same",
        /// Each images of its own: in an epoch, each goes over all of them.
        Separate = "separate",
    }

    /// Whose logits the lower precisions also learn from.
    Distill, "distillation" {
        /// Labels only.
        Off = "off",
        /// Those of the highest precision, in the same step.
        Highest = "highest",
        /// Those of the float network that training started from.
        Float = "float",
    }

    /// What the forward pass of joint training multiplies. The default is what runs had before there was a choice.
    #[derive(Default)]
    ForwardKind, "forward pass" {
        /// Fake-quantized floats.
        #[default]
        Float = "float",
        /// Their codes, where there are kernels for that (`flex`): the same values up to rounding.
        Integer = "integer",
    }

    /// How pictures with objects become images. The default is what runs did before there was a choice.
    #[derive(Default)]
    Fit, "fit" {
        /// With their own ratio of sides, as large as fits, with grey beside or below.
        Pad = "pad",
        /// Stretched.
        #[default]
        Stretch = "stretch",
    }

    /// Where to compute.
    DeviceKind, "device" {
        /// The first of cuda, vulkan, wgpu that is compiled in and there; else flex.
        Auto = "auto",
        /// The processor, in plain Rust.
        Flex = "flex",
        /// Any GPU, through WebGPU.
        Wgpu = "wgpu",
        /// Any GPU, through Vulkan.
        Vulkan = "vulkan",
        /// An NVIDIA GPU.
        Cuda = "cuda",
        /// The processor, through CubeCL.
        Cpu = "cpu",
    }

    /// How a quantized network is computed.
    Engine, "engine" {
        /// In floats, quantized and dequantized before each layer, as in training.
        Fake = "fake",
        /// In integers.
        Integer = "integer",
        /// With packed weights and activations in floats: language models.
        WeightOnly = "weight-only",
    }

    /// The rule that turns gradients into steps.
    OptimizerKind, "optimizer" {
        /// Stochastic gradient descent with Nesterov momentum 0.9.
        Sgd = "sgd",
        /// Adam.
        Adam = "adam",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
    }

    /// The numbers that convolutions and linear layers multiply in training; everything else stays in 32 bits.
    #[derive(Default)]
    ComputeKind, "type to compute in" {
        /// 32-bit floats.
        #[default]
        F32 = "f32",
        /// 16-bit floats of IEEE 754. Factors keep gradients in their range.
        F16 = "f16",
        /// 16-bit floats with the exponents of 32-bit ones.
        Bf16 = "bf16",
    }

    /// What the joint training is compared to.
    Baseline, "baseline" {
        /// Nothing.
        Off = "off",
        /// Separate networks, one for each precision and a float one, of the same total number of epochs.
        Single = "single",
    }
}

impl From<Fit> for Resize {
    fn from(fit: Fit) -> Self {
        match fit {
            Fit::Pad => Self::Pad,
            Fit::Stretch => Self::Stretch,
        }
    }
}

/// Files from before there was a choice say nothing of it.
impl From<Resize> for Fit {
    fn from(resize: Resize) -> Self {
        match resize {
            Resize::Pad => Self::Pad,
            _ => Self::Stretch,
        }
    }
}
