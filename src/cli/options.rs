//! Options from a TOML file, and the file of a run's resolved options.
//!
//! A key is an option's long name, with underscores or dashes. What a file says is put before the
//! arguments of the command line and parsed with them, so there is no second list of options: names,
//! types, conflicts and defaults are the command's own. Precedence: command line, environment, file,
//! default. A file's `command` names the command that it is for.

use std::any::TypeId;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::builder::Arg;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command};
use toml::{Table, Value};

use crate::error::{Error, Result};

/// The heading of options that concern the call and not the run: no file holds them.
pub const CALL: &str = "This call";
pub use crate::train::run_dir::CONFIG as FILE;

/// The key that names the command.
const COMMAND: &str = "command";

/// Arguments with a file's options among them.
pub struct Expanded {
    /// To be parsed in the place of the given ones.
    pub args: Vec<OsString>,
    /// The file, if there was one.
    pub file: Option<PathBuf>,
}

/// Puts the options of the file that `args` names, or of the run that they resume, behind the name of
/// the command. `args` begin with the program's name.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read; [`Error::Usage`] for one that is not TOML, an unknown
/// key, or a value of the wrong kind.
pub fn expand(cli: &Command, args: Vec<OsString>) -> Result<Expanded> {
    let mut cli = cli.clone().ignore_errors(true);
    cli.build();
    let unchanged = |args| Ok(Expanded { args, file: None });
    let Some(command) = args.get(1).and_then(|name| cli.find_subcommand(name)) else {
        return unchanged(args);
    };
    if !command.get_arguments().any(|a| a.get_id() == "config") {
        return unchanged(args);
    }
    // Errors come to light when the whole is parsed.
    let Ok(matches) = cli.clone().try_get_matches_from(&args) else { return unchanged(args) };
    let Some((_, given)) = matches.subcommand() else { return unchanged(args) };
    let Some(file) = file_of(given) else { return unchanged(args) };
    let table = read(&file)?;
    check_command(&file, &table, command.get_name())?;

    let mut all = args[..2].to_vec();
    let before = |arg: &Arg| {
        matches!(
            given.value_source(arg.get_id().as_str()),
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        )
    };
    for (key, value) in table.iter().filter(|(key, _)| *key != COMMAND) {
        let arg = find(&file, command, key)?;
        let excludes = |a: &Arg, b: &Arg| {
            command.get_arg_conflicts_with(a).iter().any(|other| other.get_id() == b.get_id())
        };
        let mut stronger = command.get_arguments().filter(|a| before(a));
        let words = words(&file, key, arg, value)?;
        if !stronger.any(|a| a.get_id() == arg.get_id() || excludes(a, arg) || excludes(arg, a)) {
            all.extend(words);
        }
    }
    all.extend_from_slice(&args[2..]);
    Ok(Expanded { args: all, file: Some(file) })
}

/// `--config`, or with `--resume` the options that the run began with.
fn file_of(given: &ArgMatches) -> Option<PathBuf> {
    let path = |id| given.try_get_one::<PathBuf>(id).ok().flatten();
    let resume = given.try_get_one::<bool>("resume").ok().flatten() == Some(&true);
    let of_run = || path("out").filter(|_| resume).map(|out| out.join(FILE)).filter(|f| f.exists());
    path("config").cloned().or_else(of_run)
}

/// Reads a file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Usage`] where it is not TOML.
fn read(file: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
    text.parse::<Table>().map_err(|e| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        Error::usage(format!("{}: line {line}", file.display()), "TOML", e.message())
    })
}

/// The command that a file says it is for.
///
/// # Errors
/// As for any key.
pub fn command_of(file: &Path) -> Result<Option<String>> {
    let table = read(file)?;
    Ok(table.get(COMMAND).and_then(Value::as_str).map(str::to_owned))
}

fn check_command(file: &Path, table: &Table, command: &str) -> Result<()> {
    match table.get(COMMAND) {
        Some(value) if value.as_str() != Some(command) => Err(Error::usage(
            format!("{}: key `{COMMAND}`", file.display()),
            format!("`{command}`"),
            value.to_string(),
        )),
        _ => Ok(()),
    }
}

fn in_files(arg: &&Arg) -> bool {
    let builtin = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    !builtin && arg.get_long().is_some() && arg.get_help_heading() != Some(CALL)
}

