//! Which data, which of its rows, and what is done to them before the first layer.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::data::{Dataset, Keys, LabelColumn, LoadOptions, Normalisation, Split, split};
use crate::error::{Error, Result};

#[derive(Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Folder of IDX files as MNIST ships them (train-images-idx3-ubyte[.gz], …), of .npy files or with
    /// train.csv; or a .npz, .npy, .csv or .safetensors file.
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// Names of the arrays: x_train,y_train[,x_test,y_test[,x_val,y_val]] [default: the usual ones].
    #[arg(long, value_name = "NAMES")]
    keys: Option<Keys>,
    /// A CSV's label column, by name or by place from 0, -1 the last [default: label, class, target or y, else the last].
    #[arg(long, value_name = "NAME|INDEX", allow_hyphen_values = true)]
    label_column: Option<String>,
    /// Whether a CSV's first line names its columns [default: found out].
    #[arg(long, value_enum)]
    header: Option<YesNo>,
    /// Factor from stored values to inputs [default: 1/255 for bytes, else 1; a model's own where it has one].
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Number of classes [default: the largest training label + 1].
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum YesNo {
    Yes,
    No,
}

impl DataArgs {
    /// Reads the data; `require_labels` refuses rows without.
    pub fn load(&self, require_labels: bool) -> Result<Split> {
        self.load_from(&self.data, require_labels)
    }

    /// Reads rows that need no labels, in the same way.
    pub fn load_transfer(&self, path: &std::path::Path) -> Result<Dataset> {
        Ok(self.load_from(path, false)?.train)
    }

    fn load_from(&self, path: &std::path::Path, require_labels: bool) -> Result<Split> {
        if let Some(scale) = self.scale.filter(|s| !s.is_finite() || *s == 0.0) {
            return Err(Error::usage("--scale", "a finite number other than 0", scale.to_string()));
        }
        let options = LoadOptions {
            classes: self.classes,
            scale: self.scale,
            require_labels,
            keys: self.keys.clone().unwrap_or_default(),
            label_column: self.label_column.as_deref().map_or(LabelColumn::Auto, LabelColumn::from),
            header: self.header.map(|h| matches!(h, YesNo::Yes)),
            ..LoadOptions::default()
        };
        crate::data::load(path, &options)
    }

    /// What a network with this normalisation of its own is given: its own, unless --scale says otherwise
    /// or it has none.
    pub fn normalisation(&self, own: Option<&Normalisation>, data: &Dataset) -> Normalisation {
        match own {
            Some(own) if self.scale.is_none() => own.clone(),
            _ => data.normalisation.clone(),
        }
    }
}

/// What training adds: which labels are seen, and the inputs' statistics.
#[derive(Args)]
#[command(next_help_heading = "Data")]
pub struct TrainRowsArgs {
    /// Mean 0 and standard deviation 1 per feature, over the training rows; stored with the model.
    #[arg(long)]
    standardise: bool,
    /// Keep this share of the training labels, evenly over the classes.
    #[arg(long, value_name = "SHARE", conflicts_with = "labels_per_class")]
    label_fraction: Option<f64>,
    /// Keep this many training labels of each class.
    #[arg(long, value_name = "N")]
    labels_per_class: Option<usize>,
    /// Device memory that the rows may take, and logits from disk as much again, such as 512MiB; more are
    /// streamed [default: what there is].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub device_memory: Option<u64>,
}

/// `1048576`, `64KiB`, `512MiB`, `2GiB`, or with kB, MB, GB.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let number = number.trim().parse::<u64>().map_err(|_| "a number of bytes such as 512MiB".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "fewer than 2^64 bytes".to_owned())
}

