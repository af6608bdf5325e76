//! Tables: comma, semicolon or tab separated, one row per line, all columns but the label's are numbers.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::Path;

use super::load::LoadOptions;
use super::read::{self, SourceFile};
use super::{Dataset, Elements, Split, UNLABELLED};
use crate::error::{Error, Result};

/// Which column of a table is the label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LabelColumn {
    /// The column the header calls label, class, target or y, in any case; else the last.
    #[default]
    Auto,
    /// By its name in the header.
    Name(String),
    /// By its place from 0; negative from the end, -1 is the last.
    Index(isize),
    /// No column: all are features.
    None,
}

impl From<&str> for LabelColumn {
    /// A whole number is an index, everything else a name.
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Index)
    }
}

/// A table as read; labels are still text.
struct Table {
    x: Vec<f32>,
    columns: usize,
    labels: Option<Texts>,
    source: SourceFile,
}

/// One text per row, each different one kept once.
#[derive(Default)]
struct Texts {
    /// Which of `different` each row has.
    rows: Vec<u32>,
    /// The texts and the line that has each first.
    different: Vec<(String, u64)>,
    ids: HashMap<String, u32>,
}

impl Texts {
    fn push(&mut self, text: Cow<str>, line: u64) {
        let id = self.ids.get(text.as_ref()).copied().unwrap_or_else(|| {
            let id = self.different.len() as u32;
            self.different.push((text.clone().into_owned(), line));
            self.ids.insert(text.into_owned(), id);
            id
        });
        self.rows.push(id);
    }
}

/// Loads one table as training rows.
pub(crate) fn load_file(path: &Path, options: &LoadOptions) -> Result<Split> {
    let table = read_table(path, options)?;
    let names = class_names(&table);
    Split::new(dataset(path, table, &names, options.classes, options)?, None, None)
}

/// Loads `train.csv` and, where they are there, `validation.csv` and `test.csv`.
pub(crate) fn load_folder(folder: &Path, options: &LoadOptions) -> Result<Split> {
    let path = folder.join("train.csv");
    let table = read_table(&path, options)?;
    let names = class_names(&table);
    let train = dataset(&path, table, &names, options.classes, options)?;
    let bound = train.class_bound()?;
    let other = |name: &str| {
        let path = folder.join(name);
        path.is_file()
            .then(|| dataset(&path, read_table(&path, options)?, &names, bound, options))
            .transpose()
    };
    let (validation, test) = (other("validation.csv")?, other("test.csv")?);
    Split::new(train, validation, test)
}

fn read_table(path: &Path, options: &LoadOptions) -> Result<Table> {
    let (text, source) = read::parse_file(path, |reader, most| {
        let mut text = Vec::new();
        reader.take(most).read_to_end(&mut text).map_err(|e| read::broken(path, "file", e))?;
        Ok(text)
    })?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let mut records = csv::ReaderBuilder::new()
        .has_headers(false)
        .delimiter(delimiter(text))
        .trim(csv::Trim::All)
        .from_reader(text)
        .into_byte_records()
        .map(|record| record.map_err(|e| broken(path, &e)))
        .peekable();
    let Some(first) = records.next().transpose()? else {
        return Err(Error::data(path, "file", "at least one row", "an empty file"));
    };
    let second = match records.peek() {
        Some(Ok(record)) => Some(record),
        _ => None,
    };
    let named = matches!(options.label_column, LabelColumn::Name(_));
    let has_header = options.header.unwrap_or_else(|| named || differs(&first, second));
    let header: Option<Vec<String>> =
        has_header.then(|| first.iter().map(|field| String::from_utf8_lossy(field).into_owned()).collect());
    let label = label_column(path, &options.label_column, header.as_deref(), first.len())?;
    let columns = first.len() - usize::from(label.is_some());
    let mut table = Table { x: Vec::new(), columns, labels: label.map(|_| Texts::default()), source };
    for record in (!has_header).then_some(Ok(first)).into_iter().chain(records) {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        for (column, field) in record.iter().enumerate() {
            if Some(column) == label {
                table.labels.iter_mut().for_each(|labels| labels.push(String::from_utf8_lossy(field), line));
                continue;
            }
            match number(field) {
                Some(v) => table.x.push(v),
                None => {
                    let name =
                        header.as_ref().map_or(String::new(), |names| format!(" (`{:.60}`)", names[column]));
                    return Err(Error::data(
                        path,
                        format!("line {line}, column {column}{name}"),
                        "a finite number",
                        format!("`{:.60}`", String::from_utf8_lossy(field)),
                    )
                    .with_hint("columns count from 0; text may stand in the label column only"));
                }
            }
        }
    }
    Ok(table)
}

/// A finite f32.
fn number(field: &[u8]) -> Option<f32> {
    let v: f32 = std::str::from_utf8(field).ok()?.parse().ok()?;
    v.is_finite().then_some(v)
}

