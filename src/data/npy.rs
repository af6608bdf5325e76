//! NumPy's .npy (<https://numpy.org/neps/nep-0001-npy-format.html>), versions 1 to 3: a magic, a length, a
//! Python dictionary with `descr`, `fortran_order` and `shape`, then the values. Plain numbers only: no
//! objects (they are pickles), no records.

use std::io::{Read, Write};
use std::path::Path;

use super::Split;
use super::array::{Array, ElementType, Header};
use super::load::LoadOptions;
use super::named::{Keys, Store, assemble, has_training_rows};
use super::read::{self, SourceFile};
use crate::error::{Error, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Reads the header.
pub(crate) fn read_header(reader: &mut dyn Read, path: &Path) -> Result<Header> {
    let mut start = [0; 8];
    read::fill(reader, &mut start, path, "byte 0, magic")?;
    let (length, before) = match start {
        [m @ .., 1, 0] if m == *MAGIC => {
            let mut n = [0; 2];
            read::fill(reader, &mut n, path, "header length")?;
            (u32::from(u16::from_le_bytes(n)), 10)
        }
        [m @ .., 2 | 3, 0] if m == *MAGIC => {
            let mut n = [0; 4];
            read::fill(reader, &mut n, path, "header length")?;
            (u32::from_le_bytes(n), 12)
        }
        _ => {
            return Err(Error::data(
                path,
                "byte 0, magic",
                "\\x93NUMPY and version 1.0, 2.0 or 3.0",
                format!("{}", start.escape_ascii()),
            ));
        }
    };
    // The longest header of plain numbers is about a hundred bytes.
    if length > 1 << 16 {
        return Err(Error::data(path, "header length", "at most 65536", length.to_string()));
    }
    let mut text = vec![0; length as usize];
    read::fill(reader, &mut text, path, "header")?;
    let text = String::from_utf8_lossy(&text);
    let (kind, big_endian, fortran, shape) = parse_dictionary(&text).map_err(|expected| {
        let error = Error::data(path, "header", expected, text.trim().chars().take(200).collect::<String>());
        if text.contains("'|O") {
            error.with_hint("an array of Python objects is a pickle: save numbers, e.g. x.astype('float32')")
        } else {
            error
        }
    })?;
    Ok(Header { kind, shape, big_endian, fortran, length: before + u64::from(length) })
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, keys in any order; or what was expected.
fn parse_dictionary(text: &str) -> std::result::Result<(ElementType, bool, bool, Vec<usize>), String> {
    let mut rest = Cursor(text.trim());
    let (mut kind, mut fortran, mut shape) = (None, None, None);
    rest.expect("{")?;
    while !rest.eat("}") {
        let key = rest.string()?;
        rest.expect(":")?;
        match key {
            "descr" if kind.is_none() => kind = Some(element_type(rest.string()?)?),
            "fortran_order" if fortran.is_none() => {
                fortran = Some(rest.eat("True"));
                if fortran == Some(false) {
                    rest.expect("False")?;
                }
            }
            "shape" if shape.is_none() => shape = Some(rest.tuple()?),
            _ => return Err("the keys descr, fortran_order and shape, once each".to_owned()),
        }
        if !rest.eat(",") {
            rest.expect("}")?;
            break;
        }
    }
    match (kind, fortran, shape, rest.0) {
        (Some((kind, big_endian)), Some(fortran), Some(shape), "") => Ok((kind, big_endian, fortran, shape)),
        _ => Err("one dictionary with descr, fortran_order and shape".to_owned()),
    }
}

/// Element type and whether it is big-endian.
fn element_type(descr: &str) -> std::result::Result<(ElementType, bool), String> {
    let kind = match descr.get(1..) {
        Some("b1") => ElementType::Bool,
        Some("u1") => ElementType::U8,
        Some("i1") => ElementType::I8,
        Some("u2") => ElementType::U16,
        Some("i2") => ElementType::I16,
        Some("u4") => ElementType::U32,
        Some("i4") => ElementType::I32,
        Some("u8") => ElementType::U64,
        Some("i8") => ElementType::I64,
        Some("f2") => ElementType::F16,
        Some("f4") => ElementType::F32,
        Some("f8") => ElementType::F64,
        _ => return Err("a descr of plain numbers: b1, u1 to u8, i1 to i8, f2, f4, f8".to_owned()),
    };
    match (descr.as_bytes()[0], kind.size()) {
        (b'<', _) | (b'|', 1) => Ok((kind, false)),
        (b'>', _) => Ok((kind, true)),
        _ => Err("a byte order, < or >".to_owned()),
    }
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// Takes `token` and the blanks after it, if it is next.
    fn eat(&mut self, token: &str) -> bool {
        match self.0.strip_prefix(token) {
            Some(rest) => {
                self.0 = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> std::result::Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(format!("`{token}` before `{:.20}`", self.0)) }
    }

    fn string(&mut self) -> std::result::Result<&'a str, String> {
        for quote in ["'", "\""] {
            if self.eat(quote) {
                let (text, rest) = self.0.split_once(quote).ok_or("a closed string")?;
                self.0 = rest.trim_start();
                return Ok(text);
            }
        }
        Err(format!("a string before `{:.20}`", self.0))
    }

    fn tuple(&mut self) -> std::result::Result<Vec<usize>, String> {
        let mut numbers = Vec::new();
        self.expect("(")?;
        while !self.eat(")") {
            let digits = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
            let (number, rest) = self.0.split_at(digits);
            numbers.push(number.parse().map_err(|_| format!("a size before `{:.20}`", self.0))?);
            self.0 = rest.trim_start();
            // Python 2 wrote long integers so.
            self.eat("L");
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(numbers)
    }
}

/// The header of a C-order, little-endian array, padded so that the values begin at a multiple of 64 bytes.
///
/// # Panics
/// For [`ElementType::Bf16`], which NumPy does not have.
pub fn header(kind: ElementType, shape: &[usize]) -> Vec<u8> {
    let descr = match kind {
        ElementType::Bool => "|b1",
        ElementType::U8 => "|u1",
        ElementType::I8 => "|i1",
        ElementType::U16 => "<u2",
        ElementType::I16 => "<i2",
        ElementType::U32 => "<u4",
        ElementType::I32 => "<i4",
        ElementType::U64 => "<u8",
        ElementType::I64 => "<i8",
        ElementType::F16 => "<f2",
        ElementType::F32 => "<f4",
        ElementType::F64 => "<f8",
        ElementType::Bf16 => panic!("NumPy has no bf16"),
    };
    let shape: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Writes `values` of `shape`, C order, as `<f4`. The file appears whole or not at all.
pub fn write_f32(path: impl AsRef<Path>, shape: &[usize], values: &[f32]) -> Result<()> {
    let path = path.as_ref();
    assert_eq!(values.len(), shape.iter().product::<usize>(), "values of this shape");
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&header(ElementType::F32, shape))?;
        for chunk in values.chunks(1 << 14) {
            file.write_all(&super::little_endian(chunk))?;
        }
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|e| Error::io("write", path, e))
}

/// Some of a folder's .npy files, by stem.
struct Folder<'a> {
    path: &'a Path,
    names: Vec<String>,
}

impl Store for Folder<'_> {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn open(&mut self, name: &str, resident_limit: u64) -> Result<(Array, SourceFile)> {
        Array::open(&self.path.join(format!("{name}.npy")), resident_limit, read_header)
    }
}

