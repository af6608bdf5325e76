//! `--grid KEY=V1,V2,...`: which settings are swept, and the product of them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Beyond so many students nobody meant it.
const MOST: usize = 100_000;

/// The kind of a key's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    Seed,
    Layers,
}

/// What can be swept: the options of `limbeck distill` of these names.
const KEYS: [(&str, Kind); 13] = [
    ("layers", Kind::Layers),
    ("temperature", Kind::Number),
    ("alpha", Kind::Number),
    ("hard_weight", Kind::Number),
    ("soft_weight", Kind::Number),
    ("label_smoothing", Kind::Number),
    ("loss_beta", Kind::Number),
    ("dkd_alpha", Kind::Number),
    ("dkd_beta", Kind::Number),
    ("virtual_confidence", Kind::Number),
    ("clip", Kind::Number),
    ("lr", Kind::Number),
    ("seed", Kind::Seed),
];

/// One value of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(f64),
    Seed(u64),
    Layers(Vec<usize>),
}

impl Value {
    fn parse(kind: Kind, text: &str) -> std::result::Result<Self, &'static str> {
        match kind {
            Kind::Number => match text.parse::<f64>() {
                // -0 is 0.
                Ok(x) if x.is_finite() => Ok(Self::Number(x + 0.0)),
                _ => Err("a number"),
            },
            Kind::Seed => text.parse().map(Self::Seed).map_err(|_| "a whole number of at least 0"),
            Kind::Layers => {
                let sizes = text.split('-').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>();
                let sizes = sizes.ok().filter(|s| s.len() > 1 && !s.contains(&0));
                sizes.map(Self::Layers).ok_or("layer sizes joined by dashes, such as 784-300-10")
            }
        }
    }
}

/// As it would be given.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(x) => f.write_str(&number_text(*x)),
            Self::Seed(seed) => write!(f, "{seed}"),
            Self::Layers(sizes) => f.write_str(&layers_text(sizes)),
        }
    }
}

impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Number(x) => x.serialize(to),
            Self::Seed(seed) => seed.serialize(to),
            Self::Layers(_) => self.to_string().serialize(to),
        }
    }
}

/// `0.05`, `1e-7`
pub fn number_text(x: f64) -> String {
    match x.abs() < f64::MIN_POSITIVE || (1e-4..1e6).contains(&x.abs()) {
        true => x.to_string(),
        false => format!("{x:e}"),
    }
}

/// `784-300-10`
pub fn layers_text(sizes: &[usize]) -> String {
    sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("-")
}

/// A key and the values that it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    pub key: &'static str,
    pub values: Vec<Value>,
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let names = || KEYS.map(|(name, _)| name).join(", ");
        let Some((given, list)) = text.split_once('=') else {
            return Err(format!("expected KEY=V1,V2,..., KEY one of {}", names()));
        };
        let wanted = given.trim().replace('-', "_");
        let Some((key, kind)) = KEYS.into_iter().find(|(name, _)| *name == wanted) else {
            let near = KEYS.map(|(name, _)| (strsim::jaro_winkler(&wanted, name), name));
            let near = near.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(like, _)| *like > 0.8);
            let near = near.map_or(String::new(), |(_, name)| format!("; did you mean `{name}`?"));
            return Err(format!("no key `{given}`, expected one of {}{near}", names()));
        };
        let mut values = Vec::new();
        for text in list.split(',').map(str::trim) {
            let value = Value::parse(kind, text)
                .map_err(|expected| format!("{key}: expected {expected}, found `{text}`"))?;
            if values.contains(&value) {
                return Err(format!("{key}: {value} is given twice"));
            }
            values.push(value);
        }
        Ok(Self { key, values })
    }
}

/// The axes of a sweep; the seeds, over which a cell is averaged, apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    pub axes: Vec<Axis>,
    pub seeds: Vec<u64>,
}

impl Grid {
    /// Of the given axes; `count` seeds from `first` upwards where none of them is of seeds.
    pub fn new(given: &[Axis], first: u64, count: Option<u64>) -> Result<Self> {
        let twice = |i: usize, axis: &Axis| given[..i].iter().any(|before| before.key == axis.key);
        if let Some((_, axis)) = given.iter().enumerate().find(|(i, axis)| twice(*i, axis)) {
            let expected = format!("each key once, such as {}=V1,V2", axis.key);
            return Err(Error::usage("--grid", expected, format!("`{}` twice", axis.key)));
        }
        let seed = |value: &Value| if let Value::Seed(seed) = value { Some(*seed) } else { None };
        let own = given.iter().find(|axis| axis.key == "seed");
        let seeds: Vec<u64> = match (own, count) {
            (Some(_), Some(_)) => {
                let expected = "either --seeds N or --grid seed=S1,S2,...";
                return Err(Error::usage("--seeds", expected, "both"));
            }
            (Some(axis), None) => axis.values.iter().filter_map(seed).collect(),
            (None, count) => match first.checked_add(count.unwrap_or(1)) {
                Some(end) => (first..end).collect(),
                None => return Err(Error::usage("--seeds", "seeds below 2^64", format!("{first} and more"))),
            },
        };
        let axes: Vec<Axis> = given.iter().filter(|axis| axis.key != "seed").cloned().collect();
        let students = axes.iter().try_fold(seeds.len(), |n, axis| n.checked_mul(axis.values.len()));
        match students {
            Some(0..=MOST) => Ok(Self { axes, seeds }),
            _ => Err(Error::usage("--grid", format!("at most {MOST} students"), "more")),
        }
    }

