//! The common form of every array a file holds: element type, shape, byte order, bytes. Readers make
//! [`Array`]s; this file makes rows and labels of them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};

use super::file_rows::FileRows;
use super::read::{self, SourceFile};
use super::{Elements, UNLABELLED};
use crate::error::{Error, Result};

/// The element types that files may store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ElementType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl ElementType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Calls `f` with each element as f64, which holds all but 64-bit integers beyond 2^53 exactly.
    pub(crate) fn each(self, big_endian: bool, bytes: &[u8], mut f: impl FnMut(f64)) {
        macro_rules! each {
            ($t:ty, $to:expr) => {
                for &word in bytes.as_chunks::<{ size_of::<$t>() }>().0 {
                    let mut word = word;
                    if big_endian {
                        word.reverse();
                    }
                    f($to(<$t>::from_le_bytes(word)));
                }
            };
        }
        match self {
            Self::Bool => each!(u8, |v| f64::from(u8::from(v != 0))),
            Self::U8 => each!(u8, f64::from),
            Self::I8 => each!(i8, f64::from),
            Self::U16 => each!(u16, f64::from),
            Self::I16 => each!(i16, f64::from),
            Self::U32 => each!(u32, f64::from),
            Self::I32 => each!(i32, f64::from),
            Self::U64 => each!(u64, |v| v as f64),
            Self::I64 => each!(i64, |v| v as f64),
            Self::F16 => each!(f16, f64::from),
            Self::Bf16 => each!(bf16, f64::from),
            Self::F32 => each!(f32, f64::from),
            Self::F64 => each!(f64, |v| v),
        }
    }

    /// Decodes into `out` and gives the place and value of the first element that is no finite f32.
    pub(crate) fn decode(self, big_endian: bool, bytes: &[u8], out: &mut [f32]) -> Option<(usize, f64)> {
        let (mut i, mut bad) = (0, None);
        self.each(big_endian, bytes, |v| {
            out[i] = v as f32;
            if !out[i].is_finite() && bad.is_none() {
                bad = Some((i, v));
            }
            i += 1;
        });
        bad
    }
}

/// What a header says about the bytes behind it.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) kind: ElementType,
    pub(crate) shape: Vec<usize>,
    pub(crate) big_endian: bool,
    /// First index fastest.
    pub(crate) fortran: bool,
    /// Bytes of the header itself.
    pub(crate) length: u64,
}

impl Header {
    /// Bytes of the values, or `None` where that overflows.
    pub(crate) fn promised(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.kind.size() as u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
    }

    fn describe(&self) -> String {
        format!("{:?} {:?}", self.kind, self.shape)
    }
}

/// Parses a header of some format.
pub(crate) type ReadHeader = fn(&mut dyn Read, &Path) -> Result<Header>;

/// An array as stored.
#[derive(Debug)]
pub(crate) struct Array {
    pub(crate) path: PathBuf,
    /// The array's place in the file, empty or ending in ": ".
    pub(crate) at: String,
    pub(crate) header: Header,
    pub(crate) bytes: Bytes,
}

/// Where an array's bytes are.
#[derive(Debug)]
pub(crate) enum Bytes {
    Memory(Vec<u8>),
    File(Arc<File>),
}

impl Array {
    /// Reads header and values from `reader`, which holds at most `most` bytes and nothing else.
    pub(crate) fn parse(
        reader: &mut dyn Read,
        most: u64,
        path: &Path,
        at: &str,
        read_header: ReadHeader,
    ) -> Result<Self> {
        let header = read_header(reader, path)?;
        let promised = header.promised().unwrap_or(u64::MAX);
        let most = most.saturating_sub(header.length);
        let bytes = read::payload(reader, promised, most, path, at, &header.describe())?;
        Ok(Self { path: path.to_owned(), at: at.to_owned(), header, bytes: Bytes::Memory(bytes) })
    }