fn stems(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut stems: Vec<String> =
        names.filter_map(|name| Some(name.strip_suffix(".npy")?.to_owned())).collect();
    // A folder lists its files in any order; errors name them in one.
    stems.sort_unstable();
    stems
}

/// True if the folder holds training features as .npy.
pub(crate) fn is_folder(folder: &Path, options: &LoadOptions) -> bool {
    has_training_rows(&stems(folder), &options.keys)
}

/// Loads a folder of .npy files.
pub(crate) fn load_folder(folder: &Path, options: &LoadOptions) -> Result<Split> {
    let mut store = Folder { path: folder, names: stems(folder) };
    assemble(folder, &mut store, options)
}

/// Loads the features in `path` and what lies beside it: the labels, named with y for x or labels for
/// images, and, where the name says train, the parts named test and val in its place.
pub(crate) fn load_file(path: &Path, options: &LoadOptions) -> Result<Split> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let there = stems(folder);
    let mut names = vec![stem.clone()];
    let mut pair = |x: Option<String>| -> [String; 2] {
        let Some(x) = x.filter(|x| there.contains(x)) else {
            return Default::default();
        };
        let y = label_names(&x).into_iter().find(|name| there.contains(name));
        names.extend([x.clone()].into_iter().chain(y.clone()));
        [x, y.unwrap_or_default()]
    };
    let part = |word: &str| stem.contains("train").then(|| stem.replacen("train", word, 1));
    let [_, y_train] = pair(Some(stem.clone()));
    let [x_test, y_test] = pair(part("test"));
    let [x_validation, y_validation] = pair(part("val"));
    if y_train.is_empty() && options.require_labels {
        let wanted: Vec<_> = label_names(&stem).iter().map(|name| format!("{name}.npy")).collect();
        return Err(Error::data(
            path,
            "labels",
            format!("{} in the same folder", wanted.join(" or ")),
            "no such file",
        ));
    }
    let options = LoadOptions {
        keys: Keys { x_train: stem.clone(), y_train, x_test, y_test, x_validation, y_validation },
        ..options.clone()
    };
    names.dedup();
    assemble(path, &mut Folder { path: folder, names }, &options)
}

/// Names for the labels of features named `x`.
fn label_names(x: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (from, to) in [("images", "labels"), ("features", "labels"), ("data", "labels")] {
        if x.contains(from) {
            names.push(x.replacen(from, to, 1));
        }
    }
    for (from, tos) in [('x', ["y"].as_slice()), ('X', ["y", "Y"].as_slice())] {
        for to in tos {
            names.extend(x.strip_prefix(from).map(|rest| format!("{to}{rest}")));
            names.extend(x.strip_suffix(from).map(|rest| format!("{rest}{to}")));
        }
    }
    names.extend([format!("{x}_labels"), format!("{x}_y")]);
    names
}
