//! Multi-layer perceptrons: sizes, parameters, and the forward and backward pass side by side.

pub mod onnx;
pub mod repair;
pub mod weights;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Plan, Tensor};
use crate::kernels::dropout::{self, Drop};
use crate::kernels::matmul::{self, Activation, Epilogue, Form};
use crate::mlp::weights::{Layer, Weights};

/// One layer's parameters on the device.
#[derive(Clone, Debug)]
pub struct DeviceLayer {
    /// `[r, out, in]`
    pub weight: Tensor,
    /// `[r, 1, out]`
    pub bias: Tensor,
}

/// The parameters of `r` replicas of one network, all in one arena: a replica's parameters lie
/// together, so that one dispatch updates them all. Gradients have the same form.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// Layer sizes, inputs first, classes last.
    pub sizes: Vec<usize>,
    /// Of the hidden layers; the output layer has none.
    pub activation: Activation,
    /// The whole arena `[r, 1, len]`.
    pub whole: Tensor,
    /// Views into it.
    pub layers: Vec<DeviceLayer>,
    label: String,
}

/// What the forward pass leaves for the backward pass.
pub struct Forward {
    /// Each layer's output `[r, batch, out]`; the last one holds the logits.
    pub outputs: Vec<Tensor>,
    /// Each hidden layer's pre-activation, where the activation's derivative needs it.
    pub pre_activations: Vec<Option<Tensor>>,
    dropout: Option<Dropout>,
    /// Each layer's input after dropout, where there is some.
    dropped: Vec<Option<Tensor>>,
}

/// Dropout as a training step has it.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// The ring of [`crate::kernels::step::Step`]: step and seed of each replica.
    pub steps: Tensor,
    /// The share of the inputs that is dropped, at least 0 and below 1.
    pub inputs: f64,
    /// Of each hidden layer's output.
    pub hidden: f64,
}

impl Dropout {
    /// What happens to the input of a layer.
    fn before(&self, layer: usize) -> Option<Drop> {
        let rate = if layer == 0 { self.inputs } else { self.hidden };
        (rate > 0.0).then_some(Drop { rate, layer })
    }
}

impl Forward {
    /// The network's output `[r, batch, classes]`.
    pub fn logits(&self) -> &Tensor {
        self.outputs.last().expect("a network has at least one layer")
    }

    /// What layer `i` was fed.
    fn input<'a>(&'a self, i: usize, x: &'a Tensor) -> &'a Tensor {
        let whole = if i == 0 { x } else { &self.outputs[i - 1] };
        self.dropped[i].as_ref().unwrap_or(whole)
    }

    /// Records the dropout before layer `i`, where there is some, and returns what the layer is fed.
    fn record_dropout(
        &mut self,
        plan: &mut Plan<'_>,
        network: &str,
        i: usize,
        x: &Tensor,
        replicas: usize,
    ) -> Result<Tensor> {
        let whole = self.outputs.last().unwrap_or(x);
        let dropped = match self.dropout.as_ref().and_then(|d| Some((d, d.before(i)?))) {
            None => None,
            Some((dropout, drop)) => {
                let name = format!("{network}.l{i}.dropout");
                let [_, batch, width] = whole.shape;
                let y = Tensor::zeros(plan.gpu, &name, [replicas, batch, width])?;
                dropout::record(plan, &name, drop, false, &dropout.steps, whole, &y)?;
                Some(y)
            }
        };
        self.dropped.push(dropped);
        Ok(self.input(i, x).clone())
    }
}

impl Mlp {
    /// Zeroed parameters for `replicas` networks.
    ///
    /// # Errors
    /// [`Error::Usage`] for fewer than two sizes or a size of 0; [`Error::Device`] for memory.
    pub fn zeros(
        gpu: &Gpu,
        label: &str,
        replicas: usize,
        sizes: &[usize],
        activation: Activation,
    ) -> Result<Self> {
        weights::check_sizes(sizes)?;
        let parts: Vec<_> = sizes
            .windows(2)
            .enumerate()
            .flat_map(|(i, s)| [(format!("l{i}.weight"), s[1], s[0]), (format!("l{i}.bias"), 1, s[1])])
            .collect();
        let (whole, views) = Tensor::arena(gpu, label, replicas, &parts)?;
        let layers = views
            .chunks_exact(2)
            .map(|pair| DeviceLayer { weight: pair[0].clone(), bias: pair[1].clone() })
            .collect();
        Ok(Self { sizes: sizes.to_vec(), activation, whole, layers, label: label.to_owned() })
    }

