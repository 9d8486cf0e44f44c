//! `dr-train generate`.

use super::{is_read, load_model, print};
use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Described, SavedModel};
use crate::cli::CommandError;
use crate::cli::values::{at_least_one, count, number, one_of, seed};
use crate::config::task::LANGUAGE;
use crate::config::{DeviceKind, Engine};
use crate::device;
use crate::evaluation::language;
use crate::generation::FakeReader;
use crate::mixed::{PlanError, PlanFile};
use crate::nn::{Assignment, AssignmentError, Pass};
use crate::note::note;
use crate::text::Tokenizer;
use burn::tensor::Device;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use dr_precision::{Precision, PrecisionPlan};
use dr_runtime::tensors::Network;
use dr_runtime::text::{
    ChatTemplate, GenerationConfig, Message, Reader, Sampling, Speed, StopTexts, TextError, generate as go_on,
};
use dr_runtime::{Arithmetic, RuntimeError};
use std::borrow::Cow;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// `dr-train generate`.
#[derive(Debug, Args)]
#[command(after_help = "\
The model is a file of this program, or a Llama in a folder of Hugging Face or as GGUF, which
computes in floats. How fast it was is printed to the standard error. How tokens are drawn is what
the model's generation_config.json says, unless a flag says otherwise.

Examples:
  dr-train generate --model runs/text-llama/model.safetensors --prompt 'ROMEO:'
  dr-train generate --model model.safetensors --precision w4a8 --prompt 'Once upon' --temperature 0.8
  dr-train generate --model model.safetensors --prompt 'Once upon' --switch 32:w4a8,64:w2a8
  dr-train generate --model model.safetensors --plan 4.toml --prompt 'Once upon' --switch 32:3.toml
  dr-train generate --model SmolLM2-135M-Instruct --chat --prompt 'What is a prime number?'")]
pub struct GenerateArgs {
    /// The model
    #[arg(long, value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// What it begins at [default: its highest precision]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Begin with the precisions that a plan has for the layers, as `dr-train search` writes it; of a model with nested
    /// weights, or one that was trained for mixtures
    #[arg(long, value_name = "FILE.toml", conflicts_with = "precision")]
    pub plan: Option<PathBuf>,
    /// Go on at other precisions, or with plans (N:FILE.toml), after so many new tokens
    #[arg(long, value_name = "N:PRECISION", value_delimiter = ',')]
    pub switch: Vec<SwitchAfter>,
    /// The beginning of the text
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// The prompt is what a user says, and the model answers: by its chat template
    #[arg(long)]
    pub chat: bool,
    /// What the model is told before a chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Ends the new text, which does not show it; may be given more than once
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// New tokens at most; fewer if the context has no room for more, or the text ends
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 128)]
    pub tokens: usize,
    /// How freely tokens are drawn; at 0 the most likely one is taken [default: that of the model, or 0]
    #[arg(long, value_name = "T", value_parser = number, allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Of how many of the most likely tokens one is drawn; 0 for all [default: that of the model, or 50]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub top_k: Option<usize>,
    /// Draw one of the most likely tokens that have this probability together [default: that of the model, or
    /// 1: all]
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Draw no token of less than this part of the largest probability [default: that of the model, or 0]
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Makes tokens less likely that the text already has, if above 1 [default: that of the model, or 1]
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f64>,
    /// Decides the draws
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// Compute in floats as in training (fake quantization), in integers, or with packed weights and float
    /// activations (language models)
    #[arg(long, value_parser = one_of(Engine::ALL), default_value_t = Engine::Integer)]
    pub engine: Engine,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
}

impl GenerateArgs {
    /// After how many new tokens the model goes on with what, that of the beginning first.
    ///
    /// # Errors
    /// A plan that cannot be read.
    pub fn switches(&self) -> Result<Vec<(usize, Layers)>, PlanError> {
        let precision = self.precision.map(SwitchTo::Precision);
        let first = self.plan.clone().map(SwitchTo::Plan).or(precision);
        let first = first.map(|to| SwitchAfter { after: 0, to });
        let read = |SwitchAfter { after, to }: &SwitchAfter| {
            let layers = match to {
                SwitchTo::Precision(precision) => Layers::At(*precision),
                SwitchTo::Plan(path) => Layers::Planned(PlanFile::load(path)?.plan),
            };
            Ok((*after, layers))
        };
        first.iter().chain(&self.switch).map(read).collect()
    }

