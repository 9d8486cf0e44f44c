//! Quantizes a language model of Hugging Face without training, and measures what it makes of it: perplexities at each width.
//!
//! ```text
//! nested quantize FOLDER TOKENS FILE [WINDOWS GRADIENT_WINDOWS]
//! nested eval FILE TOKENS [WIDTHS]
//! ```
//! where texts are files of tokens, 32 bits each, little-endian.

use burn::module::{ModuleMapper, Param};
use burn::nn::RmsNorm;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::{BitWidth, PrecisionSet};
use dr_runtime::graph::Op;
use dr_train::artifact::{Artifact, Described, Description, SavedModel};
use dr_train::models::LlamaConfig;
use dr_train::nn::{Executor, Model, Pass, PrecisionNorm, QuantConv2d, QuantLinear, Table, Tensors, Value};
use dr_train::quantization::{CalibrationOptions, NestedModel, Progress, quantize_language};
use safetensors::SafeTensors;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const LENGTH: usize = 512;
/// Predictions of the first 30 kB of the text.
const SHORT: usize = 6729;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["quantize", folder, text, file] => quantize(folder, text, file, CalibrationOptions::default()),
        ["quantize", folder, text, file, windows, gradient_windows] => {
            let (windows, gradient_windows) = (windows.parse()?, gradient_windows.parse()?);
            let options = CalibrationOptions { windows, gradient_windows, ..Default::default() };
            quantize(folder, text, file, options)
        }
        ["eval", file, text] => eval(file, text, "8,6,4,3,2"),
        ["eval", file, text, widths] => eval(file, text, widths),
        _ => Err("expected `quantize` or `eval`, and their files".into()),
    }
}

fn quantize(folder: &str, text: &str, file: &str, options: CalibrationOptions) -> Result<(), Box<dyn Error>> {
    let (float, tokens) = (load(Path::new(folder))?, tokens(text)?);
    let widths = [BitWidth::B6, BitWidth::B4, BitWidth::B3, BitWidth::B2];
    let (started, mut last) = (Instant::now(), Instant::now());
    let nested =
        quantize_language(&float.network(&Device::flex())?, &tokens, &widths, &options, |progress| {
            let seconds = last.elapsed().as_secs_f64();
            match progress {
                Progress::Gradients { done, of } => {
                    say(started, &format!("gradients {done} of {of}, {seconds:.1} s"))
                }
                Progress::Layer { name, done, of } => {
                    say(started, &format!("{name} ({done} of {of}), {seconds:.1} s"))
                }
            }
            last = Instant::now();
        })?;
    Ok(nested.artifact(&float)?.save(Path::new(file))?)
}

fn eval(file: &str, text: &str, widths: &str) -> Result<(), Box<dyn Error>> {
    let (artifact, tokens, device) = (Artifact::load(Path::new(file))?, tokens(text)?, Device::flex());
    let (model, nested) = (artifact.network(&device)?, NestedModel { weights: artifact.nested()? });
    let started = Instant::now();
    for bits in widths.split(',') {
        let at = nested.dequantized(model.clone(), bits.parse()?);
        say(started, &format!("w{bits}a8 {:?}", perplexity(&at, &tokens, &device)));
    }
    Ok(())
}

fn say(since: Instant, what: &str) {
    println!("{:7.1} s, {} MiB: {what}", since.elapsed().as_secs_f64(), peak());
    std::io::stdout().flush().expect("a place to write to");
}

/// The most memory that the process had, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

fn tokens(path: &str) -> Result<Vec<u32>, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

fn load(folder: &Path) -> Result<Artifact, Box<dyn Error>> {
    let config = LlamaConfig::from_hugging_face(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let bytes = std::fs::read(folder.join("model.safetensors"))?;
    let mut load = Load { path: vec![], tensors: SafeTensors::deserialize(&bytes)? };
    let model = Model::trace(&config.zeros(&Device::flex()))?.map_named(&mut load);
    Ok(Artifact::of(&model, Description::of_language(&config, PrecisionSet::default()))?)
}

struct Load<'a> {
    path: Vec<String>,
    tensors: SafeTensors<'a>,
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = format!("model.{}", self.path.join(".").replace(".gamma", ".weight"));
        let name = name.replace("model.lm_head", "model.embed_tokens");
        let bytes = self.tensors.tensor(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let values: Vec<f32> =
            bytes.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        param.map(|old| Tensor::from_data(TensorData::new(values, old.dims()), &old.device()))
    }
}

/// Of the short text and the whole, with inputs of linear layers in 8 bits.
fn perplexity(model: &Model, tokens: &[u32], device: &Device) -> [f64; 2] {
    let pass = Pass::float();
    let mut losses: Vec<f32> = vec![];
    for start in (0..tokens.len() - 1).step_by(LENGTH) {
        let end = (start + LENGTH).min(tokens.len() - 1);
        let part = |by: usize| -> TensorData {
            let tokens: Vec<i64> = tokens[start + by..end + by].iter().map(|&t| i64::from(t)).collect();
            TensorData::new(tokens, [1, end - start])
        };
        let input = Tensor::<2, Int>::from_data(part(0), device);
        let Value::Rows(logits) = model.run(&mut Dynamic(Tensors::new(&pass)), input.into()) else {
            panic!("rows")
        };
        let labels = Tensor::<2, Int>::from_data(part(1), device).transpose();
        let loss = log_softmax(logits, 1).gather(1, labels).neg();
        losses.extend(loss.into_data().try_into_vec::<f32>().expect("floats"));
    }
    [SHORT.min(losses.len()), losses.len()]
        .map(|count| (losses[..count].iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64).exp())
}

/// Inputs of linear layers in 8 bits, with a scale for each 32 of a row.
struct Dynamic<'a>(Tensors<'a>);

impl Executor for Dynamic<'_> {
    type Value = Value;

    fn conv2d(&mut self, x: Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Value {
        self.0.conv2d(x, layer, norm)
    }

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        let Value::Rows(x) = x else { panic!("rows") };
        let [rows, features] = x.dims();
        let x = x.reshape([rows * features / 32, 32]);
        let scale = x.clone().abs().max_dim(1).clamp_min(1e-30) / 127.0;
        let x = (x / scale.clone()).round() * scale;
        self.0.linear(Value::Rows(x.reshape([rows, features])), layer)
    }

    fn rms_norm(&mut self, x: Value, norm: &RmsNorm) -> Value {
        self.0.rms_norm(x, norm)
    }

    fn embedding(&mut self, tokens: Value, table: Table<'_>) -> Value {
        self.0.embedding(tokens, table)
    }

    fn op(&mut self, op: Op, inputs: Vec<Value>) -> Value {
        self.0.op(op, inputs)
    }
}