    /// Reads a file that is one array. One that is not compressed and larger than `resident_limit` bytes
    /// stays where it is.
    pub(crate) fn open(
        path: &Path,
        resident_limit: u64,
        read_header: ReadHeader,
    ) -> Result<(Self, SourceFile)> {
        let (mut file, len) = read::open(path)?;
        let mut magic = [0; 2];
        if len <= resident_limit || (file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b]) {
            return read::parse_file(path, |reader, most| Self::parse(reader, most, path, "", read_header));
        }
        let (file, _) = read::open(path)?;
        let header = read_header(&mut std::io::BufReader::new(&file), path)?;
        let found = len - header.length.min(len);
        if header.promised() != Some(found) {
            let promised = header.promised().map_or("more than 2^64".to_owned(), |n| n.to_string());
            return Err(Error::data(
                path,
                "values",
                format!("{promised} bytes for {}", header.describe()),
                format!("{found} bytes"),
            )
            .with_hint("the file is truncated or corrupt: fetch it again"));
        }
        if header.fortran && header.shape.len() > 1 {
            return Err(Error::data(
                path,
                "header",
                format!(
                    "C order: a file beyond the resident limit of {resident_limit} bytes is read row by row"
                ),
                "Fortran order",
            )
            .with_hint("in Python: np.save(path, np.ascontiguousarray(np.load(path, mmap_mode='r')))"));
        }
        let array =
            Self { path: path.to_owned(), at: String::new(), header, bytes: Bytes::File(Arc::new(file)) };
        let source = SourceFile { path: path.to_owned(), sha256: None };
        Ok((array, source))
    }

    fn error(&self, at: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::data(&self.path, format!("{}{at}", self.at), expected, found)
    }

    /// The first dimension counts rows, the others are one row's shape (`[1]` where there are none).
    pub(crate) fn into_rows(self) -> Result<(Elements, Vec<usize>)> {
        let shape = &self.header.shape;
        let (Some(&rows), example) = (shape.first(), shape.get(1..).unwrap_or_default()) else {
            return Err(self.error("shape", "[rows, features…]", "a single number"));
        };
        let example = if example.is_empty() { vec![1] } else { example.to_vec() };
        // Before any product: beside a zero, the other dimensions are bounded by nothing.
        if shape.contains(&0) {
            return Err(self.error("shape", "at least one row and one feature", format!("{shape:?}")));
        }
        let features: usize = example.iter().product();
        let (kind, big_endian) = (self.header.kind, self.header.big_endian);
        let bytes = match &self.bytes {
            Bytes::Memory(bytes) => bytes,
            Bytes::File(file) => {
                let offset = self.header.length;
                let file = FileRows::new(file.clone(), self.path, offset, kind, big_endian, features, rows);
                return Ok((Elements::File(file), example));
            }
        };
        let order = (self.header.fortran && shape.len() > 1).then(|| fortran_offsets(&example));
        if kind == ElementType::U8 {
            let x = match (order, self.bytes) {
                (Some(order), Bytes::Memory(bytes)) => transpose(&bytes, rows, &order),
                (None, Bytes::Memory(bytes)) => bytes,
                (_, Bytes::File(_)) => unreachable!("returned above"),
            };
            return Ok((Elements::U8(x), example));
        }
        let mut x = vec![0.0; rows * features];
        let bad = kind.decode(big_endian, bytes, &mut x);
        if let Some((i, value)) = bad {
            let (row, feature) = match order {
                None => (i / features, format!("feature {}", i % features)),
                Some(_) => (i % rows, "a feature".to_owned()),
            };
            return Err(self.error(&format!("row {row}, {feature}"), "a finite f32", value.to_string()));
        }
        if let Some(order) = order {
            x = transpose(&x, rows, &order);
        }
        Ok((Elements::F32(x), example))
    }

    /// `[rows]` or `[rows, 1]` whole numbers; -1 in a signed type means [`UNLABELLED`].
    pub(crate) fn into_labels(self) -> Result<Vec<u32>> {
        let shape = &self.header.shape;
        if !matches!(shape[..], [_] | [_, 1]) {
            let error = self.error("labels", "one number per row, shape [rows]", format!("shape {shape:?}"));
            return Err(if shape.len() == 2 {
                error.with_hint("one-hot labels or scores? In Python: y = y.argmax(axis=1)")
            } else {
                error
            });
        }
        let Bytes::Memory(bytes) = &self.bytes else {
            unreachable!("labels are opened without a resident limit")
        };
        let mut labels = Vec::with_capacity(bytes.len() / self.header.kind.size());
        let mut bad = None;
        self.header.kind.each(self.header.big_endian, bytes, |v| {
            let label = if v >= 0.0 && v < f64::from(UNLABELLED) { v as u32 } else { UNLABELLED };
            #[allow(clippy::float_cmp, reason = "a label is a whole number exactly or not at all")]
            let whole = v == f64::from(label) || v == -1.0;
            if !whole && bad.is_none() {
                bad = Some((labels.len(), v));
            }
            labels.push(label);
        });
        match bad {
            None => Ok(labels),
            Some((row, v)) => Err(self.error(
                &format!("label of row {row}"),
                "a whole number from 0, or -1 for none",
                v.to_string(),
            )),
        }
    }
}

/// For each of a row's values in C order, its place in Fortran order among the row's values.
fn fortran_offsets(shape: &[usize]) -> Vec<usize> {
    let n = shape.iter().product();
    (0..n)
        .map(|flat| {
            let (mut rest, mut c_stride, mut f_stride, mut at) = (flat, n, 1, 0);
            for &d in shape {
                c_stride /= d;
                at += rest / c_stride * f_stride;
                rest %= c_stride;
                f_stride *= d;
            }
            at
        })
        .collect()
}

/// Row-major copy of an array whose rows index runs fastest.
fn transpose<T: Copy>(from: &[T], rows: usize, order: &[usize]) -> Vec<T> {
    (0..rows).flat_map(|row| order.iter().map(move |&at| from[row + rows * at])).collect()
}
