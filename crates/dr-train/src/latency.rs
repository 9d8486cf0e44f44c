//! How long a saved model takes for a batch of inputs, in integers and in floats.

use crate::artifact::{Artifact, ArtifactKind, Described, Description, SavedModel};
use crate::config::task::LANGUAGE;
use crate::evaluation::{EvaluationError, check_batch, formats, precisions, runtime_networks};
use crate::nn::{Pass, Tensors, Value};
use crate::report::{NumberFormat, aligned};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use dr_precision::Precision;
use dr_runtime::arrays::Array;
use dr_runtime::graph::{Graph, Kind, Op, TensorInput};
use dr_runtime::tensors::Network;
use dr_runtime::{Arithmetic, Network as HostNetwork, RuntimeError};
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use std::time::Instant;

/// Passes before the first that counts: memory is allocated and, on GPUs, kernels are compiled in them.
pub(crate) const WARM_UP: usize = 3;

/// Pixels of a batch: 16 channels of them, which a first stage has, are 1 GiB.
pub(crate) const MOST_PIXELS: usize = 1 << 24;

/// Values of an array: 1 GiB of them.
const MOST_VALUES: usize = 1 << 28;

/// What [`latency`] measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyOptions {
    /// Images in a pass; at least 1.
    pub batch: usize,
    /// Passes of which the median is taken; at least 1.
    pub samples: usize,
}

/// The latency of a model at all its precisions, beside that of the same network in floats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latencies {
    /// The file, as the user named it.
    pub model: String,
    /// Images in a pass.
    pub batch: usize,
    /// Threads of the processor.
    pub threads: usize,
    /// What it ran on.
    pub device: String,
    /// The network in floats: with its stored codes dequantized, unless it is a float one.
    pub float: FloatLatency,
    /// The network in integers at each precision, highest first.
    pub precisions: Vec<PrecisionLatency>,
}

/// The latency in floats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FloatLatency {
    /// Median time of a pass in milliseconds.
    pub ms: f64,
}

/// The latency in integers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PrecisionLatency {
    /// The precision.
    pub precision: NumberFormat,
    /// Median time of a pass in milliseconds.
    pub ms: f64,
    /// Bytes of the network that a pass reads; see [`Network::model_bytes`].
    pub model_bytes: usize,
}

/// Measures a model on `device` with random inputs of its size; one that has operations on arrays, or other results than a row for each
/// input, on the processor. All formats take turns, so that whatever else the machine does strikes all of them. `name` and
/// `device_name` are for the result only.
///
/// # Errors
/// Tensors that are no network, a batch of more than 2^24 pixels, arrays whose sizes are not known but for the first.
pub fn latency(
    artifact: &Artifact, name: String, options: LatencyOptions, device: &Device, device_name: String,
) -> Result<Latencies, EvaluationError> {
    let batch = options.batch;
    check_batch(artifact, batch, MOST_PIXELS)?;
    let formats: Vec<NumberFormat> =
        formats(artifact).into_iter().filter(|&format| format != NumberFormat::Float).collect();
    let graph = artifact.graph()?;
    let in_rows = !graph.has_arrays() && matches!(graph.result_kind(), Some(Kind::Rows(_)));
    // The runtime computes those in floats on a processor only.
    let is_float = formats.is_empty() && graph.input() != Some(&Op::Tokens) && *device == Device::flex();
    let (float, networks) = match in_rows && !is_float {
        true => on_tensors(artifact, &formats, batch, device)?,
        false => on_arrays(artifact, &formats, batch)?,
    };
    let mut float_ms = vec![];
    let mut integer_ms = vec![vec![]; networks.len()];
    for _ in 0..WARM_UP + options.samples {
        float_ms.push(float()?);
        for ((_, pass), ms) in networks.iter().zip(&mut integer_ms) {
            ms.push(pass()?);
        }
    }
    let of = |((&precision, &(model_bytes, _)), ms): ((&NumberFormat, &(usize, TimedPass)), &Vec<f64>)| {
        PrecisionLatency { precision, ms: median(&ms[WARM_UP..]), model_bytes }
    };
    Ok(Latencies {
        model: name,
        batch,
        threads: rayon::current_num_threads(),
        device: device_name,
        float: FloatLatency { ms: median(&float_ms[WARM_UP..]) },
        precisions: formats.iter().zip(&networks).zip(&integer_ms).map(of).collect(),
    })
}

/// A pass, which says how many milliseconds it took.
type TimedPass = Box<dyn Fn() -> Result<f64, RuntimeError>>;

/// A pass in floats, and one in each of some formats, with the bytes of the network.
type TimedPasses = (TimedPass, Vec<(usize, TimedPass)>);

/// Passes of a network with a row for each input, on a device.
fn on_tensors(
    artifact: &Artifact, formats: &[NumberFormat], batch: usize, device: &Device,
) -> Result<TimedPasses, EvaluationError> {
    let (float, input) = (artifact.network(device)?, random_input(artifact, batch, device));
    let networks = runtime_networks(artifact, formats, Arithmetic::Integer, device)?.into_iter();
    let timed = |network: Network| {
        let (bytes, input) = (network.model_bytes(), input.clone());
        let pass = move || milliseconds(|| network.forward(input.clone()));
        (bytes, Box::new(pass) as TimedPass)
    };
    let networks = networks.map(timed).collect();
    Ok((Box::new(move || milliseconds(|| Ok(float.forward(input.clone(), &Pass::float())))), networks))
}

