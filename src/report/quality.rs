//! What a classifier's logits are worth, beyond their errors: alone, and beside another's.

use serde::Serialize;

use crate::data::UNLABELLED;
use crate::error::{Error, Result};
use crate::reference::{Matrix, argmax, metrics};
use crate::report::stats::mcnemar;
use crate::report::table::render;

/// Beyond so many classes nobody reads a table with a row and a column for each.
const MOST_CLASSES: usize = 100;
/// Beyond so many, not on a terminal either.
const MOST_PRINTED: usize = 20;

/// Of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassQuality {
    /// Its name, or its number.
    pub name: String,
    /// Rows with its label.
    pub rows: usize,
    /// Those among them that are given another class.
    pub errors: usize,
    /// Share of its rows that are recognised; `None` without rows.
    pub recall: Option<f64>,
    /// Share of the rows given this class that have it; `None` where it is given to none.
    pub precision: Option<f64>,
}

/// Of logits against labels; probabilities are those at T = 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Rows with a label: what all of the following is over.
    pub rows: usize,
    /// Wrong ones among them.
    pub errors: usize,
    /// Share that is right.
    pub accuracy: f64,
    /// Mean negative log-likelihood of the label, in nats.
    pub nll: f64,
    /// Mean over rows of sum over classes of (q - y)^2: 0 is perfect, 2 the worst.
    pub brier: f64,
    /// Expected calibration error (Guo et al. 2017), 15 bins of the confidence.
    pub ece: f64,
    /// Class by class.
    pub classes: Vec<ClassQuality>,
    /// `confusion[label][prediction]` counts rows; `None` beyond 100 classes.
    pub confusion: Option<Vec<Vec<usize>>>,
}

/// Of a model beside a reference: its teacher, a baseline, or any other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Share of all rows on which both say the same.
    pub agreement: f64,
    /// Mean over all rows of KL(reference || model) at T = 1, in nats.
    pub kl_reference_model: f64,
    /// Mean over all rows of KL(model || reference) at T = 1, in nats.
    pub kl_model_reference: f64,
    /// Labelled rows that both have right.
    pub both_right: usize,
    /// Those that only the reference has right: what was lost.
    pub negative_flips: usize,
    /// Those that only the model has right.
    pub positive_flips: usize,
    /// Those that both have wrong.
    pub both_wrong: usize,
    /// McNemar's test of equal error rates: two-sided exact binomial p-value of the flips.
    pub mcnemar_p: f64,
}

/// The labelled rows and their labels, which must be below `classes`.
fn labelled(labels: &[u32], classes: usize) -> Result<(Vec<usize>, Vec<usize>)> {
    let known: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] != UNLABELLED).collect();
    let wanted: Vec<usize> = known.iter().map(|i| labels[*i] as usize).collect();
    if wanted.is_empty() {
        return Err(Error::usage("data", "labels to compare with", "rows without labels"));
    }
    match wanted.iter().find(|label| **label >= classes) {
        Some(label) => {
            Err(Error::usage("data", format!("labels below {classes}, the outputs"), label.to_string()))
        }
        None => Ok((known, wanted)),
    }
}

impl Quality {
    /// Of logits `[rows, classes]` against a label or [`UNLABELLED`] per row.
    ///
    /// # Errors
    /// [`Error::Usage`] where no row has a label, or one has a label beyond the logits' classes.
    pub fn of(z: &Matrix, labels: &[u32], names: Option<&[String]>) -> Result<Self> {
        let (known, wanted) = labelled(labels, z.cols)?;
        let z = &z.gather(&known);
        let mut classes: Vec<_> = (0..z.cols)
            .map(|c| {
                let name = names.and_then(|n| n.get(c)).cloned().unwrap_or_else(|| c.to_string());
                ClassQuality { name, rows: 0, errors: 0, recall: None, precision: None }
            })
            .collect();
        let mut given = vec![0; z.cols];
        for (r, label) in wanted.iter().enumerate() {
            let said = argmax(z.row(r));
            given[said] += 1;
            classes[*label].rows += 1;
            classes[*label].errors += usize::from(said != *label);
        }
        let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        for (class, given) in classes.iter_mut().zip(given) {
            class.recall = share(class.rows - class.errors, class.rows);
            class.precision = share(class.rows - class.errors, given);
        }
        Ok(Self {
            rows: wanted.len(),
            errors: metrics::errors(z, &wanted),
            accuracy: metrics::accuracy(z, &wanted),
            nll: metrics::nll(z, &wanted),
            brier: metrics::brier(z, &wanted),
            ece: metrics::expected_calibration_error(z, &wanted),
            classes,
            confusion: (z.cols <= MOST_CLASSES).then(|| metrics::confusion(z, &wanted)),
        })
    }