impl TrainRowsArgs {
    /// The training rows that keep their labels, if few were asked for.
    fn kept(&self, train: &Dataset, seed: u64) -> Result<Option<Vec<u32>>> {
        let Some(labels) = &train.labels else { return Ok(None) };
        match (self.labels_per_class, self.label_fraction) {
            (Some(0), _) => Err(Error::usage("--labels-per-class", "at least 1", "0")),
            (Some(n), _) => split::labels_per_class(labels, n, seed).map(Some),
            (None, Some(share)) => split::label_fraction(labels, share, seed).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// For training on labels alone: rows without one are left out.
    pub fn labelled_only(&self, mut split: Split, seed: u64) -> Result<Split> {
        let kept = match self.kept(&split.train, seed)? {
            Some(kept) => Some(kept),
            None => split.train.labels.as_ref().and_then(|labels| {
                let known = |i: &u32| labels[*i as usize] != crate::data::UNLABELLED;
                let rows: Vec<u32> = (0..labels.len() as u32).filter(known).collect();
                (rows.len() < labels.len()).then_some(rows)
            }),
        };
        if let Some(kept) = kept {
            split.train = split.train.select(&kept);
        }
        Ok(split)
    }

    /// For distillation: rows stay, labels go.
    pub fn hide_labels(&self, mut split: Split, seed: u64) -> Result<Split> {
        if let Some(kept) = self.kept(&split.train, seed)? {
            split.train = split.train.keep_labels(&kept);
        }
        Ok(split)
    }

    /// Gives all parts the normalisation of the run: the training rows' statistics, else that of the
    /// network it starts from, else the data's own.
    pub fn normalise(&self, data: &DataArgs, split: &mut Split, start: Option<&Normalisation>) -> Result<()> {
        let n = match self.standardise {
            true => Normalisation::standardised(&split.train)?,
            false => data.normalisation(start, &split.train),
        };
        n.check(split.train.features())?;
        for part in [Some(&mut split.train), split.validation.as_mut(), split.test.as_mut()] {
            part.into_iter().for_each(|p| p.normalisation = n.clone());
        }
        Ok(())
    }
}

/// What distillation adds: the rows that only the teacher's soft targets use.
#[derive(Args)]
#[command(next_help_heading = "Data")]
pub struct TransferArgs {
    /// More rows, used without labels: only the teacher's soft targets teach from them.
    #[arg(long, value_name = "PATH")]
    transfer: Option<PathBuf>,
    /// Leave the training rows of these classes out, such as 3,7: the student knows them from soft targets only.
    #[arg(long, value_name = "CLASSES", value_delimiter = ',')]
    drop_classes: Vec<u32>,
}

impl TransferArgs {
    /// Reads the transfer set.
    pub fn load(&self, data: &DataArgs) -> Result<Option<Dataset>> {
        self.transfer.as_ref().map(|path| data.load_transfer(path)).transpose()
    }

    /// Leaves classes out and adds the transfer set behind the training rows, of which `loaded` were read.
    pub fn apply(&self, mut split: Split, more: Option<Dataset>, loaded: usize) -> Result<Split> {
        split.train = self.drop(split.train)?;
        if let Some(more) = more {
            split.train = split.train.with_unlabelled(self.drop(more)?, loaded)?;
        }
        Ok(split)
    }

    fn drop(&self, rows: Dataset) -> Result<Dataset> {
        let Some(labels) = rows.labels.as_ref().filter(|_| !self.drop_classes.is_empty()) else {
            return Ok(rows);
        };
        if let Some(class) = self.drop_classes.iter().find(|c| **c as usize >= rows.classes) {
            return Err(Error::usage(
                "--drop-classes",
                format!("classes below {}", rows.classes),
                class.to_string(),
            ));
        }
        let left = split::drop_classes(labels, &self.drop_classes);
        if left.is_empty() {
            return Err(Error::usage("--drop-classes", "a class that stays", "all of them"));
        }
        Ok(rows.select(&left))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_have_units() {
        for (text, value) in [("17", 17), ("64KiB", 65536), ("2 GiB", 2 << 30), ("3MB", 3_000_000), ("5B", 5)]
        {
            assert_eq!(super::bytes(text), Ok(value), "{text}");
        }
        for text in ["", "x", "-1", "1.5GiB", "GiB", "99999999999GiB"] {
            assert!(super::bytes(text).is_err(), "{text}");
        }
    }
}
