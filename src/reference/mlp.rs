//! A multilayer perceptron: forward and backward, side by side.

use super::linalg::{column_sums, matmul};
use super::{Activation, Matrix};

/// y = W_L f(... f(W_1 x + b_1) ...) + b_L: the hidden layers have the activation, the output none.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Sizes from input to output, such as 64, 32, 10.
    pub layers: Vec<usize>,
    /// Of the hidden layers.
    pub activation: Activation,
    /// One [out, in] per layer.
    pub weights: Vec<Matrix>,
    /// One `[out]` per layer.
    pub biases: Vec<Vec<f64>>,
}

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The input of each layer [B, in], after dropout; the first is x itself.
    pub inputs: Vec<Matrix>,
    /// What each layer's input was multiplied by: 0 where it was dropped.
    pub masks: Vec<Option<Matrix>>,
    /// The pre-activation of each layer [B, out]; the last are the logits.
    pub pre_activations: Vec<Matrix>,
}

/// Gradients, in the order of the layers.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// [out, in] per layer.
    pub d_weights: Vec<Matrix>,
    /// `[out]` per layer.
    pub d_biases: Vec<Vec<f64>>,
    /// [B, in of the first layer].
    pub d_input: Matrix,
}

impl Trace {
    /// The network's output [B, K].
    pub fn logits(&self) -> &Matrix {
        self.pre_activations.last().expect("a network has a layer")
    }
}

impl Mlp {
    /// All parameters zero; fill in `weights` and `biases`.
    pub fn zeros(layers: &[usize], activation: Activation) -> Self {
        assert!(layers.len() >= 2, "an input and an output size");
        let pairs = || layers.iter().zip(&layers[1..]);
        Self {
            layers: layers.to_vec(),
            activation,
            weights: pairs().map(|(i, o)| Matrix::zeros(*o, *i)).collect(),
            biases: pairs().map(|(_, o)| vec![0.0; *o]).collect(),
        }
    }

    /// Z_l = X_l W_l' + b_l, X_(l+1) = f(Z_l).
    pub fn forward(&self, x: &Matrix) -> Trace {
        self.forward_with(x, vec![None; self.weights.len()])
    }

    /// As [`Mlp::forward`], with dropout: the input of layer l is X_l * M_l, element by element.
    pub fn forward_with(&self, x: &Matrix, masks: Vec<Option<Matrix>>) -> Trace {
        let dropped = |x: Matrix, l: usize| match &masks[l] {
            Some(mask) => times(&x, mask),
            None => x,
        };
        let mut inputs = vec![dropped(x.clone(), 0)];
        let mut pre_activations: Vec<Matrix> = Vec::new();
        for (l, (weight, bias)) in self.weights.iter().zip(&self.biases).enumerate() {
            let z = matmul(&inputs[l], weight, false, true).plus_bias(bias);
            if l + 1 < self.weights.len() {
                inputs.push(dropped(z.value.map(|z| self.activation.forward(z)), l + 1));
            }
            pre_activations.push(z.value);
        }
        Trace { inputs, masks, pre_activations }
    }

    /// From d_Z of the logits, last layer to first:
    /// d_W = d_Z' X, d_b = column sums of d_Z, d_X = d_Z W * M, d_Z below = d_X * f'(Z below).
    pub fn backward(&self, trace: &Trace, d_logits: &Matrix) -> Gradients {
        self.backward_with(trace, d_logits, &[])
    }

    /// As [`Mlp::backward`], where other losses add their gradient of a hidden layer's output: d_X of
    /// hidden layer l, from 0, begins with `d_hidden[l]`, which is of the output before dropout.
    pub fn backward_with(&self, trace: &Trace, d_logits: &Matrix, d_hidden: &[Option<Matrix>]) -> Gradients {
        let mut d_weights = Vec::new();
        let mut d_biases = Vec::new();
        let mut d_z = d_logits.clone();
        for l in (0..self.weights.len()).rev() {
            d_weights.push(matmul(&d_z, &trace.inputs[l], true, false).value);
            d_biases.push(column_sums(&d_z).value.data);
            d_z = matmul(&d_z, &self.weights[l], false, false).value;
            if let Some(mask) = &trace.masks[l] {
                d_z = times(&d_z, mask);
            }
            if l > 0 {
                if let Some(Some(d)) = d_hidden.get(l - 1) {
                    d_z.data.iter_mut().zip(&d.data).for_each(|(d_z, d)| *d_z += d);
                }
                let below = &trace.pre_activations[l - 1];
                for (d, z) in d_z.data.iter_mut().zip(&below.data) {
                    *d *= self.activation.derivative(*z);
                }
            }
        }
        d_weights.reverse();
        d_biases.reverse();
        Gradients { d_weights, d_biases, d_input: d_z }
    }

