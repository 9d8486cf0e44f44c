//! What torchvision calls the tensors of the same networks.

use super::architecture::{BlockKind, ConvNetKind, Stage};

impl ConvNetKind {
    /// The name in torchvision's state dict of the float network's tensor `name`, `stages.0.1.conv2.weight` for example;
    /// `None` if the network has no such tensor. The networks for small images have the names of the larger ones.
    #[must_use]
    pub fn torchvision_name(&self, name: &str) -> Option<String> {
        let (module, tensor) = match name.split_once(".norms.0.") {
            Some((norm, "gamma")) => (norm, "weight"),
            Some((norm, "beta")) => (norm, "bias"),
            Some((norm, statistics)) => (norm, statistics),
            None => name.rsplit_once('.')?,
        };
        let stages = (self.architecture)(self.usual_width).stages;
        let inverted = stages.iter().any(|stage| matches!(stage.kind, BlockKind::Inverted { .. }));
        let module = if inverted { mobilenet_module(module, &stages)? } else { resnet_module(module)? };
        Some(format!("{module}.{tensor}"))
    }
}

fn mobilenet_module(module: &str, stages: &[Stage]) -> Option<String> {
    // The first convolution is number 0, the last one comes after all blocks.
    let last = 1 + stages.iter().map(|stage| stage.blocks).sum::<usize>();
    match module {
        "stem" => return Some("features.0.0".into()),
        "stem_norm" => return Some("features.0.1".into()),
        "tail" => return Some(format!("features.{last}.0")),
        "tail_norm" => return Some(format!("features.{last}.1")),
        "head" => return Some("classifier.1".into()),
        _ => {}
    }
    let (stage, block, part) = block_part(module)?;
    let before = stages.get(..stage)?.iter().map(|stage| stage.blocks).sum::<usize>();
    let expands = stages.get(stage)?.kind != BlockKind::Inverted { expansion: 1 };
    let part = match (part, expands) {
        ("conv1", _) => "0.0",
        ("norm1", _) => "0.1",
        ("conv2", true) => "1.0",
        ("norm2", true) => "1.1",
        ("conv2", false) => "1",
        ("norm2", false) | ("conv3", true) => "2",
        ("norm3", true) => "3",
        _ => return None,
    };
    Some(format!("features.{}.conv.{part}", 1 + before + block))
}

fn resnet_module(module: &str) -> Option<String> {
    match module {
        "stem" => return Some("conv1".into()),
        "stem_norm" => return Some("bn1".into()),
        "head" => return Some("fc".into()),
        _ => {}
    }
    let (stage, block, part) = block_part(module)?;
    let part = match part {
        "shortcut" => "downsample.0".to_string(),
        "shortcut_norm" => "downsample.1".to_string(),
        part => part.replace("norm", "bn"),
    };
    Some(format!("layer{}.{block}.{part}", stage + 1))
}

/// `stages.1.0.conv2` to `(1, 0, "conv2")`.
fn block_part(module: &str) -> Option<(usize, usize, &str)> {
    let mut parts = module.strip_prefix("stages.")?.splitn(3, '.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?))
}
