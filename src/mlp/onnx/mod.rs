//! A network as an ONNX file, from stored values to logits or probabilities.
//!
//! ```text
//! x [N, in] as stored -> Mul gain -> Add shift -> (Gemm -> activation)* -> Gemm [-> Softmax] -> y [N, classes]
//! ```
//! The normalisation is part of the graph, as two operations of its own: multiplied into the first layer's
//! weights it would round differently, badly so where a feature hardly varies.

mod proto;

use std::path::Path;

use proto::Message;

use crate::data::Normalisation;
use crate::error::{Error, Result};
use crate::kernels::matmul::Activation;
use crate::mlp::weights::{Model, write_atomically};

/// The opsets that [`encode`] can write, and the IR version that came with the first ONNX release that has each.
const IR_VERSIONS: [(i64, i64); 9] =
    [(13, 7), (14, 7), (15, 8), (16, 8), (17, 8), (18, 8), (19, 9), (20, 9), (21, 10)];

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Probabilities at T = 1 instead of logits.
    pub softmax: bool,
    /// 13 to 21. From 20 on, GELU is one operation.
    pub opset: i64,
}

impl Default for Options {
    /// Logits, opset 17: what runtimes since 2022 take.
    fn default() -> Self {
        Self { softmax: false, opset: 17 }
    }
}

/// Field numbers of onnx.proto, and its constants.
mod field {
    pub const MODEL_IR_VERSION: u64 = 1;
    pub const MODEL_PRODUCER_NAME: u64 = 2;
    pub const MODEL_PRODUCER_VERSION: u64 = 3;
    pub const MODEL_GRAPH: u64 = 7;
    pub const MODEL_OPSET_IMPORT: u64 = 8;
    pub const OPSET_VERSION: u64 = 2;
    pub const GRAPH_NODE: u64 = 1;
    pub const GRAPH_NAME: u64 = 2;
    pub const GRAPH_INITIALIZER: u64 = 5;
    pub const GRAPH_INPUT: u64 = 11;
    pub const GRAPH_OUTPUT: u64 = 12;
    pub const NODE_INPUT: u64 = 1;
    pub const NODE_OUTPUT: u64 = 2;
    pub const NODE_NAME: u64 = 3;
    pub const NODE_OP_TYPE: u64 = 4;
    pub const NODE_ATTRIBUTE: u64 = 5;
    pub const ATTRIBUTE_NAME: u64 = 1;
    pub const ATTRIBUTE_I: u64 = 3;
    pub const ATTRIBUTE_S: u64 = 4;
    pub const ATTRIBUTE_TYPE: u64 = 20;
    pub const TENSOR_DIMS: u64 = 1;
    pub const TENSOR_DATA_TYPE: u64 = 2;
    pub const TENSOR_NAME: u64 = 8;
    pub const TENSOR_RAW_DATA: u64 = 9;
    pub const VALUE_NAME: u64 = 1;
    pub const VALUE_TYPE: u64 = 2;
    pub const TYPE_TENSOR: u64 = 1;
    pub const TENSOR_TYPE_ELEM: u64 = 1;
    pub const TENSOR_TYPE_SHAPE: u64 = 2;
    pub const SHAPE_DIM: u64 = 1;
    pub const DIM_VALUE: u64 = 1;
    pub const DIM_PARAM: u64 = 2;
    pub const FLOAT: i64 = 1;
    pub const ATTRIBUTE_INT: i64 = 2;
    pub const ATTRIBUTE_STRING: i64 = 3;
}

/// A graph under construction: nodes in order, initializers by name.
#[derive(Default)]
struct Graph {
    nodes: Vec<Message>,
    initializers: Vec<Message>,
}

impl Graph {
    fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let tensor = shape.iter().fold(Message::new(), |m, d| m.int(field::TENSOR_DIMS, *d as i64));
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializers.push(
            tensor
                .int(field::TENSOR_DATA_TYPE, field::FLOAT)
                .text(field::TENSOR_NAME, name)
                .bytes(field::TENSOR_RAW_DATA, &raw),
        );
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[Message]) {
        let node = inputs.iter().fold(Message::new(), |m, i| m.text(field::NODE_INPUT, i));
        let node = node
            .text(field::NODE_OUTPUT, output)
            .text(field::NODE_NAME, output)
            .text(field::NODE_OP_TYPE, op);
        self.nodes.push(attributes.iter().fold(node, |m, a| m.message(field::NODE_ATTRIBUTE, a)));
    }

    /// Adds the activation of `from` and gives its output's name.
    fn activation(&mut self, activation: Activation, from: &str, opset: i64) -> String {
        let to = format!("{from}.{}", activation.name());
        match activation {
            Activation::Identity => return from.to_owned(),
            Activation::Relu => self.node("Relu", &[from], &to, &[]),
            Activation::Tanh => self.node("Tanh", &[from], &to, &[]),
            Activation::Gelu if opset >= 20 => {
                let tanh = Message::new()
                    .text(field::ATTRIBUTE_NAME, "approximate")
                    .text(field::ATTRIBUTE_S, "tanh")
                    .int(field::ATTRIBUTE_TYPE, field::ATTRIBUTE_STRING);
                self.node("Gelu", &[from], &to, &[tanh]);
            }
            Activation::Gelu => {
                // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): the form that was trained.
                for (name, value) in
                    [("cubic", 0.044_715), ("root", 0.797_884_6), ("one", 1.0), ("half", 0.5)]
                {
                    if from == "l0" {
                        self.constant(&format!("gelu.{name}"), &[], &[value]);
                    }
                }
                let step = |name: &str| format!("{to}.{name}");
                let [square, cube, scaled, inner, arg, tanh, plus, half] =
                    ["square", "cube", "scaled", "inner", "arg", "tanh", "plus", "half"].map(step);
                self.node("Mul", &[from, from], &square, &[]);
                self.node("Mul", &[&square, from], &cube, &[]);
                self.node("Mul", &[&cube, "gelu.cubic"], &scaled, &[]);
                self.node("Add", &[from, &scaled], &inner, &[]);
                self.node("Mul", &[&inner, "gelu.root"], &arg, &[]);
                self.node("Tanh", &[&arg], &tanh, &[]);
                self.node("Add", &[&tanh, "gelu.one"], &plus, &[]);
                self.node("Mul", &[from, "gelu.half"], &half, &[]);
                self.node("Mul", &[&half, &plus], &to, &[]);
            }
        }
        to
    }
}