    /// Every tensor, to move: weight and bias of each layer in turn.
    pub fn parameters_mut(&mut self) -> Vec<&mut [f64]> {
        let layers = self.weights.iter_mut().zip(&mut self.biases);
        layers.flat_map(|(w, b)| [w.data.as_mut_slice(), b.as_mut_slice()]).collect()
    }
}

/// A * B, element by element.
fn times(a: &Matrix, b: &Matrix) -> Matrix {
    Matrix::new(a.rows, a.cols, a.data.iter().zip(&b.data).map(|(a, b)| a * b).collect())
}

impl Gradients {
    /// Every tensor, in the order of [`Mlp::parameters_mut`].
    pub fn tensors(&self) -> Vec<&[f64]> {
        let layers = self.d_weights.iter().zip(&self.d_biases);
        layers.flat_map(|(w, b)| [w.data.as_slice(), b.as_slice()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_gradient};
    use super::super::{Head, SoftLoss};
    use super::*;

    const ALL: [Activation; 4] = [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Gelu];

    fn with_parameters(network: &Mlp, flat: &[f64]) -> Mlp {
        let mut network = network.clone();
        let mut rest = flat;
        for tensor in network.parameters_mut() {
            let (head, tail) = rest.split_at(tensor.len());
            tensor.copy_from_slice(head);
            rest = tail;
        }
        network
    }

    #[test]
    fn a_forward_pass_by_hand() {
        let mut network = Mlp::zeros(&[2, 2, 1], Activation::Relu);
        network.weights[0] = Matrix::new(2, 2, vec![1.0, 2.0, -1.0, 1.0]);
        network.biases[0] = vec![0.5, -3.0];
        network.weights[1] = Matrix::new(1, 2, vec![2.0, 5.0]);
        network.biases[1] = vec![1.0];
        // Hidden: 1 + 2 + 0.5 and -1 + 1 - 3, which ReLU cuts off.
        let trace = network.forward(&Matrix::new(1, 2, vec![1.0, 1.0]));
        assert_eq!(trace.inputs[1].data, [3.5, 0.0]);
        assert_eq!(trace.logits().data, [8.0]);
    }

    #[test]
    fn whole_networks_match_central_differences() {
        let head = Head {
            hard_weight: 0.4,
            soft_weight: 0.6,
            temperature: 3.0,
            label_smoothing: 0.05,
            soft_loss: SoftLoss::ForwardKl,
            standardise: false,
        };
        let labels = [Some(0), Some(3), None, Some(1), Some(2)];
        for activation in ALL {
            for layers in [vec![3, 4], vec![3, 5, 4], vec![3, 5, 6, 4]] {
                let mut random = Random(50);
                let (x, v) = (random.matrix(5, 3, 1.0), random.matrix(5, 4, 3.0));
                let mut network = Mlp::zeros(&layers, activation);
                for tensor in network.parameters_mut() {
                    let random = random.row(tensor.len(), 0.8);
                    tensor.copy_from_slice(&random);
                }
                // A third of the inputs and of the last layer's inputs is dropped.
                let mut masks = vec![None; layers.len() - 1];
                for l in [0, layers.len() - 2] {
                    let mask = (0..5 * layers[l]).map(|i| if i % 3 == 1 { 0.0 } else { 1.5 }).collect();
                    masks[l] = Some(Matrix::new(5, layers[l], mask));
                }
                let loss = |network: &Mlp, x: &Matrix| {
                    let trace = network.forward_with(x, masks.clone());
                    head.loss(&head.evaluate(trace.logits(), Some(&v), &labels))
                };
                let trace = network.forward_with(&x, masks.clone());
                let d_z = head.evaluate(trace.logits(), Some(&v), &labels).d_z.value;
                let gradients = network.backward(&trace, &d_z);
                let what = format!("{activation:?} {layers:?}");
                let flat = network.clone().parameters_mut().concat();
                let gradient = gradients.tensors().concat();
                let of_flat = |flat: &[f64]| loss(&with_parameters(&network, flat), &x);
                assert_gradient(&flat, &gradient, of_flat, &what);
                let of_x = |x: &[f64]| loss(&network, &Matrix::new(5, 3, x.to_vec()));
                assert_gradient(&x.data, &gradients.d_input.data, of_x, &what);
            }
        }
    }
}