    /// The scores, and up to 20 classes one by one.
    pub fn text(&self) -> String {
        let percent = |share: Option<f64>| share.map_or("-".to_owned(), |v| format!("{:.2} %", 100.0 * v));
        let mut text = format!(
            "{} errors of {} ({}), NLL {:.4} nats, Brier {:.4}, ECE {:.4}\n",
            self.errors,
            self.rows,
            percent(Some(1.0 - self.accuracy)),
            self.nll,
            self.brier,
            self.ece
        );
        if self.classes.len() > MOST_PRINTED {
            return text + &format!("{} classes one by one: --json\n", self.classes.len());
        }
        let mut rows = vec![["class", "rows", "errors", "recall", "precision"].map(str::to_owned).to_vec()];
        rows[0].extend(self.classes.iter().map(|c| format!("{:.12}", c.name)));
        for (i, c) in self.classes.iter().enumerate() {
            let mut row = vec![c.name.clone(), c.rows.to_string(), c.errors.to_string()];
            row.extend([percent(c.recall), percent(c.precision)]);
            row.extend(self.confusion.iter().flat_map(|t| &t[i]).map(usize::to_string));
            rows.push(row);
        }
        text += "\nOn the right: how many of the class's rows were given which class.\n";
        text + &render(&rows)
    }
}

impl Comparison {
    /// Of the model's logits beside a reference's over the same rows.
    ///
    /// # Errors
    /// [`Error::Usage`] where rows or classes differ; as [`Quality::of`].
    pub fn of(model: &Matrix, reference: &Matrix, labels: &[u32]) -> Result<Self> {
        if (model.rows, model.cols) != (reference.rows, reference.cols) {
            let shape = |m: &Matrix| format!("{} rows of {} classes", m.rows, m.cols);
            return Err(Error::usage("networks to compare", shape(model), shape(reference)));
        }
        let (known, wanted) = labelled(labels, model.cols)?;
        let (kl_reference_model, kl_model_reference) = metrics::predictive_kl(model, reference);
        let [mut both_right, mut negative_flips, mut positive_flips, mut both_wrong] = [0; 4];
        for (row, label) in known.into_iter().zip(wanted) {
            match (argmax(model.row(row)) == label, argmax(reference.row(row)) == label) {
                (true, true) => both_right += 1,
                (false, true) => negative_flips += 1,
                (true, false) => positive_flips += 1,
                (false, false) => both_wrong += 1,
            }
        }
        Ok(Self {
            agreement: metrics::agreement(model, reference),
            kl_reference_model,
            kl_model_reference,
            both_right,
            negative_flips,
            positive_flips,
            both_wrong,
            mcnemar_p: mcnemar(negative_flips as u64, positive_flips as u64),
        })
    }