    /// How tokens are drawn, if it is `usual` otherwise.
    ///
    /// # Errors
    /// Numbers that make no sense.
    pub fn sampling(&self, usual: Sampling) -> Result<Sampling, TextError> {
        let or = |flag: Option<f64>, usual: f32| flag.map_or(usual, |value| value as f32);
        let sampling = Sampling {
            repetition_penalty: or(self.repetition_penalty, usual.repetition_penalty),
            temperature: or(self.temperature, usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: or(self.top_p, usual.top_p),
            min_p: or(self.min_p, usual.min_p),
            seed: self.seed,
        };
        sampling.check().map(|()| sampling)
    }

    /// The text that the model reads.
    fn text(&self, artifact: &Artifact) -> Result<Cow<'_, str>, TextError> {
        if !self.chat {
            return Ok(Cow::Borrowed(&self.prompt));
        }
        let says = |role: &str, text: &String| Message::new(role, text);
        let mut messages: Vec<Message> = self.system.iter().map(|text| says("system", text)).collect();
        messages.push(says("user", &self.prompt));
        Ok(Cow::Owned(ChatTemplate::of(artifact)?.render(&messages)?))
    }
}

/// Another precision, or a plan, after so many new tokens: `32:w4a8` or `32:plan.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchAfter {
    /// How many.
    pub after: usize,
    /// To what.
    pub to: SwitchTo,
}

/// What a model is switched to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchTo {
    /// All layers to this precision.
    Precision(Precision),
    /// Each layer to what the plan in this file has for it.
    Plan(PathBuf),
}

/// What the layers of a model compute at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layers {
    /// All at this precision.
    At(Precision),
    /// Each at the precision that the plan has for it.
    Planned(PrecisionPlan),
}

/// A text that is no [`SwitchAfter`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}`: expected a number of tokens and a precision or the file of a plan, such as `32:w4a8` or `32:plan.toml`"
)]
pub struct SwitchAfterError(pub String);

impl FromStr for SwitchAfter {
    type Err = SwitchAfterError;

    fn from_str(text: &str) -> Result<Self, SwitchAfterError> {
        let wrong = || SwitchAfterError(text.to_owned());
        let (after, to) = text.split_once(':').ok_or_else(wrong)?;
        let after = after.trim().parse().map_err(|_| wrong())?;
        let to = match to.trim().parse() {
            Ok(precision) => SwitchTo::Precision(precision),
            Err(_) if to.ends_with(".toml") => SwitchTo::Plan(to.into()),
            Err(_) => return Err(wrong()),
        };
        Ok(Self { after, to })
    }
}

/// Goes on with a text, which is printed as it comes. How fast it was goes to the standard error.
///
/// # Errors
/// A model that cannot be read or is no language model, a precision that it does not have, a prompt that does not fit.
pub fn generate(args: &GenerateArgs) -> Result<(), CommandError> {
    let artifact = load_model(&args.model)?;
    let in_model = |error: ArtifactError| error.in_file(&args.model);
    artifact.description.check_task(LANGUAGE).map_err(in_model)?;
    let tokenizer = Tokenizer::from_json(artifact.tokenizer().map_err(in_model)?)?;
    let of_model = |error: TextError| CommandError::about(&args.model, error);
    let usual = GenerationConfig::of(&artifact).map_err(of_model)?.sampling();
    let sampling = args.sampling(usual)?;
    // A template has the special tokens in its text.
    let prompt = tokenizer.encode(&args.text(&artifact).map_err(of_model)?, !args.chat)?;
    let (device, device_name) = device::open(args.device)?;
    let switches = &args.switches()?[..];
    let text = Text { args, tokenizer: &tokenizer, prompt: &prompt, sampling, artifact: &artifact, switches };
    let arithmetic = match (artifact.description.kind, args.engine) {
        (ArtifactKind::Float, _) => {
            if let Some((_, layers)) = switches.first() {
                let expected = artifact.description.precisions.clone();
                let error = match *layers {
                    Layers::At(precision) => ArtifactError::Precision { precision, expected },
                    Layers::Planned(_) => ArtifactError::Plan(AssignmentError::Float.to_string()),
                };
                let hint = "a float model has none; `dr-train quantize` gives it some";
                return Err(CommandError::from(in_model(error)).with_hint(hint));
            }
            None
        }
        (ArtifactKind::Nested, Engine::Fake) => {
            let found = format!("`{}`: --engine fake: a model with nested weights", args.model.display());
            return Err(CommandError::new(format!("{found}: expected --engine integer")));
        }
        (_, Engine::Fake) => None,
        (_, Engine::Integer) => Some(Arithmetic::Integer),
        (_, Engine::WeightOnly) => Some(Arithmetic::WeightOnly),
    };
    let speed = match arithmetic {
        Some(arithmetic) => {
            let in_model = |error: RuntimeError| CommandError::about(&args.model, error);
            let (precision, plan) = match text.first() {
                Some(Layers::At(precision)) => (*precision, None),
                Some(Layers::Planned(plan)) => (highest(&artifact), Some(plan)),
                None => (highest(&artifact), None),
            };
            let mut network = Network::load(&artifact, precision, arithmetic, &device).map_err(in_model)?;
            plan.map_or(Ok(()), |plan| network.switch_plan(plan)).map_err(in_model)?;
            text.run(&mut network, |network, at| match &switches[at].1 {
                Layers::At(precision) => network.switch(*precision).map_err(in_model),
                Layers::Planned(plan) => network.switch_plan(plan).map_err(in_model),
            })
        }
        None => text.fake(&device),
    }?;
    let Speed { prompt_tokens, prompt_seconds, tokens, seconds } = speed;
    print("\n")?;
    note(format_args!(
        "{prompt_tokens} tokens of prompt in {prompt_seconds:.2} s, {tokens} more after the first in {seconds:.2} s: {:.1} tokens/s ({device_name})",
        speed.tokens_per_second()
    ));
    Ok(())
}

