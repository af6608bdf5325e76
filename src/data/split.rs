//! Which rows: validation, few labels, left-out classes. Every list is ascending and a pure function of the
//! seed and the labels, so a run can be repeated from its record.
//!
//! Rows are ranked within their class by a 64-bit key (see [`crate::rng`]); a list takes the first of each
//! class. So the rows that keep their label at 5 per class are among those that keep it at 10.

use std::collections::BTreeMap;

use super::{Dataset, UNLABELLED};
use crate::error::{Error, Result};
use crate::rng::{key64, stream};

/// The parts of a data set, all with the same features, element type and classes.
#[derive(Clone, Debug)]
pub struct Split {
    /// The rows to train on.
    pub train: Dataset,
    /// The rows to choose by; taken from `train` by [`Split::hold_out`] where the source has none.
    pub validation: Option<Dataset>,
    /// The rows to report on, once.
    pub test: Option<Dataset>,
}

impl Split {
    /// Joins the parts and checks that they fit: features, element type, classes, at least two classes.
    pub fn new(train: Dataset, validation: Option<Dataset>, test: Option<Dataset>) -> Result<Self> {
        train.class_bound()?;
        for other in validation.iter().chain(&test) {
            let facts = |d: &Dataset| {
                let element = if d.x.is_u8() { "u8" } else { "float" };
                format!("rows of {} {element} values", d.features())
            };
            if facts(other) != facts(&train) {
                return Err(Error::data(
                    other.path(),
                    "rows",
                    format!("{} as in {}", facts(&train), train.path().display()),
                    facts(other),
                ));
            }
            if train.classes > 0 && other.labels.is_some() && other.classes != train.classes {
                return Err(Error::data(
                    other.path(),
                    "labels",
                    format!("{} classes as in {}", train.classes, train.path().display()),
                    format!("{} classes", other.classes),
                ));
            }
        }
        Ok(Self { train, validation, test })
    }

    /// Takes about `fraction` of the training rows for validation, stratified by class, as a pure function
    /// of `seed` and the labels; a validation part the source already has is kept as it is.
    pub fn hold_out(mut self, fraction: f64, seed: u64) -> Result<Self> {
        if self.validation.is_none() {
            let rows = self.train.rows();
            let (train, held) = self::validation(self.train.labels.as_deref(), rows, fraction, seed)?;
            self.validation = Some(self.train.select(&held));
            self.train = self.train.select(&train);
        }
        Ok(self)
    }
}

/// Splits `rows` rows into training and validation rows: about `fraction` of each class (rows without a
/// label, or all rows where `labels` is `None`, count as one more class), `fraction * rows` rounded in all.
///
/// Fails unless 0 < fraction < 1 leaves both sides at least one row.
pub fn validation(
    labels: Option<&[u32]>,
    rows: usize,
    fraction: f64,
    seed: u64,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let wanted = (fraction * rows as f64).round() as usize;
    if !(fraction > 0.0 && fraction < 1.0 && wanted > 0 && wanted < rows) {
        return Err(Error::usage(
            "validation fraction",
            format!("a fraction that leaves rows on both sides of {rows}"),
            fraction.to_string(),
        ));
    }
    let label = |row: u32| labels.map_or(UNLABELLED, |labels| labels[row as usize]);
    let classes = ranked(rows, seed, stream::SPLIT, label);
    let mut held = take(&classes, &quotas(&classes, fraction, wanted));
    held.sort_unstable();
    let train = (0..rows as u32).filter(|row| held.binary_search(row).is_err()).collect();
    Ok((train, held))
}

/// `n` labelled rows of each class that has any. Fails where a class has fewer.
pub fn labels_per_class(labels: &[u32], n: usize, seed: u64) -> Result<Vec<u32>> {
    let classes = labelled(labels, seed);
    if let Some((class, rows)) = classes.iter().find(|(_, rows)| rows.len() < n) {
        return Err(Error::usage(
            "labels per class",
            format!("at most {}, the labels of class {class}", rows.len()),
            n.to_string(),
        ));
    }
    let mut kept = take(&classes, &vec![n; classes.len()]);
    kept.sort_unstable();
    Ok(kept)
}

/// About `fraction` of the labelled rows of each class, at least one of each. Fails unless 0 < fraction <= 1.
pub fn label_fraction(labels: &[u32], fraction: f64, seed: u64) -> Result<Vec<u32>> {
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(Error::usage("label fraction", "a number above 0, at most 1", fraction.to_string()));
    }
    let classes = labelled(labels, seed);
    let total: usize = classes.values().map(Vec::len).sum();
    let mut quotas = quotas(&classes, fraction, (fraction * total as f64).round() as usize);
    for quota in &mut quotas {
        *quota = (*quota).max(1);
    }
    let mut kept = take(&classes, &quotas);
    kept.sort_unstable();
    Ok(kept)
}

/// The rows whose label is none of `dropped`; rows without a label stay.
pub fn drop_classes(labels: &[u32], dropped: &[u32]) -> Vec<u32> {
    let rows = labels.iter().enumerate();
    rows.filter(|(_, label)| !dropped.contains(label)).map(|(row, _)| row as u32).collect()
}

type Classes = BTreeMap<u32, Vec<u32>>;

/// The rows of each class in the order of their keys, ties by row.
fn ranked(rows: usize, seed: u64, stream: u32, label: impl Fn(u32) -> u32) -> Classes {
    let mut classes = Classes::new();
    for row in 0..rows as u32 {
        classes.entry(label(row)).or_default().push(row);
    }
    for rows in classes.values_mut() {
        rows.sort_by_cached_key(|&row| (key64(seed, stream, u64::from(row)), row));
    }
    classes
}

fn labelled(labels: &[u32], seed: u64) -> Classes {
    let mut classes = ranked(labels.len(), seed, stream::LABELS, |row| labels[row as usize]);
    classes.remove(&UNLABELLED);
    classes
}

/// `wanted` rows shared out over the classes: the floor of each share, then one more by largest remainder.
fn quotas(classes: &Classes, fraction: f64, wanted: usize) -> Vec<usize> {
    let shares: Vec<f64> = classes.values().map(|rows| fraction * rows.len() as f64).collect();
    let mut quotas: Vec<usize> = shares.iter().map(|&share| share as usize).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&a, &b| shares[b].fract().total_cmp(&shares[a].fract()).then(a.cmp(&b)));
    let missing = wanted.saturating_sub(quotas.iter().sum());
    for &class in order.iter().take(missing) {
        quotas[class] += 1;
    }
    quotas
}

fn take(classes: &Classes, quotas: &[usize]) -> Vec<u32> {
    let classes = classes.values().zip(quotas);
    classes.flat_map(|(rows, &n)| rows.iter().take(n)).copied().collect()
}
