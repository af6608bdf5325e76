//! `limbeck config check|show`

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgMatches, Args as _, Command, FromArgMatches, Subcommand, ValueEnum};

use crate::cli::options::{Resolved, command_of, expand};
use crate::cli::{distill, sweep, train};
use crate::error::{Error, Result};

/// Checks option files, and shows what a command would be told in the end.
///
/// A file holds a command's options by their long names, one `key = value` to a line, such as
/// `batch_size = 64`, and may name its command (`command = "distill"`). Command line, environment,
/// file, default: what comes first wins.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Read a file as a run would and say what is wrong with it.
    Check(Check),
    /// Print every option with the value that a run would have, as a file that --config takes.
    Show(Show),
}

#[derive(clap::Args)]
struct Check {
    file: PathBuf,
    /// The command [default: what the file says, else distill].
    #[arg(long = "for", value_name = "COMMAND")]
    command: Option<For>,
}

#[derive(clap::Args)]
struct Show {
    file: Option<PathBuf>,
    /// The command [default: what the file says, else distill].
    #[arg(long = "for", value_name = "COMMAND")]
    command: Option<For>,
    /// Options as they would stand beside --config.
    #[arg(last = true)]
    options: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum For {
    Train,
    Distill,
    Sweep,
}

pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Check(check) => {
            let parsed = parse(Some(&check.file), check.command, &[])?;
            let missing = match &parsed.missing {
                Some(missing) => format!("; left to the command line: {missing}"),
                None => String::new(),
            };
            println!("{} is good for `limbeck {}`{missing}", check.file.display(), parsed.name);
            Ok(())
        }
        What::Show(show) => {
            print!("{}", parse(show.file.as_deref(), show.command, &show.options)?.resolved.text());
            Ok(())
        }
    }
}

struct Parsed {
    name: &'static str,
    resolved: Resolved,
    /// Required options that nothing gave.
    missing: Option<String>,
}

fn parse(file: Option<&Path>, command: Option<For>, options: &[OsString]) -> Result<Parsed> {
    let named = match (command, file) {
        (None, Some(file)) => command_of(file)?,
        _ => None,
    };
    match (command, named.as_deref()) {
        (Some(For::Train), _) | (None, Some("train")) => {
            parse_as("train", file, options, train::Args::augment_args, |matches| {
                train::Args::from_arg_matches(matches).map(|args| args.check())
            })
        }
        (Some(For::Distill), _) | (None, None | Some("distill")) => {
            parse_as("distill", file, options, distill::Args::augment_args, |matches| {
                distill::Args::from_arg_matches(matches).map(|args| args.check())
            })
        }
        (Some(For::Sweep), _) | (None, Some("sweep")) => {
            parse_as("sweep", file, options, sweep::Args::augment_args, |matches| {
                sweep::Args::from_arg_matches(matches).map(|args| args.check())
            })
        }
        (None, Some(other)) => {
            Err(Error::usage("key `command`", "train, distill or sweep", format!("`{other}`")))
        }
    }
}

/// Parses a call of the command `name` whose options are the file's and the given ones.
fn parse_as(
    name: &'static str,
    file: Option<&Path>,
    options: &[OsString],
    augment: impl Fn(Command) -> Command,
    check: impl Fn(&ArgMatches) -> std::result::Result<Result<()>, clap::Error>,
) -> Result<Parsed> {
    let cli = Command::new("limbeck").subcommand(augment(Command::new(name)));
    let mut args: Vec<OsString> = vec!["limbeck".into(), name.into()];
    if let Some(file) = file {
        args.extend(["--config".into(), file.into()]);
    }
    args.extend_from_slice(options);
    let expanded = expand(&cli, args)?;
    let (matches, missing) = match cli.clone().try_get_matches_from(&expanded.args) {
        Ok(matches) => (matches, None),
        // What the file leaves to the command line is no fault of it.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
            let lenient = cli.clone().ignore_errors(true).try_get_matches_from(&expanded.args);
            (lenient.map_err(|e| refused(name, &e))?, Some(names(&error)))
        }
        Err(error) => return Err(refused(name, &error)),
    };
    let (_, own) = matches.subcommand().ok_or_else(|| Error::usage("command", name, "none"))?;
    if missing.is_none() {
        check(own).map_err(|e| refused(name, &e))??;
    }
    let mut cli = cli;
    cli.build();
    let command = cli.find_subcommand(name).ok_or_else(|| Error::usage("command", name, "none"))?;
    Ok(Parsed { name, resolved: Resolved::of(command, own)?, missing })
}

/// The options that an error of clap is about.
fn names(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue};
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(names)) => names.join(", "),
        Some(ContextValue::String(name)) => name.clone(),
        _ => "some option".to_owned(),
    }
}

/// clap's refusal as an error of ours: its first paragraph.
fn refused(name: &str, error: &clap::Error) -> Error {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ").trim();
    Error::usage(format!("options of `limbeck {name}`"), "options that it takes", first.replace('\n', " "))
}