/// The highest precision of a model.
fn highest(artifact: &Artifact) -> Precision {
    match artifact.description.kind {
        ArtifactKind::Packed(precision) => precision,
        _ if artifact.description.plan.is_some() => artifact.description.edge,
        _ => artifact.description.precisions.highest(),
    }
}

/// A text that is gone on with.
struct Text<'a> {
    args: &'a GenerateArgs,
    tokenizer: &'a Tokenizer,
    prompt: &'a [u32],
    sampling: Sampling,
    artifact: &'a Artifact,
    /// After how many new tokens the model goes on with what.
    switches: &'a [(usize, Layers)],
}

impl<'a> Text<'a> {
    /// What the text begins with, if that was asked for.
    fn first(&self) -> Option<&'a Layers> {
        self.switches.iter().find(|(after, _)| *after == 0).map(|(_, layers)| layers)
    }

    /// In floats or fake quantization, whose precisions are said by each pass.
    fn fake(self, device: &Device) -> Result<Speed, CommandError> {
        let Self { artifact, args, switches, .. } = self;
        let in_model = |error: ArtifactError| error.in_file(&args.model);
        let mut model = artifact.network(device).map_err(in_model)?;
        let assignment = |(_, layers): &(usize, Layers)| match layers {
            Layers::At(precision) => artifact.check_precision(*precision).map(|()| None),
            Layers::Planned(plan) => Ok(Some(Assignment::new(&mut model, plan)?)),
        };
        let assignments: Vec<Option<Assignment>> =
            switches.iter().map(assignment).collect::<Result<_, _>>().map_err(in_model)?;
        let pass = |at: usize| match (&switches[at].1, &assignments[at]) {
            (Layers::At(precision), _) => Pass::at(*precision),
            (Layers::Planned(_), Some(assignment)) => Pass::mixed(assignment),
            (Layers::Planned(_), None) => unreachable!("every plan is assigned"),
        };
        let first = match switches.iter().position(|(after, _)| *after == 0) {
            Some(at) => pass(at),
            None if artifact.description.kind == ArtifactKind::Float => Pass::float(),
            None => Pass::at(highest(artifact)),
        };
        let mut reader = FakeReader { model: &model, pass: first, device };
        self.run(&mut reader, |reader, at| {
            reader.pass = pass(at);
            Ok(())
        })
    }

    fn run<R: Reader<Error = RuntimeError>>(
        self, reader: &mut R, switch: impl Fn(&mut R, usize) -> Result<(), CommandError>,
    ) -> Result<Speed, CommandError> {
        let Self { args, tokenizer, prompt, sampling, artifact, switches } = self;
        let ends = artifact.description.end_tokens();
        let (mut stream, mut stops) = (tokenizer.stream(), StopTexts::new(&args.stop));
        // The text goes on after the prompt's last token, which may be a part of a word.
        prompt.iter().try_for_each(|&token| stream.push(token).map(drop))?;
        stream.flush()?;
        let each = |reader: &mut R, number, token| -> Result<bool, CommandError> {
            // Only once it is known that there can be a text.
            if number == 0 && !args.chat && !is_read(&args.prompt)? {
                return Ok(false);
            }
            if ends.contains(&token) {
                return Ok(false);
            }
            if !is_read(&stops.push(&stream.push(token)?))? {
                return Ok(false);
            }
            if let Some(at) = switches.iter().position(|(after, _)| *after == number + 1) {
                switch(reader, at)?;
            }
            Ok(!stops.stopped())
        };
        let speed = go_on(reader, language(artifact)?, prompt, args.tokens, &sampling, each)?;
        print(&(stops.push(&stream.flush()?) + &stops.flush()))?;
        Ok(speed)
    }
}
