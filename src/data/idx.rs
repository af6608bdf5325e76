//! IDX, the format of MNIST, EMNIST and Fashion-MNIST (<http://yann.lecun.com/exdb/mnist>): two zero bytes,
//! an element type, the number of dimensions, each dimension as a big-endian u32, then the values, big-endian.
//!
//! A set is a folder of files named `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with
//! `t10k` or `test`; a prefix as in `emnist-letters-train-images-idx3-ubyte`, a dot for the second hyphen
//! and `.gz` are understood.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Split;
use super::array::{Array, ElementType, Header};
use super::load::{LoadOptions, dataset};
use super::read::{self, SourceFile};
use crate::error::{Error, Result};

/// Reads the header.
pub(crate) fn read_header(reader: &mut dyn Read, path: &Path) -> Result<Header> {
    let mut magic = [0; 4];
    read::fill(reader, &mut magic, path, "byte 0, magic number")?;
    let kind = match magic[2] {
        0x08 => Some(ElementType::U8),
        0x09 => Some(ElementType::I8),
        0x0b => Some(ElementType::I16),
        0x0c => Some(ElementType::I32),
        0x0d => Some(ElementType::F32),
        0x0e => Some(ElementType::F64),
        _ => None,
    };
    let (Some(kind), [0, 0, _, dimensions @ 1..=8]) = (kind, magic) else {
        let error = Error::data(
            path,
            "byte 0, magic number",
            "00 00, an element type (08 u8, 09 i8, 0b i16, 0c i32, 0d f32, 0e f64), 1 to 8 dimensions",
            format!("{:02x} {:02x} {:02x} {:02x}", magic[0], magic[1], magic[2], magic[3]),
        );
        return Err(match magic[0] {
            b'<' => error.with_hint("this looks like a web page saved in place of the file: fetch it again"),
            b'P' if magic[1] == b'K' => error.with_hint("this is a zip archive: unpack it first"),
            _ => error.with_hint("is this an IDX file?"),
        });
    };
    let mut shape = Vec::new();
    for d in 0..dimensions {
        let mut size = [0; 4];
        read::fill(reader, &mut size, path, &format!("dimension {d}"))?;
        shape.push(u32::from_be_bytes(size) as usize);
    }
    Ok(Header { kind, shape, big_endian: true, fortran: false, length: 4 + 4 * u64::from(dimensions) })
}

/// What a file's name says it is.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    prefix: String,
    test: bool,
    labels: bool,
}

/// `[prefix-](train|t10k|test)-(images|labels)(-|.)idxN-type[.gz]`
fn parse_name(name: &str) -> Option<Name> {
    let stem = name.strip_suffix(".gz").unwrap_or(name);
    for (word, labels) in [("-images", false), ("-labels", true)] {
        let Some((head, tail)) = stem.split_once(word) else {
            continue;
        };
        if !(tail.starts_with("-idx") || tail.starts_with(".idx")) {
            continue;
        }
        for (part, test) in [("train", false), ("t10k", true), ("test", true)] {
            if let Some(prefix) = head.strip_suffix(part)
                && (prefix.is_empty() || prefix.ends_with(['-', '_']))
            {
                return Some(Name { prefix: prefix.to_owned(), test, labels });
            }
        }
    }
    None
}

/// True if the file's name is one of a set's.
pub(crate) fn is_name(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).and_then(parse_name).is_some()
}

/// The four files of one set; index: 2 * test + labels.
type Files = [Option<PathBuf>; 4];

/// The IDX sets in a folder, by prefix. Of a file and its `.gz` twin the unpacked one is taken.
fn sets_in(folder: &Path) -> Result<BTreeMap<String, Files>> {
    let mut sets: BTreeMap<String, Files> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        if let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(parse_name) {
            let files = sets.entry(name.prefix).or_default();
            let slot = &mut files[2 * usize::from(name.test) + usize::from(name.labels)];
            if slot.is_none() || path.extension().is_none_or(|e| e != "gz") {
                *slot = Some(path);
            }
        }
    }
    Ok(sets)
}

/// True if the folder holds a file named like one of a set's.
pub(crate) fn is_folder(folder: &Path) -> Result<bool> {
    Ok(!sets_in(folder)?.is_empty())
}

/// Loads the set in `path`, a folder with one set, or the set that the file `path` belongs to.
pub(crate) fn load(path: &Path, options: &LoadOptions) -> Result<Split> {
    let (folder, wanted) = if path.is_dir() {
        (path, None)
    } else {
        let name = path.file_name().and_then(|n| n.to_str()).and_then(parse_name);
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        (parent.unwrap_or(Path::new(".")), name.map(|name| name.prefix))
    };
    let mut sets = sets_in(folder)?;
    if let Some(prefix) = &wanted {
        sets.retain(|have, _| have == prefix);
    }
    if sets.len() > 1 {
        let found: Vec<_> = sets.keys().map(|prefix| format!("`{prefix}`")).collect();
        return Err(Error::data(
            folder,
            "folder",
            "the files of one set",
            format!("sets with the prefixes {}", found.join(", ")),
        )
        .with_hint("name the set's train-images file instead of its folder"));
    }
    let (prefix, files) = sets.pop_first().unwrap_or_else(|| (wanted.unwrap_or_default(), Files::default()));
    let [train_x, train_y, test_x, test_y] = files;
    let read = |part, x, y, classes| {
        let x = open(folder, &prefix, part, "images-idx3-ubyte", x, options.resident_limit)?;
        // Labels are read where they are, and missed only where they are needed.
        let y = match y {
            None if !options.require_labels => None,
            y => Some(open(folder, &prefix, part, "labels-idx1-ubyte", y, u64::MAX)?),
        };
        dataset(x, y, classes, options)
    };
    let train = read("train", train_x, train_y, options.classes)?;
    let test = if test_x.is_none() && test_y.is_none() {
        None
    } else {
        Some(read("t10k", test_x, test_y, train.class_bound()?)?)
    };
    Split::new(train, None, test)
}

fn open(
    folder: &Path,
    prefix: &str,
    part: &str,
    what: &str,
    path: Option<PathBuf>,
    resident_limit: u64,
) -> Result<(Array, SourceFile)> {
    let path = path.ok_or_else(|| {
        let test = if part == "t10k" { format!(", or {prefix}test-{what}[.gz]") } else { String::new() };
        Error::data(folder, "folder", format!("{prefix}{part}-{what}[.gz]{test}"), "no such file").with_hint(
            "a set is train-images, train-labels, t10k-images and t10k-labels, named as MNIST ships them",
        )
    })?;
    Array::open(&path, resident_limit, read_header)
}