/// The first line names the columns if somewhere it has text over a number, or, alone, any text at all but
/// in its last column. What stands for a missing value is no text: such a row must be seen and refused.
fn differs(first: &csv::ByteRecord, second: Option<&csv::ByteRecord>) -> bool {
    let text = |field: &[u8]| {
        let field = String::from_utf8_lossy(field).to_lowercase();
        field.parse::<f64>().is_err() && !["", "?", "na", "n/a", "none", "null"].contains(&field.as_str())
    };
    match second {
        Some(second) => first.iter().zip(second).any(|(a, b)| text(a) && number(b).is_some()),
        None => first.iter().rev().skip(1).any(text),
    }
}

/// Whichever of comma, semicolon and tab is most frequent in the first line.
fn delimiter(text: &[u8]) -> u8 {
    let line = text.split(|&b| b == b'\n').next().unwrap_or_default();
    let count = |d: u8| line.iter().filter(|&&b| b == d).count();
    // The last of equals wins: a comma where there is none of them.
    *[b'\t', b';', b','].iter().max_by_key(|&&d| count(d)).unwrap_or(&b',')
}

fn label_column(
    path: &Path,
    wanted: &LabelColumn,
    header: Option<&[String]>,
    columns: usize,
) -> Result<Option<usize>> {
    let column = match wanted {
        LabelColumn::None => None,
        LabelColumn::Auto => {
            let usual =
                |name: &String| ["label", "class", "target", "y"].contains(&name.to_lowercase().as_str());
            Some(header.and_then(|names| names.iter().position(usual)).unwrap_or(columns - 1))
        }
        LabelColumn::Name(name) => {
            let names = header.unwrap_or_default();
            Some(names.iter().position(|have| have == name).ok_or_else(|| {
                let names: Vec<String> = names.iter().take(50).map(|name| format!("`{name:.60}`")).collect();
                Error::data(path, "header", format!("a column `{name}`"), names.join(", "))
            })?)
        }
        LabelColumn::Index(i) => {
            let from_end = if *i < 0 { columns as isize + i } else { *i };
            let column = usize::try_from(from_end).ok().filter(|&i| i < columns);
            Some(column.ok_or_else(|| {
                Error::data(path, "label column", format!("one of {columns} columns, from 0"), i.to_string())
            })?)
        }
    };
    if columns == usize::from(column.is_some()) {
        return Err(Error::data(path, "columns", "at least one beside the label's", columns.to_string())
            .with_hint("fields are separated by commas, semicolons or tabs"));
    }
    Ok(column)
}

/// The label as a whole number: `Some(None)` for no label (empty or -1), `None` for text.
fn whole(text: &str) -> Option<Option<u32>> {
    if text.is_empty() {
        return Some(None);
    }
    let v: f64 = text.parse().ok()?;
    #[allow(clippy::float_cmp, reason = "a label is a whole number exactly or not at all")]
    match v {
        -1.0 => Some(None),
        v if v.fract() == 0.0 && v >= 0.0 && v < f64::from(UNLABELLED) => Some(Some(v as u32)),
        _ => None,
    }
}

/// The classes' names, sorted, if any label is not a whole number.
fn class_names(table: &Table) -> Option<Vec<String>> {
    let different = &table.labels.as_ref()?.different;
    if different.iter().all(|(text, _)| whole(text).is_some()) {
        return None;
    }
    let names: BTreeSet<&String> =
        different.iter().map(|(text, _)| text).filter(|text| !text.is_empty()).collect();
    Some(names.into_iter().cloned().collect())
}

fn dataset(
    path: &Path,
    table: Table,
    names: &Option<Vec<String>>,
    classes: Option<usize>,
    options: &LoadOptions,
) -> Result<Dataset> {
    let label = |(text, line): &(String, u64)| {
        let found = match names {
            None => whole(text).map(|label| label.unwrap_or(UNLABELLED)),
            Some(_) if text.is_empty() => Some(UNLABELLED),
            Some(names) => names.binary_search(text).ok().map(|i| i as u32),
        };
        found.ok_or_else(|| {
            let expected = match names {
                None => "a whole number as in the training rows".to_owned(),
                Some(names) => {
                    let some: Vec<_> = names.iter().take(20).map(|name| format!("`{name:.40}`")).collect();
                    format!("a class of the training rows, such as {}", some.join(", "))
                }
            };
            Error::data(path, format!("line {line}, label"), expected, format!("`{text:.60}`"))
        })
    };
    let labels = match &table.labels {
        Some(texts) => {
            let known = texts.different.iter().map(label).collect::<Result<Vec<u32>>>()?;
            Some(texts.rows.iter().map(|&id| known[id as usize]).collect())
        }
        None => None,
    };
    let classes = classes.or_else(|| names.as_ref().map(Vec::len));
    let mut set = Dataset::new(path, Elements::F32(table.x), vec![table.columns], labels, classes)?;
    set.normalisation.scale = options.scale.unwrap_or(set.normalisation.scale);
    set.class_names.clone_from(names);
    set.source = vec![table.source];
    Ok(set)
}

fn broken(path: &Path, e: &csv::Error) -> Error {
    let line = e.position().map_or(0, csv::Position::line);
    match e.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => Error::data(
            path,
            format!("line {line}"),
            format!("{expected_len} fields as in the lines before"),
            len.to_string(),
        ),
        _ => Error::data(path, format!("line {line}"), "a line of fields", e.to_string()),
    }
}
