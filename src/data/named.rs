//! Sets of named arrays, whatever holds them: `x_train`, `y_train`, `x_test`, `y_test` and their other names.

use std::path::Path;
use std::str::FromStr;

use super::array::Array;
use super::load::{LoadOptions, dataset};
use super::read::SourceFile;
use super::{Dataset, Split};
use crate::error::{Error, Result};

/// The names of a set's arrays. An empty field stands for the names in use, in this order: for training
/// features `x_train`, `X_train`, `train_x`, `train_images`, `train_data`, then `x`, `X`, `images`, `data`;
/// for labels `y` or `labels` in their place; for the other parts `test`, or `val` and `valid`, for `train`.
///
/// Parsed from a list in the order of the fields, two to six names: `--keys a,b` or `--keys a,b,c,d`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Training features.
    pub x_train: String,
    /// Training labels.
    pub y_train: String,
    /// Test features.
    pub x_test: String,
    /// Test labels.
    pub y_test: String,
    /// Validation features.
    pub x_validation: String,
    /// Validation labels.
    pub y_validation: String,
}

impl FromStr for Keys {
    type Err = Error;

    fn from_str(list: &str) -> Result<Self> {
        let names: Vec<&str> = list.split(',').map(str::trim).collect();
        if !matches!(names.len(), 2 | 4 | 6) {
            return Err(Error::usage(
                "--keys",
                "x_train,y_train[,x_test,y_test[,x_validation,y_validation]]",
                list,
            ));
        }
        let name = |i: usize| names.get(i).copied().unwrap_or_default().to_owned();
        Ok(Self {
            x_train: name(0),
            y_train: name(1),
            x_test: name(2),
            y_test: name(3),
            x_validation: name(4),
            y_validation: name(5),
        })
    }
}

/// What holds named arrays.
pub(crate) trait Store {
    /// The names there are.
    fn names(&self) -> Vec<String>;
    /// Reads the array `name`, one of `names`; it may stay in its file beyond `resident_limit` bytes.
    fn open(&mut self, name: &str, resident_limit: u64) -> Result<(Array, SourceFile)>;
}

/// The names to look for: `parts` are words for the part, `bare` says whether names without one count.
fn candidates(features: bool, parts: &[&str], bare: bool) -> Vec<String> {
    let (short, long): ([&str; 2], &[&str]) =
        if features { (["x", "X"], &["images", "data"]) } else { (["y", "Y"], &["labels"]) };
    let mut names = Vec::new();
    for part in parts {
        names.extend(short.iter().map(|x| format!("{x}_{part}")));
        names.push(format!("{part}_{}", short[0]));
        names.extend(long.iter().map(|x| format!("{part}_{x}")));
    }
    // scikit-learn's habit: features X, labels y.
    if bare {
        names.extend(short.iter().chain(long).map(|&x| x.to_owned()));
    }
    names
}

/// True if `names` holds training features by one of the names in use or by `keys`.
pub(crate) fn has_training_rows(names: &[String], keys: &Keys) -> bool {
    names.contains(&keys.x_train)
        || candidates(true, &["train"], true).iter().any(|name| names.contains(name))
}

/// Reads the parts that `store` has.
pub(crate) fn assemble(path: &Path, store: &mut dyn Store, options: &LoadOptions) -> Result<Split> {
    let keys = &options.keys;
    let train = part(path, store, options, &["train"], [&keys.x_train, &keys.y_train], options.classes)?;
    let Some(train) = train else {
        let wanted = wanted(&keys.x_train, true, &["train"]);
        return Err(missing(path, store, &wanted));
    };
    let bound = train.class_bound()?;
    let names = [&keys.x_validation, &keys.y_validation];
    let validation = part(path, store, options, &["val", "valid", "validation"], names, bound)?;
    let test = part(path, store, options, &["test"], [&keys.x_test, &keys.y_test], bound)?;
    Split::new(train, validation, test)
}

/// One part; `None` if the store has no features for it and none were named.
fn part(
    path: &Path,
    store: &mut dyn Store,
    options: &LoadOptions,
    parts: &[&str],
    [x_key, y_key]: [&String; 2],
    classes: Option<usize>,
) -> Result<Option<Dataset>> {
    let names = store.names();
    let find = |key: &str, features: bool| {
        let wanted = wanted(key, features, parts);
        wanted.iter().find(|name| names.contains(name)).cloned().ok_or(wanted)
    };
    let x = match find(x_key, true) {
        Ok(name) => name,
        Err(_) if x_key.is_empty() => return Ok(None),
        Err(wanted) => return Err(missing(path, store, &wanted)),
    };
    let y = match find(y_key, false) {
        Ok(name) => Some(name),
        Err(_) if y_key.is_empty() && !options.require_labels => None,
        Err(wanted) => return Err(missing(path, store, &wanted)),
    };
    let x = store.open(&x, options.resident_limit)?;
    let y = y.map(|y| store.open(&y, u64::MAX)).transpose()?;
    dataset(x, y, classes, options).map(Some)
}

fn wanted(key: &str, features: bool, parts: &[&str]) -> Vec<String> {
    if key.is_empty() { candidates(features, parts, parts == ["train"]) } else { vec![key.to_owned()] }
}

fn missing(path: &Path, store: &dyn Store, wanted: &[String]) -> Error {
    // Names come from the file: a forged one can be long, or many.
    let names = store.names();
    let mut found =
        names.iter().take(20).map(|name| name.chars().take(60).collect()).collect::<Vec<String>>().join(", ");
    if names.len() > 20 {
        found.push_str(", …");
    }
    Error::data(
        path,
        "arrays",
        format!("one named {}", wanted.join(", ")),
        if found.is_empty() { "no array".to_owned() } else { found },
    )
    .with_hint("--keys x_train,y_train,x_test,y_test gives the names")
}
