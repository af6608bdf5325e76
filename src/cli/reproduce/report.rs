//! Rows, verdicts, tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::cli::reproduce::stage::Trained;
use crate::error::{Error, Result};
use crate::mlp::weights::write_atomically;
use crate::report::table::render;

/// One claim: theirs and ours.
#[derive(Debug, Serialize)]
pub struct Row {
    pub row: String,
    /// What was published.
    pub published: String,
    pub ours: String,
    /// What is asked of ours.
    pub asked: String,
    /// Whether it holds; `None`: nothing is asked.
    pub inside: Option<bool>,
    /// The numbers in `ours`, by name.
    pub values: BTreeMap<String, f64>,
}

impl Row {
    /// A row without numbers yet.
    pub fn new(row: &str, published: &str, ours: String) -> Self {
        let (row, published) = (row.to_owned(), published.to_owned());
        Self { row, published, ours, asked: "-".to_owned(), inside: None, values: BTreeMap::new() }
    }

    pub fn asked(self, asked: impl Into<String>, inside: bool) -> Self {
        Self { asked: asked.into(), inside: Some(inside), ..self }
    }

    pub fn values<'n>(mut self, values: impl IntoIterator<Item = (&'n str, f64)>) -> Self {
        self.values.extend(values.into_iter().map(|(name, value)| (name.to_owned(), value)));
        self
    }

    fn verdict(&self) -> &'static str {
        match self.inside {
            Some(true) => "inside",
            Some(false) => "OUTSIDE",
            None => "-",
        }
    }
}

/// Numbers beside the rows, for people: the first row is the heading.
pub struct Table {
    pub title: &'static str,
    pub cells: Vec<Vec<String>>,
}

/// What a reproduction found.
pub struct Findings {
    pub source: &'static str,
    pub rows: Vec<Row>,
    pub tables: Vec<Table>,
    /// What a reader has to know to judge the numbers.
    pub notes: Vec<String>,
}

/// What `--json` prints and report.json holds.
#[derive(Serialize)]
pub struct Report {
    pub schema_version: u32,
    pub what: String,
    pub schedule: String,
    pub source: &'static str,
    pub command: String,
    pub limbeck: &'static str,
    pub adapter: String,
    pub seed: u64,
    pub trained_rows: usize,
    /// `test` or `validation`.
    pub judged: String,
    pub judged_rows: usize,
    pub rows: Vec<Row>,
    #[serde(skip)]
    pub tables: Vec<Table>,
    pub notes: Vec<String>,
    pub runs: Vec<Trained>,
    pub seconds: f64,
}

impl Report {
    fn cells(&self) -> Vec<Vec<String>> {
        let titles = ["row", "published", "ours", "asked", "verdict"].map(str::to_owned).to_vec();
        let cells =
            |r: &Row| [&r.row, &r.published, &r.ours, &r.asked, r.verdict()].map(str::to_owned).to_vec();
        std::iter::once(titles).chain(self.rows.iter().map(cells)).collect()
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let judged =
            format!("{} {} rows, after training on {}", self.judged_rows, self.judged, self.trained_rows);
        vec![
            ("source", self.source.to_owned()),
            ("command", self.command.clone()),
            ("version", format!("limbeck {}", self.limbeck)),
            ("adapter", self.adapter.clone()),
            ("seed", self.seed.to_string()),
            ("judged on", judged),
            ("time", format!("{:.1} min", self.seconds / 60.0)),
        ]
    }

    /// The same as text for Markdown.
    fn markdown(&self) -> String {
        let mut text = format!("# {}, schedule {}\n\n", self.what, self.schedule);
        for (name, fact) in self.facts() {
            let _ = writeln!(text, "- {name}: {fact}");
        }
        text.push('\n');
        markdown_table(&mut text, &self.cells());
        for table in &self.tables {
            let _ = writeln!(text, "\n## {}\n", table.title);
            markdown_table(&mut text, &table.cells);
        }
        text.push('\n');
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text.push_str("\n## Time\n\n");
        let titles = ["trained", "networks", "parameters of each", "epochs", "seconds"].map(str::to_owned);
        let run = |r: &Trained| {
            let seconds = r.seconds.map_or("kept from before".to_owned(), |s| format!("{s:.0}"));
            let numbers = [r.networks.to_string(), r.parameters.to_string(), r.epochs.to_string(), seconds];
            std::iter::once(r.what.clone()).chain(numbers).collect()
        };
        let rows: Vec<_> = std::iter::once(titles.to_vec()).chain(self.runs.iter().map(run)).collect();
        markdown_table(&mut text, &rows);
        text
    }

    /// Writes report.md and report.json into `out`.
    pub fn write(&self, out: &Path) -> Result<()> {
        write_atomically(&out.join("report.md"), self.markdown().as_bytes())?;
        write_atomically(&out.join("report.json"), self.json()?.as_bytes())
    }

    fn json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Run(e.to_string()))
    }

    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", self.json()?);
            return Ok(());
        }
        println!();
        print!("{}", render(&self.cells()));
        for table in &self.tables {
            print!("\n{}\n\n{}", table.title, render(&table.cells));
        }
        println!();
        for (name, fact) in self.facts() {
            println!("{name:<10} {}", fact);
        }
        for note in &self.notes {
            println!("- {note}");
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::Run`] naming the rows that are outside.
    pub fn verdict(&self) -> Result<()> {
        let outside: Vec<&str> =
            self.rows.iter().filter(|r| r.inside == Some(false)).map(|r| r.row.as_str()).collect();
        match outside.is_empty() {
            true => Ok(()),
            false => Err(Error::Run(format!("outside their tolerance: {}", outside.join("; ")))),
        }
    }
}

/// The first row is the heading.
fn markdown_table(text: &mut String, rows: &[Vec<String>]) {
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if i == 0 {
            let _ = writeln!(text, "|{}", " --- |".repeat(row.len()));
        }
    }
}
