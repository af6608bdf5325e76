//! Losses between hidden layers: what they add to the step, and to the gradient of the student's layers.

use crate::distill::step::{Optimizer, record_update};
use crate::error::{Error, Result};
use crate::gpu::program::SLOTS;
use crate::gpu::{Plan, Tensor};
use crate::kernels::feature::{self, Kind};
use crate::kernels::head::Soft;
use crate::kernels::matmul::{self, Activation, Epilogue, Form};
use crate::kernels::metrics;
use crate::mlp::weights::{Initializer, Weights};
use crate::mlp::{Forward, Mlp};

/// A loss between a hidden layer of the student and one of the teacher, both after their activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feature {
    /// Which loss.
    pub kind: Kind,
    /// The student's hidden layer, from 1.
    pub student: usize,
    /// The teacher's hidden layer, from 1.
    pub teacher: usize,
    /// Of the loss in the whole.
    pub weight: f64,
}

/// What the student is pulled by, the labels apart.
#[derive(Clone, Copy, Debug)]
pub struct Pull<'a> {
    /// The loss on the logits.
    pub soft: Soft,
    /// Those on hidden layers.
    pub features: &'a [Feature],
}

impl From<Soft> for Pull<'_> {
    fn from(soft: Soft) -> Self {
        Self { soft, features: &[] }
    }
}

impl Feature {
    /// The output of the named hidden layer.
    fn layer<'a>(whose: &str, hidden: &'a [Tensor], number: usize) -> Result<&'a Tensor> {
        number.checked_sub(1).and_then(|i| hidden.get(i)).ok_or_else(|| {
            let found = format!("layer {number} of {}", hidden.len());
            Error::usage(format!("{whose}'s hidden layer"), "one that there is, counted from 1", found)
        })
    }
}

/// A hint's linear map from the student's layer to the teacher's width: trained along, not part of the student.
pub struct Regressor {
    mlp: Mlp,
    gradient: Mlp,
    moments: Vec<Tensor>,
}

impl Regressor {
    fn new(plan: &Plan<'_>, name: &str, h: &Tensor, width: usize, optimizer: Optimizer) -> Result<Self> {
        let sizes = [h.shape[2], width];
        // The same for every replica: what they differ in is their students.
        let start = Weights::init(&sizes, Activation::Identity, Initializer::Glorot, 0)?;
        let mlp = Mlp::upload(plan.gpu, name, &vec![start; h.shape[0]])?;
        let gradient = Mlp::zeros(plan.gpu, &format!("d_{name}"), h.shape[0], &sizes, Activation::Identity)?;
        let moment = |i| Tensor::zeros(plan.gpu, &format!("{name}.moment_{}", i + 1), mlp.whole.shape);
        let moments = (0..optimizer.moments()).map(moment).collect::<Result<_>>()?;
        Ok(Self { mlp, gradient, moments })
    }

    /// What training changes.
    pub fn arenas(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        [&self.mlp.whole].into_iter().chain(&self.moments).map(|t| (t.label.as_str(), t))
    }
}

/// The feature losses of a step, recorded.
#[derive(Default)]
pub struct Features {
    regressors: Vec<Regressor>,
    /// Each loss's rows `[r, slots * batch, 8]`, to be summed up.
    pub stats: Vec<Tensor>,
    /// By hidden layer: the gradient with respect to its output that the losses left, `[r, batch, width]`.
    pub d_hidden: Vec<Option<Tensor>>,
}

impl Features {
    /// Records the losses and their gradients. `taught` are the outputs of the teacher's hidden layers.
    ///
    /// # Errors
    /// [`Error::Usage`] for layers that there are not, or weights that are not above 0; as
    /// [`Plan::dispatch`].
    pub fn record(
        plan: &mut Plan<'_>,
        features: &[Feature],
        forward: &Forward,
        taught: Option<&[Tensor]>,
        ring: &Tensor,
        optimizer: Optimizer,
    ) -> Result<Self> {
        let hidden = &forward.outputs[..forward.outputs.len() - 1];
        let mut all = Self { d_hidden: vec![None; hidden.len()], ..Self::default() };
        for (i, loss) in features.iter().enumerate() {
            let name = format!("{}{i}", loss.kind.name());
            if !(loss.weight > 0.0 && loss.weight.is_finite()) {
                return Err(Error::usage(&name, "a weight above 0", loss.weight.to_string()));
            }
            let taught = taught.ok_or_else(|| {
                Error::usage(&name, "one live teacher, whose layers can be seen", "several, or logits alone")
            })?;
            let h = Feature::layer("the student", hidden, loss.student)?;
            let target = Feature::layer("the teacher", taught, loss.teacher)?;
            let [replicas, batch, _] = h.shape;
            let stats = Tensor::zeros(
                plan.gpu,
                &format!("{name}.stats"),
                [replicas, SLOTS as usize * batch, metrics::WIDTH],
            )?;
            let d_h = &mut all.d_hidden[loss.student - 1];
            let begun = d_h.is_some();
            let d_h = match d_h {
                Some(d_h) => d_h.clone(),
                None => {
                    let label = format!("student.l{}.d_feature", loss.student - 1);
                    d_h.insert(Tensor::zeros(plan.gpu, &label, h.shape)?).clone()
                }
            };
            let site = Site { name: &name, loss, h, target, d_h: &d_h, begun, ring, stats: &stats };
            match loss.kind {
                Kind::Hint => all.regressors.push(site.hint(plan, optimizer)?),
                Kind::Similarity => site.similarity(plan)?,
            }
            all.stats.push(stats);
        }
        Ok(all)
    }

