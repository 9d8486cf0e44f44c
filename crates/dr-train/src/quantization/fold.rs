//! [`folded`]: a float network without BatchNorm.

use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Described, SavedModel, TensorEntry};
use dr_runtime::graph::{Constant, ElementType, Graph, Kind, Layer, NamedResult, Node, Op, TensorOp, Value};
use std::collections::{BTreeMap, HashMap};

/// After the name of a layer: the tensor with the factors of the channels of its input.
pub(super) const FACTORS: &str = "channels.gain";

/// The same float network with every BatchNorm in the weights and the bias of the layer before it, computed in 64 bits. All layers have a bias, and each is
/// used once: further uses of one are layers of their own, `NAME.1` and so on, as what they are given differs. Convolutions whose input is computed in floats, by functions of
/// each element, get a factor of 1 for each channel of it.
///
/// # Errors
/// A network that is not in floats, tensors that are missing or of another shape.
pub fn folded(float: &Artifact) -> Result<Artifact, ArtifactError> {
    let Artifact { description, tensors } = float;
    if description.kind != ArtifactKind::Float {
        return Err(ArtifactError::Kind { found: description.kind, expected: "float" });
    }
    let graph = float.checked_graph()?;
    let mut fold = Fold {
        float,
        from: graph,
        graph: Graph::default(),
        values: vec![None; graph.nodes().len()],
        uses: HashMap::new(),
        tensors: BTreeMap::new(),
    };
    for norm in graph.rms_norms() {
        fold.graph.add_rms_norm(norm.clone()).map_err(ArtifactError::network)?;
    }
    for embedding in graph.embeddings() {
        fold.graph.add_embedding(embedding.clone()).map_err(ArtifactError::network)?;
    }
    fold.nodes()?;
    let Fold { graph: new, tensors: mut all, .. } = fold;
    let is_of = |name: &String, part: &str| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
    let replaced = graph.layers().iter().map(|layer| &layer.name);
    let replaced: Vec<_> = replaced.chain(graph.batch_norms().iter().map(|norm| &norm.name)).collect();
    let kept = tensors.iter().filter(|(name, _)| !replaced.iter().any(|part| is_of(name, part)));
    all.extend(kept.map(|(name, entry)| (name.clone(), entry.clone())));
    Ok(Artifact { description: description.clone().of_graph(new), tensors: all })
}

struct Fold<'a> {
    float: &'a Artifact,
    from: &'a Graph,
    graph: Graph,
    /// What each node's value is in the new graph.
    values: Vec<Option<Value>>,
    /// How often each layer was used so far.
    uses: HashMap<usize, usize>,
    tensors: BTreeMap<String, TensorEntry>,
}