    /// For people; `model` and `reference` are what the two are called.
    pub fn text(&self, model: &str, reference: &str) -> String {
        let rows = self.both_right + self.both_wrong + self.negative_flips + self.positive_flips;
        let share = |n: usize| format!("{n} ({:.2} %)", 100.0 * n as f64 / rows as f64);
        format!(
            "agreement {:.2} %, KL({reference} || {model}) {:.4}, KL({model} || {reference}) {:.4} nats\n\
             both right {}, only {reference} {} (negative flips), only {model} {} (positive), both wrong {}\n\
             McNemar's test of equal error rates: p = {:.3e}, exact\n",
            100.0 * self.agreement,
            self.kl_reference_model,
            self.kl_model_reference,
            share(self.both_right),
            share(self.negative_flips),
            share(self.positive_flips),
            share(self.both_wrong),
            self.mcnemar_p
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits whose softmax are these probabilities.
    fn logits(rows: &[&[f64]]) -> Matrix {
        let values = rows.iter().flat_map(|row| row.iter().map(|p| p.ln() + 3.0)).collect();
        Matrix::new(rows.len(), rows[0].len(), values)
    }

    fn close(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-12, "{found} for {wanted}");
    }

    #[test]
    fn scores_by_hand() {
        // Right, right, wrong, right, no label.
        let z = logits(&[
            &[0.8, 0.1, 0.1],
            &[0.2, 0.5, 0.3],
            &[0.2, 0.6, 0.2],
            &[0.05, 0.05, 0.9],
            &[0.4, 0.3, 0.3],
        ]);
        let names = ["a", "b"].map(str::to_owned);
        let q = Quality::of(&z, &[0, 1, 0, 2, UNLABELLED], Some(&names)).expect("labels");
        assert_eq!((q.rows, q.errors), (4, 1));
        close(q.accuracy, 0.75);
        close(q.nll, -(0.8_f64.ln() + 0.5_f64.ln() + 0.2_f64.ln() + 0.9_f64.ln()) / 4.0);
        // 0.04 + 0.01 + 0.01; 0.04 + 0.25 + 0.09; 0.64 + 0.36 + 0.04; 0.0025 + 0.0025 + 0.01.
        close(q.brier, (0.06 + 0.38 + 1.04 + 0.015) / 4.0);
        // Confidences 0.8, 0.5, 0.6 and 0.9 lie in bins of their own: gaps 0.2, 0.5, 0.6 and 0.1.
        close(q.ece, (0.2 + 0.5 + 0.6 + 0.1) / 4.0);
        assert_eq!(q.confusion, Some(vec![vec![1, 1, 0], vec![0, 1, 0], vec![0, 0, 1]]));
        let class = |i: usize| {
            let c = &q.classes[i];
            (c.name.as_str(), c.rows, c.errors, c.recall, c.precision)
        };
        assert_eq!(class(0), ("a", 2, 1, Some(0.5), Some(1.0)));
        assert_eq!(class(1), ("b", 1, 0, Some(1.0), Some(0.5)));
        assert_eq!(class(2), ("2", 1, 0, Some(1.0), Some(1.0)));
        assert!(q.text().contains("1 errors of 4 (25.00 %)"), "{}", q.text());
    }

    #[test]
    fn a_class_without_rows_has_no_recall() {
        let q = Quality::of(&logits(&[&[0.6, 0.4], &[0.7, 0.3]]), &[0, 0], None).expect("labels");
        assert_eq!((q.classes[1].recall, q.classes[1].precision), (None, None));
        assert!(Quality::of(&logits(&[&[0.6, 0.4]]), &[UNLABELLED], None).is_err());
        assert!(Quality::of(&logits(&[&[0.6, 0.4]]), &[2], None).is_err());
    }

    #[test]
    fn a_comparison_by_hand() {
        let model = logits(&[&[0.8, 0.2], &[0.6, 0.4], &[0.3, 0.7], &[0.1, 0.9]]);
        let reference = logits(&[&[0.5, 0.5], &[0.25, 0.75], &[0.6, 0.4], &[0.2, 0.8]]);
        // Model: right, wrong, right, wrong; reference: right (of equals the first), right, wrong, wrong.
        let c = Comparison::of(&model, &reference, &[0, 1, 1, 0]).expect("labels");
        assert_eq!((c.both_right, c.negative_flips, c.positive_flips, c.both_wrong), (1, 1, 1, 1));
        close(c.agreement, 0.5);
        close(c.mcnemar_p, 1.0);
        let kl = |a: [f64; 2], b: [f64; 2]| a[0] * (a[0] / b[0]).ln() + a[1] * (a[1] / b[1]).ln();
        let pairs = [
            ([0.8, 0.2], [0.5, 0.5]),
            ([0.6, 0.4], [0.25, 0.75]),
            ([0.3, 0.7], [0.6, 0.4]),
            ([0.1, 0.9], [0.2, 0.8]),
        ];
        close(c.kl_model_reference, pairs.iter().map(|(m, r)| kl(*m, *r)).sum::<f64>() / 4.0);
        close(c.kl_reference_model, pairs.iter().map(|(m, r)| kl(*r, *m)).sum::<f64>() / 4.0);
        // Rows without a label count for the agreement only.
        let c = Comparison::of(&model, &reference, &[0, UNLABELLED, UNLABELLED, UNLABELLED]).expect("labels");
        assert_eq!((c.both_right, c.negative_flips, c.positive_flips, c.both_wrong), (1, 0, 0, 0));
        close(c.agreement, 0.5);
        assert!(Comparison::of(&model, &logits(&[&[0.5, 0.5]]), &[0, 1, 1, 0]).is_err());
    }
}
