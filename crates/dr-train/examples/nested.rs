//! Measures what quantization without training makes of a language model of Hugging Face: perplexities at each width.
//!
//! `nested FOLDER CALIBRATION TEST [WIDTHS]`, where the texts are files of tokens, 32 bits each, little-endian.

use burn::module::{ModuleMapper, Param};
use burn::nn::RmsNorm;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::BitWidth;
use dr_runtime::graph::Op;
use dr_train::models::LlamaConfig;
use dr_train::nn::{Executor, Model, Pass, PrecisionNorm, QuantConv2d, QuantLinear, Table, Tensors, Value};
use dr_train::quantization::{CalibrationOptions, Progress, quantize_language};
use safetensors::SafeTensors;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const LENGTH: usize = 512;
/// Predictions of the first 30 kB of the text.
const SHORT: usize = 6729;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, folder, calibration, test, rest @ ..] = &args[..] else { return Err("four arguments".into()) };
    let widths = rest.first().map_or("6,4,3,2", String::as_str);
    let widths: Vec<BitWidth> = widths.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let number =
        |name: &str, usual: usize| std::env::var(name).ok().map_or(usual, |x| x.parse().expect("a number"));
    let device = Device::flex();
    let model = load(Path::new(folder), &device)?;
    let (calibration, test) = (tokens(calibration)?, tokens(test)?);
    let test = &test[..test.len().min(number("TEST", usize::MAX))];
    let started = Instant::now();
    let say = |what: String| {
        println!("{:7.1} s, {} MiB: {what}", started.elapsed().as_secs_f64(), peak());
        std::io::stdout().flush().expect("a place to write to");
    };
    if number("FLOAT", 0) == 1 {
        say(format!("float {:?}", perplexity(&model, test, false, &device)));
    }
    let usual = CalibrationOptions::default();
    let options = CalibrationOptions {
        windows: number("WINDOWS", usual.windows),
        gradient_windows: number("GRADIENTS", usual.gradient_windows),
        ..usual
    };
    let mut last = Instant::now();
    let nested = quantize_language(&model, &calibration, &widths, &options, |progress| {
        let seconds = last.elapsed().as_secs_f64();
        match progress {
            Progress::Gradients { done, of } => say(format!("gradients {done} of {of}, {seconds:.1} s")),
            Progress::Layer { name, done, of } => say(format!("{name} ({done} of {of}), {seconds:.1} s")),
        }
        last = Instant::now();
    })?;
    for bits in [4, 3, 8, 2, 6] {
        let bits = BitWidth::try_from(bits)?;
        if bits == BitWidth::B8 || widths.contains(&bits) {
            let at = nested.dequantized(model.clone(), bits);
            if number("FLOAT", 0) == 1 {
                say(format!("w{bits} {:?}", perplexity(&at, test, false, &device)));
            }
            say(format!("w{bits}a8 {:?}", perplexity(&at, test, true, &device)));
        }
    }
    Ok(())
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

fn load(folder: &Path, device: &Device) -> Result<Model, Box<dyn Error>> {
    let config = LlamaConfig::from_hugging_face(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let bytes = std::fs::read(folder.join("model.safetensors"))?;
    let mut load = Load { path: vec![], tensors: SafeTensors::deserialize(&bytes)? };
    Ok(Model::trace(&config.zeros(device))?.map_named(&mut load))
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

/// Of the short text and the whole.
fn perplexity(model: &Model, tokens: &[u32], dynamic: bool, device: &Device) -> [f64; 2] {
    let pass = Pass::float();
    let mut losses: Vec<f32> = vec![];
    for start in (0..tokens.len() - 1).step_by(LENGTH) {
        let end = (start + LENGTH).min(tokens.len() - 1);
        let part = |by: usize| -> TensorData {
            let tokens: Vec<i64> = tokens[start + by..end + by].iter().map(|&t| i64::from(t)).collect();
            TensorData::new(tokens, [1, end - start])
        };
        let input = Tensor::<2, Int>::from_data(part(0), device);
        let mut on = Dynamic { tensors: Tensors::new(&pass), dynamic };
        let Value::Rows(logits) = model.run(&mut on, input.into()) else { panic!("rows") };
        let labels = Tensor::<2, Int>::from_data(part(1), device).transpose();
        let loss = log_softmax(logits, 1).gather(1, labels).neg();
        losses.extend(loss.into_data().try_into_vec::<f32>().expect("floats"));
    }
    [SHORT.min(losses.len()), losses.len()]
        .map(|count| (losses[..count].iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64).exp())
}

/// Inputs of linear layers in 8 bits, with a scale for each 32 of a row.
struct Dynamic<'a> {
    tensors: Tensors<'a>,
    dynamic: bool,
}

impl Executor for Dynamic<'_> {
    type Value = Value;

    fn conv2d(&mut self, x: Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Value {
        self.tensors.conv2d(x, layer, norm)
    }

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        let x = match x {
            Value::Rows(x) if self.dynamic => {
                let [rows, features] = x.dims();
                let x = x.reshape([rows * features / 32, 32]);
                let scale = x.clone().abs().max_dim(1).clamp_min(1e-30) / 127.0;
                Value::Rows(((x / scale.clone()).round() * scale).reshape([rows, features]))
            }
            x => x,
        };
        self.tensors.linear(x, layer)
    }

    fn rms_norm(&mut self, x: Value, norm: &RmsNorm) -> Value {
        self.tensors.rms_norm(x, norm)
    }

    fn embedding(&mut self, tokens: Value, table: Table<'_>) -> Value {
        self.tensors.embedding(tokens, table)
    }

    fn op(&mut self, op: Op, inputs: Vec<Value>) -> Value {
        self.tensors.op(op, inputs)
    }
}