    /// Every point of the product, the last axis turning fastest: a value for each axis.
    pub fn cells(&self) -> Vec<Vec<&Value>> {
        let mut cells: Vec<Vec<&Value>> = vec![Vec::new()];
        for axis in &self.axes {
            let each = cells.iter().flat_map(|cell| axis.values.iter().map(move |value| (cell, value)));
            cells = each.map(|(cell, value)| cell.iter().copied().chain([value]).collect()).collect();
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(text: &str) -> Axis {
        text.parse().expect(text)
    }

    #[test]
    fn keys_have_names_and_values_kinds() {
        let numbers = |v: &[f64]| v.iter().map(|x| Value::Number(*x)).collect::<Vec<_>>();
        assert_eq!(
            axis("temperature=1,2.5, 20"),
            Axis { key: "temperature", values: numbers(&[1.0, 2.5, 20.0]) }
        );
        let text: Vec<String> = axis("lr=0.0500,1e-7,0").values.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0.05", "1e-7", "0"]);
        assert_eq!(axis("hard-weight=-0").values, numbers(&[0.0]));
        assert_eq!(axis("dkd_beta=1e-3"), axis("dkd-beta=0.001"));
        assert_eq!(axis("seed=3,1").values, [Value::Seed(3), Value::Seed(1)]);
        let layers = axis("layers=784-800-800-10,784-10");
        assert_eq!(layers.values[0], Value::Layers(vec![784, 800, 800, 10]));
        let text: Vec<String> = layers.values.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["784-800-800-10", "784-10"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_was_expected() {
        for (text, words) in [
            ("temperature", "expected KEY=V1,V2,..., KEY one of layers, temperature"),
            ("temprature=1", "no key `temprature`, expected one of"),
            ("temprature=1", "did you mean `temperature`?"),
            ("xyz=1", "no key `xyz`"),
            ("temperature=", "temperature: expected a number, found ``"),
            ("lr=0.1,,0.2", "lr: expected a number, found ``"),
            ("lr=nan", "expected a number"),
            ("lr=0.1,1e-1", "lr: 0.1 is given twice"),
            ("clip=0,-0", "clip: 0 is given twice"),
            ("seed=-1", "seed: expected a whole number of at least 0, found `-1`"),
            ("seed=1.5", "seed: expected a whole number"),
            ("layers=784", "expected layer sizes joined by dashes"),
            ("layers=784-0-10", "expected layer sizes"),
            ("layers=784:10", "expected layer sizes"),
        ] {
            let error = text.parse::<Axis>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn cells_are_the_product_without_the_seeds() {
        let given = [axis("temperature=1,2"), axis("seed=7,9"), axis("lr=0.1,0.2,0.3")];
        let grid = Grid::new(&given, 0, None).expect("a grid");
        assert_eq!(grid.seeds, [7, 9]);
        let cells: Vec<String> = grid
            .cells()
            .iter()
            .map(|cell| cell.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(cells, ["1 0.1", "1 0.2", "1 0.3", "2 0.1", "2 0.2", "2 0.3"]);
        let grid = Grid::new(&[], 5, Some(3)).expect("a grid");
        assert_eq!((grid.seeds.as_slice(), grid.cells().len()), (&[5, 6, 7][..], 1));
        assert_eq!(Grid::new(&[], 5, None).expect("a grid").seeds, [5]);
    }

    #[test]
    fn a_grid_that_cannot_be_meant_is_refused() {
        let refused = |given: &[Axis], first, count, word: &str| {
            let error = Grid::new(given, first, count).expect_err(word).to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        refused(&[axis("lr=1"), axis("clip=0"), axis("lr=2")], 0, None, "`lr` twice");
        refused(&[axis("seed=1")], 0, Some(2), "either --seeds N or --grid seed");
        refused(&[], u64::MAX, Some(2), "below 2^64");
        let many = |key: &str| {
            axis(&format!("{key}={}", (1..=400).map(|i| i.to_string()).collect::<Vec<_>>().join(",")))
        };
        refused(&[many("lr"), many("temperature")], 0, None, "at most 100000 students");
    }
}