    /// The given networks, one to a replica, on the device.
    ///
    /// # Errors
    /// As [`Mlp::zeros`]; [`Error::Usage`] where the networks differ in form.
    pub fn upload(gpu: &Gpu, label: &str, networks: &[Weights]) -> Result<Self> {
        let first = networks.first().ok_or_else(|| Error::usage("networks", "at least one", "none"))?;
        if let Some(other) = networks.iter().find(|n| n.sizes() != first.sizes()) {
            return Err(Error::usage(
                format!("replicas of `{label}`"),
                format!("layers {:?} in each", first.sizes()),
                format!("{:?}", other.sizes()),
            ));
        }
        let mlp = Self::zeros(gpu, label, networks.len(), &first.sizes(), first.activation)?;
        for (r, network) in networks.iter().enumerate() {
            for (device, host) in mlp.layers.iter().zip(&network.layers) {
                device.weight.replica(r).write(gpu, &host.weight)?;
                device.bias.replica(r).write(gpu, &host.bias)?;
            }
        }
        Ok(mlp)
    }

    /// Reads every replica back.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost.
    pub fn read_blocking(&self, gpu: &Gpu) -> Result<Vec<Weights>> {
        let read = |t: &Tensor, r| t.replica(r).read_blocking::<f32>(gpu);
        (0..self.whole.shape[0])
            .map(|r| {
                let layers = self
                    .layers
                    .iter()
                    .map(|l| {
                        Ok(Layer {
                            outputs: l.weight.shape[1],
                            inputs: l.weight.shape[2],
                            weight: read(&l.weight, r)?,
                            bias: read(&l.bias, r)?,
                        })
                    })
                    .collect::<Result<_>>()?;
                Ok(Weights { activation: self.activation, layers })
            })
            .collect()
    }

    /// The same networks on another device: of several, one to a replica, those of the replicas `of`.
    ///
    /// # Errors
    /// As [`Mlp::upload`] and [`Mlp::read_blocking`].
    pub fn copied(&self, from: &Gpu, to: &Gpu, of: Range<usize>) -> Result<Self> {
        let networks = self.read_blocking(from)?;
        let of = if networks.len() == 1 { 0..1 } else { of };
        Self::upload(to, &self.label, &networks[of])
    }

    /// Records the forward pass of a batch `x` `[r, batch, in]`; a single batch or a single network
    /// is shared by the replicas of the other.
    ///
    /// # Errors
    /// As [`Plan::dispatch`].
    pub fn record_forward(&self, plan: &mut Plan<'_>, x: &Tensor) -> Result<Forward> {
        self.record_forward_with(plan, x, None)
    }