fn int_attribute(name: &str, value: i64) -> Message {
    Message::new()
        .text(field::ATTRIBUTE_NAME, name)
        .int(field::ATTRIBUTE_I, value)
        .int(field::ATTRIBUTE_TYPE, field::ATTRIBUTE_INT)
}

/// A float matrix whose first dimension is free.
fn value_info(name: &str, cols: usize) -> Message {
    let batch = Message::new().text(field::DIM_PARAM, "N");
    let width = Message::new().int(field::DIM_VALUE, cols as i64);
    let shape = Message::new().message(field::SHAPE_DIM, &batch).message(field::SHAPE_DIM, &width);
    let tensor =
        Message::new().int(field::TENSOR_TYPE_ELEM, field::FLOAT).message(field::TENSOR_TYPE_SHAPE, &shape);
    let kind = Message::new().message(field::TYPE_TENSOR, &tensor);
    Message::new().text(field::VALUE_NAME, name).message(field::VALUE_TYPE, &kind)
}

/// The file's bytes. Its input `x` takes values as stored (for bytes 0 to 255, as float); its output is
/// `logits` or `probabilities`.
///
/// # Errors
/// [`Error::Usage`] for an opset that is not in the table.
pub fn encode(model: &Model, options: Options) -> Result<Vec<u8>> {
    let Some((_, ir)) = IR_VERSIONS.into_iter().find(|(opset, _)| *opset == options.opset) else {
        return Err(Error::usage("--opset", "13 to 21", options.opset.to_string()));
    };
    let weights = &model.weights;
    let sizes = weights.sizes();
    let (inputs, classes) = (sizes[0], sizes[sizes.len() - 1]);
    let mut graph = Graph::default();
    let mut at = "x".to_owned();
    let identity = Normalisation::scaled(1.0);
    if let Some(n) = model.normalisation.as_ref().filter(|n| **n != identity) {
        let [gain, shift] = n.gain_and_shift(inputs);
        graph.constant("gain", &[inputs], &gain);
        graph.constant("shift", &[inputs], &shift);
        graph.node("Mul", &[&at, "gain"], "scaled", &[]);
        graph.node("Add", &["scaled", "shift"], "normalised", &[]);
        "normalised".clone_into(&mut at);
    }
    let output = if options.softmax { "probabilities" } else { "logits" };
    let last = weights.layers.len() - 1;
    for (i, layer) in weights.layers.iter().enumerate() {
        let (w, b) = (format!("layers.{i}.weight"), format!("layers.{i}.bias"));
        graph.constant(&w, &[layer.outputs, layer.inputs], &layer.weight);
        graph.constant(&b, &[layer.outputs], &layer.bias);
        let to = if i == last { "logits".to_owned() } else { format!("l{i}") };
        graph.node("Gemm", &[&at, &w, &b], &to, &[int_attribute("transB", 1)]);
        at = if i == last { to } else { graph.activation(weights.activation, &to, options.opset) };
    }
    if options.softmax {
        graph.node("Softmax", &[&at], output, &[int_attribute("axis", -1)]);
    }
    let message = graph.nodes.iter().fold(Message::new(), |m, n| m.message(field::GRAPH_NODE, n));
    let message = message.text(field::GRAPH_NAME, "mlp");
    let message = graph.initializers.iter().fold(message, |m, t| m.message(field::GRAPH_INITIALIZER, t));
    let message = message
        .message(field::GRAPH_INPUT, &value_info("x", inputs))
        .message(field::GRAPH_OUTPUT, &value_info(output, classes));
    Ok(Message::new()
        .int(field::MODEL_IR_VERSION, ir)
        .text(field::MODEL_PRODUCER_NAME, "limbeck")
        .text(field::MODEL_PRODUCER_VERSION, env!("CARGO_PKG_VERSION"))
        .message(field::MODEL_GRAPH, &message)
        .message(field::MODEL_OPSET_IMPORT, &Message::new().int(field::OPSET_VERSION, options.opset))
        .finish())
}

/// Writes the file whole or not at all.
///
/// # Errors
/// As [`encode`]; [`Error::Io`]; [`Error::Usage`] where it would exceed protobuf's 2 GiB.
pub fn export(model: &Model, path: &Path, options: Options) -> Result<()> {
    let bytes = encode(model, options)?;
    if bytes.len() > i32::MAX as usize {
        return Err(Error::usage(
            "--onnx",
            "a network below 2 GiB, protobuf's limit",
            format!("{} bytes", bytes.len()),
        ));
    }
    write_atomically(path, &bytes)
}
