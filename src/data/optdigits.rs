//! The embedded set: UCI's "Optical Recognition of Handwritten Digits", see `data/optdigits/ATTRIBUTION.md`.

use std::path::Path;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::array::Array;
use super::read::{self, MAX_DEFLATE_RATIO, SourceFile};
use super::{Dataset, Split, idx};
use crate::error::Result;

macro_rules! file {
    ($name:literal) => {
        (concat!("optdigits/", $name), include_bytes!(concat!("../../data/optdigits/", $name)).as_slice())
    };
}

/// What the set's licence asks to be said wherever it is used.
pub const OPTDIGITS_ATTRIBUTION: &str = "\"Optical Recognition of Handwritten Digits\" by E. Alpaydin and C. Kaynak (1998), \
UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0. \
Changes: converted from CSV to IDX; values unchanged.";

/// 3823 training and 1797 test images of 8x8 values 0..=16 (`scale` is 1/16), ten classes; no file is read.
/// The test writers are not among the training writers.
pub fn optdigits() -> Result<Split> {
    let train =
        part(file!("optdigits-train-images-idx3-ubyte.gz"), file!("optdigits-train-labels-idx1-ubyte.gz"))?;
    let test =
        part(file!("optdigits-test-images-idx3-ubyte.gz"), file!("optdigits-test-labels-idx1-ubyte.gz"))?;
    Split::new(train, None, Some(test))
}

fn part(images: (&str, &[u8]), labels: (&str, &[u8])) -> Result<Dataset> {
    let array = |(name, gz): (&str, &[u8])| {
        let most = gz.len() as u64 * MAX_DEFLATE_RATIO;
        Array::parse(&mut MultiGzDecoder::new(gz), most, Path::new(name), "", idx::read_header)
    };
    let source = |(name, gz): (&str, &[u8])| SourceFile {
        path: name.into(),
        sha256: Some(read::hex(&Sha256::digest(gz))),
    };
    let (x, shape) = array(images)?.into_rows()?;
    let labels_read = array(labels)?.into_labels()?;
    let mut set = Dataset::new(images.0, x, shape, Some(labels_read), Some(10))?;
    set.normalisation.scale = 1.0 / 16.0;
    set.source = vec![source(images), source(labels)];
    Ok(set)
}