/// Passes of any network but those of texts, on the processor.
fn on_arrays(
    artifact: &Artifact, formats: &[NumberFormat], batch: usize,
) -> Result<TimedPasses, EvaluationError> {
    let of_images = matches!(artifact.graph()?.input(), Some(Op::Images { .. }));
    let inputs: Vec<Value> = match of_images {
        true => vec![random_input(artifact, batch, &Device::flex())],
        false => random_arrays(artifact.graph()?, batch)?.into_iter().map(Value::from).collect(),
    };
    let arrays = inputs.iter().map(Value::to_array).collect::<Result<Vec<Array>, _>>()?;
    let timed = |precision: Option<Precision>| {
        let network = HostNetwork::load_with(artifact, precision, Arithmetic::Integer)?;
        let (bytes, arrays) = (network.model_bytes(), arrays.clone());
        let pass = move || {
            let start = Instant::now();
            network.forward_arrays(&arrays)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        };
        Ok::<_, RuntimeError>((bytes, Box::new(pass) as TimedPass))
    };
    let networks = precisions(artifact, formats)?.into_iter().map(|precision| timed(Some(precision)));
    let networks: Vec<(usize, TimedPass)> = networks.collect::<Result<_, _>>()?;
    // Sizes that the network does not take show here, with a reason; on tensors they would be a panic.
    networks.iter().try_for_each(|(_, pass)| pass().map(drop))?;
    let float = match (artifact.description.kind, inputs.into_iter().next()) {
        (ArtifactKind::Float, _) | (_, None) => timed(None)?.1,
        (_, Some(input)) => {
            let model = artifact.network(&Device::flex())?;
            Box::new(move || {
                let start = Instant::now();
                model.results(&mut Tensors::new(&Pass::float()), input.clone());
                Ok(start.elapsed().as_secs_f64() * 1e3)
            })
        }
    };
    Ok((float, networks))
}

/// Arrays that a network takes, with `batch` as their first size if that is open.
fn random_arrays(graph: &Graph, batch: usize) -> Result<Vec<Array>, EvaluationError> {
    let array = |(_, input): (_, &TensorInput)| {
        let (name, dims) = (input.name.clone(), input.dims.clone());
        let size = |(axis, size): (usize, &Option<usize>)| size.or((axis == 0).then_some(batch));
        let known: Option<Vec<usize>> = dims.iter().enumerate().map(size).collect();
        let count =
            |sizes: &Vec<usize>| sizes.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        let fits = |sizes: &Vec<usize>| count(sizes).is_some_and(|count| count <= MOST_VALUES);
        let known = known.filter(fits).ok_or_else(|| EvaluationError::Sizes { name, most: MOST_VALUES })?;
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(0);
        let values = (0..known.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        Ok(Array::from_f32(values, &known)
            .and_then(|array| array.cast(input.element))
            .map_err(RuntimeError::from)?)
    };
    graph.array_inputs().map(array).collect()
}

/// Images of the model's size, or texts as long as its context.
pub(crate) fn random_input(artifact: &Artifact, batch: usize, device: &Device) -> Value {
    let Description { input, classes, seed, .. } = artifact.description;
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
    if artifact.description.check_task(LANGUAGE).is_ok() {
        let tokens: Vec<i32> =
            (0..batch * input.width).map(|_| rng.random_range(0..classes as i32)).collect();
        return Tensor::<2, Int>::from_data(TensorData::new(tokens, [batch, input.width]), device).into();
    }
    let shape = [batch, input.channels, input.height, input.width];
    let values = TensorData::random::<f32, _, _>(shape, Distribution::Normal(0.0, 1.0), rng);
    Tensor::<4>::from_data(values, device).into()
}

/// The time from the images to the logits in the processor's memory.
pub(crate) fn milliseconds(
    forward: impl FnOnce() -> Result<Tensor<2>, RuntimeError>,
) -> Result<f64, RuntimeError> {
    let start = Instant::now();
    let _ = forward()?.into_data();
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

impl Latencies {
    /// As aligned text: a row for each format, float first.
    #[must_use]
    pub fn table(&self) -> String {
        let float = self.float.ms;
        let header = ["precision", "median (ms)", "vs. float", "model bytes"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.push(vec!["float".to_owned(), format!("{float:.3}"), "1.00x".to_owned(), "-".to_owned()]);
        rows.extend(self.precisions.iter().map(|PrecisionLatency { precision, ms, model_bytes }| {
            let ratio = format!("{:.2}x", ms / float);
            vec![precision.to_string(), format!("{ms:.3}"), ratio, crate::report::thousands(*model_bytes)]
        }));
        let Self { batch, threads, device, .. } = self;
        format!("{}\nbatch {batch}, threads {threads}, device {device}\n", aligned(&rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn table() {
        let of = |precision: &str, ms, model_bytes| PrecisionLatency {
            precision: precision.parse().unwrap(),
            ms,
            model_bytes,
        };
        let latencies = Latencies {
            model: "m".to_owned(),
            batch: 8,
            threads: 2,
            device: "flex".to_owned(),
            float: FloatLatency { ms: 10.0 },
            precisions: vec![of("8", 2.5, 83_000), of("w2a4", 12.0, 999)],
        };
        let expected = "\
precision  median (ms)  vs. float  model bytes
----------------------------------------------
float           10.000      1.00x            -
w8a8             2.500      0.25x       83,000
w2a4            12.000      1.20x          999

batch 8, threads 2, device flex
";
        assert_eq!(latencies.table(), expected);
    }
}