impl Fold<'_> {
    fn nodes(&mut self) -> Result<(), ArtifactError> {
        let (from, readers) = (self.from, self.from.readers());
        let is_norm = |node: &usize| matches!(from.nodes()[*node].op, Op::BatchNorm(_));
        for (at, Node { op, inputs }) in from.nodes().iter().enumerate() {
            let value = match *op {
                Op::Layer(_) if !readers[at].is_empty() && readers[at].iter().all(is_norm) => continue,
                Op::Layer(layer) => self.layer(layer, None, inputs[0])?,
                Op::BatchNorm(norm) => {
                    let before = &from.nodes()[inputs[0]];
                    let Op::Layer(layer) = before.op else {
                        return Err(ArtifactError::network("a BatchNorm of what is no layer's"));
                    };
                    self.layer(layer, Some(norm), before.inputs[0])?
                }
                _ => self.push(op.clone(), inputs)?,
            };
            self.values[at] = Some(value);
        }
        if let Some(images) = from.named_images() {
            self.graph.name_images(images.clone()).map_err(ArtifactError::network)?;
        }
        for result in from.named_results() {
            let value = self.values[result.value].unwrap_or(usize::MAX);
            let result = NamedResult { value, ..result.clone() };
            self.graph.add_result(result).map_err(ArtifactError::network)?;
        }
        Ok(())
    }

    fn push(&mut self, op: Op, inputs: &[Value]) -> Result<Value, ArtifactError> {
        let inputs: Option<Vec<Value>> = inputs.iter().map(|&input| self.values[input]).collect();
        let inputs =
            inputs.ok_or_else(|| ArtifactError::network("a layer that a BatchNorm and others read"))?;
        self.graph.push(op, &inputs).map_err(ArtifactError::network)
    }

    /// A use of a layer with the BatchNorm that follows it.
    fn layer(&mut self, layer: usize, norm: Option<usize>, input: Value) -> Result<Value, ArtifactError> {
        let Layer { name, kind, bias } = &self.from.layers()[layer];
        let (shape, outputs) = (kind.weight_shape(), kind.outputs());
        let weight = self.float.f32(&format!("{name}.weight"), &shape)?;
        let bias = match bias {
            true => self.float.f32(&format!("{name}.bias"), &[outputs])?,
            false => &vec![0.0; outputs],
        };
        let mut gain = vec![1.0; outputs];
        let mut shift: Vec<f64> = bias.iter().map(|&bias| f64::from(bias)).collect();
        if let Some(norm) = norm {
            let norm = &self.from.batch_norms()[norm];
            let read = |part: &str| self.float.f32(&format!("{}.norms.0.{part}", norm.name), &[outputs]);
            let [gamma, beta] = [read("gamma")?, read("beta")?];
            let [mean, variance] = [read("running_mean")?, read("running_var")?];
            for at in 0..outputs {
                gain[at] = f64::from(gamma[at]) / (f64::from(variance[at]) + norm.epsilon).sqrt();
                shift[at] = f64::from(beta[at]) + gain[at] * (shift[at] - f64::from(mean[at]));
            }
        }
        let inputs = (weight.len() / outputs.max(1)).max(1);
        let rows = weight.chunks(inputs).zip(&gain);
        let weight = rows.flat_map(|(row, gain)| row.iter().map(move |&w| (gain * f64::from(w)) as f32));
        let uses = self.uses.entry(layer).or_default();
        let name = if *uses == 0 { name.clone() } else { format!("{name}.{uses}") };
        *uses += 1;
        let tensors = [
            (format!("{name}.weight"), TensorEntry::f32(shape, weight.collect())),
            (format!("{name}.bias"), TensorEntry::f32([outputs], shift.iter().map(|&x| x as f32).collect())),
        ];
        self.tensors.extend(tensors);
        let input = self.scaled(&name, input)?;
        let new = Layer { name, kind: *kind, bias: true };
        let new = self.graph.add_layer(new).map_err(ArtifactError::network)?;
        self.graph.push(Op::Layer(new), &[input]).map_err(ArtifactError::network)
    }

    /// The input of a layer in the new graph, with a factor for each channel where something computes it in floats anyway.
    fn scaled(&mut self, layer: &str, input: Value) -> Result<Value, ArtifactError> {
        let wrong = || ArtifactError::network("a layer that a BatchNorm and others read");
        let input = self.values[input].ok_or_else(wrong)?;
        let in_floats = match &self.graph.nodes()[input].op {
            Op::Array(TensorOp::Unary(_) | TensorOp::Binary(_) | TensorOp::ChannelAffine) => true,
            Op::Multiply => self.graph.has_arrays(),
            _ => false,
        };
        let (Kind::Images(channels), true) = (self.graph.kind(input), in_floats) else { return Ok(input) };
        let mut inputs = vec![input];
        for (part, value) in [(FACTORS, 1.0), ("channels.shift", 0.0)] {
            let name = format!("{layer}.{part}");
            self.tensors.insert(name.clone(), TensorEntry::f32([channels], vec![value; channels]));
            let constant = Constant { name, element: ElementType::F32, dims: vec![channels] };
            let constant = Op::Array(TensorOp::Constant(constant));
            inputs.push(self.graph.push(constant, &[]).map_err(ArtifactError::network)?);
        }
        self.graph.push(Op::Array(TensorOp::ChannelAffine), &inputs).map_err(ArtifactError::network)
    }
}