    /// As [`Mlp::record_forward`]; with dropout each layer is fed a copy of its input with holes in it.
    ///
    /// # Errors
    /// As [`Plan::dispatch`].
    pub fn record_forward_with(
        &self,
        plan: &mut Plan<'_>,
        x: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<Forward> {
        let replicas = x.shape[0].max(self.whole.shape[0]);
        let batch = x.shape[1];
        let last = self.layers.len() - 1;
        let mut forward =
            Forward { outputs: Vec::new(), pre_activations: Vec::new(), dropout, dropped: Vec::new() };
        for (i, layer) in self.layers.iter().enumerate() {
            let width = layer.weight.shape[1];
            let input = forward.record_dropout(plan, &self.label, i, x, replicas)?;
            let name = format!("{}.l{i}", self.label);
            let output = Tensor::zeros(plan.gpu, &format!("{name}.output"), [replicas, batch, width])?;
            let activation = if i == last { Activation::Identity } else { self.activation };
            let keep = if activation.needs_pre_activation() {
                Some(Tensor::zeros(plan.gpu, &format!("{name}.pre_activation"), output.shape)?)
            } else {
                None
            };
            matmul::record(
                plan,
                &format!("{name}.matmul"),
                Form::Forward,
                &input,
                &layer.weight,
                &output,
                &Epilogue { bias: Some(&layer.bias), keep: keep.as_ref(), activation, ..Epilogue::default() },
            )?;
            forward.outputs.push(output);
            forward.pre_activations.push(keep);
        }
        Ok(forward)
    }

    /// Records the backward pass from `d_logits` into `gradient`, layer by layer, last to first:
    /// weight and bias gradient in one product, then the input's gradient with the activation's
    /// derivative as its mask. The input of the network gets no gradient. `d_hidden` holds by hidden layer
    /// what other losses have left of the gradient of its output `[r, batch, width]`; it is overwritten. With
    /// `accumulate` the gradient is added to what `gradient` holds.
    ///
    /// # Errors
    /// As [`Plan::dispatch`].
    #[allow(clippy::too_many_arguments, reason = "what a backward pass is made of, one each")]
    pub fn record_backward(
        &self,
        plan: &mut Plan<'_>,
        x: &Tensor,
        forward: &Forward,
        d_logits: &Tensor,
        d_hidden: &[Option<Tensor>],
        gradient: &Self,
        accumulate: bool,
    ) -> Result<()> {
        let mut d_output = d_logits.clone();
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let name = format!("{}.l{i}", self.label);
            matmul::record(
                plan,
                &format!("{name}.d_weight"),
                Form::WeightGradient,
                &d_output,
                forward.input(i, x),
                &gradient.layers[i].weight,
                &Epilogue { accumulate, row_sums: Some(&gradient.layers[i].bias), ..Epilogue::default() },
            )?;
            if i == 0 {
                break;
            }
            let below = &forward.outputs[i - 1];
            let begun = d_hidden.get(i - 1).cloned().flatten();
            let add = begun.is_some();
            let d_input = match begun {
                Some(begun) => begun,
                None => Tensor::zeros(plan.gpu, &format!("{name}.d_input"), below.shape)?,
            };
            let saved = forward.pre_activations[i - 1].as_ref().unwrap_or(below);
            let mask = Some((self.activation, saved));
            let (form, label) = (Form::InputGradient, format!("{name}.d_input"));
            let Some((dropout, drop)) = forward.dropout.as_ref().and_then(|d| Some((d, d.before(i)?))) else {
                let epilogue = Epilogue { accumulate: add, mask, ..Epilogue::default() };
                matmul::record(plan, &label, form, &d_output, &layer.weight, &d_input, &epilogue)?;
                d_output = d_input;
                continue;
            };
            // What other losses left is of the output before dropout: it gets the derivative alone, as the
            // epilogue of a product that is zero.
            if add {
                let [left, right] = [[1, below.shape[1], 1], [1, 1, below.shape[2]]];
                let left = Tensor::zeros(plan.gpu, &format!("{name}.nothing"), left)?;
                let right = Tensor::zeros(plan.gpu, &format!("{name}.nothing"), right)?;
                let epilogue = Epilogue { accumulate: add, mask, ..Epilogue::default() };
                let label = format!("{name}.d_feature");
                matmul::record(plan, &label, form, &left, &right, &d_input, &epilogue)?;
            }
            let d_dropped = Tensor::zeros(plan.gpu, &format!("{name}.d_dropped"), below.shape)?;
            let epilogue = Epilogue { mask, ..Epilogue::default() };
            matmul::record(plan, &label, form, &d_output, &layer.weight, &d_dropped, &epilogue)?;
            let label = format!("{name}.d_dropout");
            dropout::record(plan, &label, drop, add, &dropout.steps, &d_dropped, &d_input)?;
            d_output = d_input;
        }
        Ok(())
    }
}