fn find<'a>(file: &Path, command: &'a Command, key: &str) -> Result<&'a Arg> {
    let wanted = key.replace('_', "-");
    let options = || command.get_arguments().filter(in_files);
    if let Some(arg) = options().find(|a| a.get_long() == Some(&wanted)) {
        return Ok(arg);
    }
    let error = Error::usage(
        format!("{}: key `{key}`", file.display()),
        format!("an option of `limbeck {}`", command.get_name()),
        "none of that name",
    );
    let near = options()
        .filter_map(|a| a.get_long())
        .map(|name| (strsim::jaro_winkler(&wanted, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Err(if command.get_arguments().any(|a| a.get_long() == Some(&wanted)) {
        error.with_hint(format!("--{wanted} concerns one call and belongs on the command line"))
    } else if let Some((_, name)) = near.filter(|(likeness, _)| *likeness > 0.8) {
        error.with_hint(format!("did you mean `{}`?", name.replace('-', "_")))
    } else {
        error.with_hint(format!("`limbeck config show --for {}` lists the keys", command.get_name()))
    })
}

/// A key and its value as arguments.
fn words(file: &Path, key: &str, arg: &Arg, value: &Value) -> Result<Vec<OsString>> {
    let bad = |expected: &str| {
        Error::usage(format!("{}: key `{key}`", file.display()), expected, value.to_string())
    };
    let long = arg.get_long().unwrap_or_default();
    let word = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{long}={text}").into()),
        Value::Integer(_) | Value::Float(_) => Ok(format!("--{long}={value}").into()),
        _ => Err(bad("text or a number")),
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => Ok(vec![format!("--{long}").into()]),
        (ArgAction::SetTrue, Value::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(bad("true or false")),
        (ArgAction::Append, Value::Array(values)) => values.iter().map(word).collect(),
        _ => Ok(vec![word(value)?]),
    }
}

/// What a command was told in the end: command line, environment, file and defaults together.
#[derive(Clone, Debug)]
pub struct Resolved {
    text: String,
    table: Table,
}

impl Resolved {
    /// Of a parsed command line.
    ///
    /// # Errors
    /// [`Error::Usage`] for a value that is not UTF-8, which TOML cannot hold.
    pub fn of(command: &Command, matches: &ArgMatches) -> Result<Self> {
        let mut table = Table::new();
        table.insert(COMMAND.to_owned(), Value::String(command.get_name().to_owned()));
        let mut text = format!("{COMMAND} = \"{}\"\n", command.get_name());
        let mut heading = None;
        for arg in command.get_arguments().filter(in_files) {
            if arg.get_help_heading() != heading {
                heading = arg.get_help_heading();
                let _ = write!(text, "\n# {}\n", heading.unwrap_or("Options"));
            }
            let key = arg.get_long().unwrap_or_default().replace('-', "_");
            match value_of(arg, matches)? {
                Some(value) => {
                    let _ = writeln!(text, "{key} = {value}");
                    table.insert(key, value);
                }
                None => {
                    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                    let _ = writeln!(text, "# {key}: {}", help.replace('\n', " "));
                }
            }
        }
        Ok(Self { text, table })
    }

    /// The command's name.
    pub fn command(&self) -> &str {
        self.table.get(COMMAND).and_then(Value::as_str).unwrap_or_default()
    }

    /// The file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Keys whose values are not those of `file`, as `key: now, before`.
    ///
    /// # Errors
    /// As for reading a file.
    pub fn differences(&self, file: &Path) -> Result<Vec<String>> {
        let before = read(file)?;
        let keys: std::collections::BTreeSet<&String> = self.table.keys().chain(before.keys()).collect();
        let text = |value: Option<&Value>| value.map_or("unset".to_owned(), Value::to_string);
        Ok(keys
            .into_iter()
            .filter(|key| self.table.get(*key) != before.get(*key))
            .map(|key| format!("{key} is {}, was {}", text(self.table.get(key)), text(before.get(key))))
            .collect())
    }
}

fn value_of(arg: &Arg, matches: &ArgMatches) -> Result<Option<Value>> {
    let id = arg.get_id().as_str();
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Ok(Some(Value::Boolean(matches.get_flag(id))));
    }
    let Some(raw) = matches.get_raw(id) else { return Ok(None) };
    let parser = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|t| parser == *t);
    let whole = is(&[TypeId::of::<u64>(), TypeId::of::<usize>(), TypeId::of::<u32>(), TypeId::of::<i64>()]);
    let real = is(&[TypeId::of::<f64>(), TypeId::of::<f32>()]);
    let path = is(&[TypeId::of::<PathBuf>()]);
    let values = raw.map(|raw| {
        // The file may be read from another folder.
        let raw =
            if path { std::path::absolute(raw).map_or(raw.to_owned(), Into::into) } else { raw.to_owned() };
        let text = raw.into_string().map_err(|raw| {
            Error::usage(format!("--{}", arg.get_long().unwrap_or(id)), "UTF-8", raw.display().to_string())
        })?;
        Ok(match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(n), _) if whole => Value::Integer(n),
            (_, Ok(x)) if real => Value::Float(x),
            _ => Value::String(text),
        })
    });
    let mut values = values.collect::<Result<Vec<_>>>()?;
    Ok(match arg.get_action() {
        ArgAction::Append => Some(Value::Array(values)),
        _ => values.pop(),
    })
}
