//! `dr-train generate`.

use super::{load_model, print};
use crate::artifact::{Artifact, ArtifactError, ArtifactKind};
use crate::cli::{CommandError, GenerateArgs};
use crate::config::Engine;
use crate::device;
use crate::generation::{Sampling, Speed, generate as go_on};
use crate::models::{Decoder, Linear, Llama};
use crate::nn::IntegerError;
use crate::text::Tokenizer;
use burn::tensor::Device;
use dr_precision::Precision;
use std::io::Write;

/// Goes on with a text, which is printed as it comes. How fast it was goes to the standard error.
///
/// # Errors
/// A model that cannot be read or is no language model, a precision that it does not have, a prompt that does not fit.
pub fn generate(args: &GenerateArgs) -> Result<(), CommandError> {
    let artifact = load_model(&args.model)?;
    let in_model = |error: ArtifactError| error.in_file(&args.model);
    artifact.description.llama().map_err(in_model)?;
    let tokenizer = Tokenizer::from_json(artifact.tokenizer().map_err(in_model)?)?;
    let prompt = tokenizer.encode(&args.prompt, true)?;
    let (device, device_name) = device::open(args.device)?;
    let started = match (artifact.description.kind, args.engine) {
        (ArtifactKind::Float, _) => {
            if let Some((_, precision)) = args.switches().first() {
                let expected = artifact.description.precisions.clone();
                let error = ArtifactError::Precision { precision: *precision, expected };
                let hint = "a float model has none; `dr-train quantize` gives it some";
                return Err(CommandError::from(in_model(error)).with_hint(hint));
            }
            let network: Llama = artifact.network(&device).map_err(in_model)?;
            let mut decoder = network.to_floats(None);
            Text { args, tokenizer: &tokenizer, prompt: &prompt }.run(&mut decoder, |_, _| Ok(()))
        }
        (_, Engine::Integer) => {
            let mut decoder = artifact.integer_llama(first(&artifact, args), &device).map_err(in_model)?;
            let text = Text { args, tokenizer: &tokenizer, prompt: &prompt };
            text.run(&mut decoder, |decoder, precision| decoder.switch(precision))
        }
        (_, Engine::WeightOnly) => {
            let first = first(&artifact, args);
            let mut decoder = artifact.weight_only_llama(first, &device).map_err(in_model)?;
            let text = Text { args, tokenizer: &tokenizer, prompt: &prompt };
            text.run(&mut decoder, |decoder, precision| decoder.switch(precision))
        }
        (_, Engine::Fake) => fake(&artifact, args, &tokenizer, &prompt, &device),
    };
    let speed = started?;
    let Speed { prompt_tokens, prompt_seconds, tokens, seconds } = speed;
    print("\n")?;
    eprintln!(
        "{prompt_tokens} tokens of prompt in {prompt_seconds:.2} s, {tokens} more after the first in {seconds:.2} s: {:.1} tokens/s ({device_name})",
        speed.tokens_per_second()
    );
    Ok(())
}

/// Fake quantization, whose precision is said by each pass.
fn fake(
    artifact: &Artifact, args: &GenerateArgs, tokenizer: &Tokenizer, prompt: &[u32], device: &Device,
) -> Result<Speed, CommandError> {
    let precision = first(artifact, args);
    let mut asked = args.switches().into_iter().map(|(_, precision)| precision).chain([precision]);
    asked
        .try_for_each(|precision| artifact.check_precision(precision))
        .map_err(|error| error.in_file(&args.model))?;
    let network: Llama = artifact.network(device).map_err(|error| error.in_file(&args.model))?;
    let mut decoder = network.to_floats(Some(precision));
    Text { args, tokenizer, prompt }.run(&mut decoder, |decoder, precision| {
        *decoder = network.to_floats(Some(precision));
        Ok(())
    })
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
}

impl Text<'_> {
    fn run<L: Linear>(
        self, decoder: &mut Decoder<L>,
        switch: impl Fn(&mut Decoder<L>, Precision) -> Result<(), IntegerError>,
    ) -> Result<Speed, CommandError> {
        let Self { args, tokenizer, prompt } = self;
        let GenerateArgs { tokens, temperature, top_k, seed, .. } = *args;
        let sampling = Sampling { temperature: temperature as f32, top_k, seed };
        let (switches, ends) = (args.switches(), decoder.config().end_tokens.clone());
        let mut stream = tokenizer.stream();
        // The text goes on after the prompt's last token, which may be a part of a word.
        prompt.iter().try_for_each(|&token| stream.push(token).map(|_| ()))?;
        go_on(decoder, prompt, tokens, &sampling, |decoder, number, token| {
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
                switch(decoder, *precision)?;
            }
            Ok(true)
        })
    }
}
