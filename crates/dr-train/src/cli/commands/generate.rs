//! `dr-train generate`.

use super::{load_model, print};
use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Described, SavedModel};
use crate::cli::{CommandError, GenerateArgs};
use crate::config::Engine;
use crate::config::task::LANGUAGE;
use crate::device;
use crate::evaluation::language;
use crate::generation::FakeReader;
use crate::nn::Pass;
use crate::text::Tokenizer;
use burn::tensor::Device;
use dr_precision::Precision;
use dr_runtime::Arithmetic;
use dr_runtime::RuntimeError;
use dr_runtime::tensors::Network;
use dr_runtime::text::{Reader, Sampling, Speed, generate as go_on};
use std::io::Write;

/// Goes on with a text, which is printed as it comes. How fast it was goes to the standard error.
///
/// # Errors
/// A model that cannot be read or is no language model, a precision that it does not have, a prompt that does not fit.
pub fn generate(args: &GenerateArgs) -> Result<(), CommandError> {
    let artifact = load_model(&args.model)?;
    let in_model = |error: ArtifactError| error.in_file(&args.model);
    artifact.description.check_task(LANGUAGE).map_err(in_model)?;
    let tokenizer = Tokenizer::from_json(artifact.tokenizer().map_err(in_model)?)?;
    let prompt = tokenizer.encode(&args.prompt, true)?;
    let (device, device_name) = device::open(args.device)?;
    let text = Text { args, tokenizer: &tokenizer, prompt: &prompt, artifact: &artifact };
    let arithmetic = match (artifact.description.kind, args.engine) {
        (ArtifactKind::Float, _) => {
            if let Some((_, precision)) = args.switches().first() {
                let expected = artifact.description.precisions.clone();
                let error = ArtifactError::Precision { precision: *precision, expected };
                let hint = "a float model has none; `dr-train quantize` gives it some";
                return Err(CommandError::from(in_model(error)).with_hint(hint));
            }
            None
        }
        (_, Engine::Fake) => None,
        (_, Engine::Integer) => Some(Arithmetic::Integer),
        (_, Engine::WeightOnly) => Some(Arithmetic::WeightOnly),
    };
    let speed = match arithmetic {
        Some(arithmetic) => {
            let mut network = Network::load(&artifact, first(&artifact, args), arithmetic, &device)
                .map_err(|error| CommandError::new(format!("`{}`: {error}", args.model.display())))?;
            text.run(&mut network, |network, precision| Ok(network.switch(precision)?))
        }
        None => text.fake(&device),
    }?;
    let Speed { prompt_tokens, prompt_seconds, tokens, seconds } = speed;
    print("\n")?;
    eprintln!(
        "{prompt_tokens} tokens of prompt in {prompt_seconds:.2} s, {tokens} more after the first in {seconds:.2} s: {:.1} tokens/s ({device_name})",
        speed.tokens_per_second()
    );
    Ok(())
}

/// The precision that a text begins with: what is asked for, or the highest.
fn first(artifact: &Artifact, args: &GenerateArgs) -> Precision {
    let highest = match artifact.description.kind {
        ArtifactKind::Packed(precision) => precision,
        ArtifactKind::PackedPlan => artifact.description.edge,
        _ => artifact.description.precisions.highest(),
    };
    let at_once = args.switches().iter().find(|(after, _)| *after == 0).map(|(_, precision)| *precision);
    at_once.unwrap_or(highest)
}

/// A text that is gone on with.
struct Text<'a> {
    args: &'a GenerateArgs,
    tokenizer: &'a Tokenizer,
    prompt: &'a [u32],
    artifact: &'a Artifact,
}

impl Text<'_> {
    /// In floats or fake quantization, whose precision is said by each pass.
    fn fake(self, device: &Device) -> Result<Speed, CommandError> {
        let Self { artifact, args, .. } = self;
        let pass = |precision: Precision| {
            artifact.check_precision(precision).map_err(|error| error.in_file(&args.model))?;
            Ok::<_, CommandError>(Pass::at(precision))
        };
        let pass_at_first = match artifact.description.kind {
            ArtifactKind::Float => Pass::float(),
            _ => pass(first(artifact, args))?,
        };
        args.switches().into_iter().try_for_each(|(_, precision)| pass(precision).map(drop))?;
        let model = artifact.network(device).map_err(|error| error.in_file(&args.model))?;
        let mut reader = FakeReader { model: &model, pass: pass_at_first, device };
        self.run(&mut reader, |reader, precision| {
            reader.pass = pass(precision)?;
            Ok(())
        })
    }

    fn run<R: Reader<Error = RuntimeError>>(
        self, reader: &mut R, switch: impl Fn(&mut R, Precision) -> Result<(), CommandError>,
    ) -> Result<Speed, CommandError> {
        let Self { args, tokenizer, prompt, artifact } = self;
        let GenerateArgs { tokens, temperature, top_k, seed, .. } = *args;
        let sampling = Sampling { temperature: temperature as f32, top_k, seed };
        let (switches, ends) = (args.switches(), artifact.description.end_tokens());
        let mut stream = tokenizer.stream();
        // The text goes on after the prompt's last token, which may be a part of a word.
        prompt.iter().try_for_each(|&token| stream.push(token).map(|_| ()))?;
        go_on(reader, language(artifact)?, prompt, tokens, &sampling, |reader, number, token| {
            // Only once it is known that there can be a text.
            if number == 0 {
                print(&args.prompt)?;
            }
            if ends.contains(&token) {
                return Ok(false);
            }
            print(&stream.push(token)?)?;
            // The standard output writes whole lines otherwise.
            std::io::stdout().flush()?;
            if let Some((_, precision)) = switches.iter().find(|(after, _)| *after == number + 1) {
                switch(reader, *precision)?;
            }
            Ok(true)
        })
    }
}