    /// Records the regressors' update. `norms` is the students': a step that leaves them as they are leaves
    /// the regressors too.
    ///
    /// # Errors
    /// As [`Plan::dispatch`].
    pub fn record_update(
        &self,
        plan: &mut Plan<'_>,
        optimizer: Optimizer,
        ring: &Tensor,
        norms: Option<&Tensor>,
    ) -> Result<()> {
        self.regressors.iter().try_for_each(|r| {
            record_update(plan, optimizer, ring, &r.gradient.whole, &r.mlp.whole, &r.moments, norms)
        })
    }

    /// What training changes beside the students.
    pub fn arenas(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.regressors.iter().flat_map(Regressor::arenas)
    }
}

/// One loss where it is recorded.
struct Site<'a> {
    name: &'a str,
    loss: &'a Feature,
    /// The student's layer `[r, batch, width]`.
    h: &'a Tensor,
    /// The teacher's `[r or 1, batch, width]`.
    target: &'a Tensor,
    d_h: &'a Tensor,
    /// Another loss has left its part in `d_h`.
    begun: bool,
    ring: &'a Tensor,
    stats: &'a Tensor,
}

impl Site<'_> {
    fn record(&self, plan: &mut Plan<'_>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let d = Tensor::zeros(plan.gpu, &format!("{}.d", self.name), a.shape)?;
        let (steps, stats, weight) = (self.ring, self.stats, self.loss.weight);
        let feature = feature::Feature { steps, a, b, d: &d, stats, weight };
        feature::record(plan, self.name, self.loss.kind, &feature)?;
        Ok(d)
    }

    fn product(
        &self,
        plan: &mut Plan<'_>,
        what: &str,
        form: Form,
        [a, b, c]: [&Tensor; 3],
        add: bool,
    ) -> Result<()> {
        let epilogue = Epilogue { accumulate: add, ..Epilogue::default() };
        matmul::record(plan, &format!("{}.{what}", self.name), form, a, b, c, &epilogue)
    }

    /// r = h W' + b against the target; back through W.
    fn hint(&self, plan: &mut Plan<'_>, optimizer: Optimizer) -> Result<Regressor> {
        let regressor = Regressor::new(plan, self.name, self.h, self.target.shape[2], optimizer)?;
        let forward = regressor.mlp.record_forward(plan, self.h)?;
        let d = self.record(plan, forward.logits(), self.target)?;
        regressor.mlp.record_backward(plan, self.h, &forward, &d, &[], &regressor.gradient, false)?;
        let weight = &regressor.mlp.layers[0].weight;
        self.product(plan, "d_input", Form::InputGradient, [&d, weight, self.d_h], self.begun)?;
        Ok(regressor)
    }

    /// The Gram matrices against each other; back through h h'.
    fn similarity(&self, plan: &mut Plan<'_>) -> Result<()> {
        let mut gram = |what: &str, h: &Tensor| {
            let [replicas, batch, _] = h.shape;
            let gram = Tensor::zeros(plan.gpu, &format!("{}.{what}", self.name), [replicas, batch, batch])?;
            self.product(plan, what, Form::Forward, [h, h, &gram], false)?;
            Ok::<_, Error>(gram)
        };
        let (own, theirs) = (gram("student", self.h)?, gram("teacher", self.target)?);
        let d = self.record(plan, &own, &theirs)?;
        self.product(plan, "d_left", Form::InputGradient, [&d, self.h, self.d_h], self.begun)?;
        self.product(plan, "d_right", Form::WeightGradient, [&d, self.h, self.d_h], true)
    }
}
