//! What ONNX files do not say of the images that their networks take.

use super::CommandError;
use super::values::one_of;
use crate::artifact::{Artifact, Description};
use crate::config::ImageSize;
use crate::data::{ChannelOrder, Normalization};
use crate::weights::load_onnx;
use clap::Args;
use dr_runtime::file::Resize;
use dr_runtime::graph::Op;
use dr_runtime::onnx::Layout;
use std::path::Path;

/// How pictures become the images that the network of an ONNX file takes.
#[derive(Args, Clone, Debug, Default, PartialEq)]
#[command(next_help_heading = "Images of an ONNX file, which does not say this")]
pub struct PictureArgs {
    /// Rows and columns of the images, where the file leaves them open [default: 224]
    #[arg(long, value_name = "N|HxW", allow_negative_numbers = true)]
    pub image_size: Option<ImageSize>,
    /// What of a picture becomes an image: its `middle`, seven eighths of the largest part with the image's ratio of sides;
    /// its middle once the shorter side has N pixels; or all of it, by `stretch`ing, or `pad`ded with grey [default: middle]
    #[arg(long, value_name = "middle|N|stretch|pad", allow_negative_numbers = true)]
    pub resize: Option<Resize>,
    /// What is subtracted from pixels from 0 to 1, one number or one for each channel [default: 0]
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_negative_numbers = true)]
    pub mean: Option<Vec<f32>>,
    /// What then divides them; with 0.00392157, 1 / 255, they are from 0 to 255 [default: 1]
    #[arg(long, value_name = "LIST", value_delimiter = ',', allow_negative_numbers = true)]
    pub std: Option<Vec<f32>>,
    /// The colours of three channels, in the network's order, which is also that of --mean and --std; a single channel is
    /// grey [default: rgb]
    #[arg(long, value_name = "ORDER", value_parser = one_of(ChannelOrder::ALL))]
    pub channel_order: Option<ChannelOrder>,
    /// Where the channels are in the file's input: before rows and columns, or last; arrays for the network have them
    /// before [default: nchw]
    #[arg(long, value_name = "LAYOUT", value_parser = one_of(Layout::ALL))]
    pub layout: Option<Layout>,
}

impl PictureArgs {
    /// What the description of a network for images says.
    pub(super) fn of(description: &Description) -> Self {
        let Description { input, resize, normalization, graph, .. } = description;
        if !matches!(graph.as_ref().and_then(|graph| graph.input()), Some(Op::Images { .. })) {
            return Self::default();
        }
        let Normalization { mean, std, order } = normalization.clone();
        Self {
            image_size: Some([input.height, input.width].into()),
            resize: Some(*resize),
            mean: Some(mean),
            std: Some(std),
            channel_order: Some(order),
            layout: None,
        }
    }

    /// These, and others where nothing is said.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            image_size: self.image_size.or(other.image_size),
            resize: self.resize.or(other.resize),
            mean: self.mean.or(other.mean),
            std: self.std.or(other.std),
            channel_order: self.channel_order.or(other.channel_order),
            layout: self.layout.or(other.layout),
        }
    }

    /// A flag that is given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let Self { image_size, resize, mean, std, channel_order, layout } = self;
        let flags = [
            ("image-size", image_size.is_some()),
            ("resize", resize.is_some()),
            ("mean", mean.is_some()),
            ("std", std.is_some()),
            ("channel-order", channel_order.is_some()),
            ("layout", layout.is_some()),
        ];
        flags.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    /// The network of an ONNX file, and what becomes of pictures for it.
    ///
    /// # Errors
    /// A file that cannot be read or run, and what the network's input contradicts.
    pub(super) fn load(&self, path: &Path) -> Result<Artifact, CommandError> {
        let mut artifact = load_onnx(path, self.image_size.map(Into::into), self.layout.unwrap_or_default())?;
        let (input, file) = (artifact.description.input, path.display());
        let wrong = |flag: &str, found: &dyn std::fmt::Display, expected: &str| {
            CommandError::new(format!("--{flag} {found}: expected {expected}, as `{file}` takes"))
        };
        if !matches!(artifact.graph()?.input(), Some(Op::Images { .. })) {
            return match self.given() {
                Some(flag) => {
                    let found = format!("--{flag}: `{file}` takes arrays");
                    Err(CommandError::new(format!("{found}: expected a network for images"))
                        .with_hint("--layout nhwc is for networks that take images with the channels last"))
                }
                None => Ok(artifact),
            };
        }
        let (size, channels) = (ImageSize::from([input.height, input.width]), input.channels);
        if let Some(given) = self.image_size.filter(|&given| given != size) {
            return Err(wrong("image-size", &given, &size.to_string()));
        }
        let of_channels = |flag: &str, given: &Option<Vec<f32>>, usual: f32| {
            let numbers = given.clone().unwrap_or_else(|| vec![usual]);
            let fits = |x: f32| x.is_finite() && (flag == "mean" || x > 0.0);
            match &numbers[..] {
                all if !all.iter().all(|&x| fits(x)) => {
                    let expected = if flag == "mean" { "finite numbers" } else { "finite numbers above 0" };
                    Err(CommandError::new(format!("--{flag} {}: expected {expected}", list(all))))
                }
                &[one] => Ok(vec![one; channels]),
                all if all.len() == channels => Ok(numbers),
                all => {
                    Err(wrong(flag, &list(all), &format!("one number or {channels}, one for each channel")))
                }
            }
        };
        let order = self.channel_order.unwrap_or_default();
        let (mean, std) = (of_channels("mean", &self.mean, 0.0)?, of_channels("std", &self.std, 1.0)?);
        let normalization = Normalization { mean, std, order };
        if !normalization.fits(channels) {
            let expected = if channels == 1 { "a grey channel" } else { &format!("{channels} channels") };
            return Err(wrong("channel-order", &order, expected));
        }
        artifact.description.normalization = normalization;
        artifact.description.resize = self.resize.unwrap_or_default();
        Ok(artifact)
    }
}

fn list(numbers: &[f32]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
