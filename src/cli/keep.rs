//! How a run is kept: checkpoints, limits, interruptions.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::options::CALL;
use crate::distill::step::Guard;
use crate::error::{Error, Result};
use crate::gpu::environment;
use crate::train::session::Settings;
use crate::train::stop::Every;

#[derive(Args)]
#[command(next_help_heading = "Checkpoints and limits")]
pub struct KeepArgs {
    /// Steps or time between checkpoints, such as 500, 30s, 5m or 2h; never: only when interrupted.
    #[arg(long, default_value = "10m", value_name = "STEPS|TIME")]
    checkpoint_every: Every,
    /// Checkpoints that stay; each also holds the best weights on validation.
    #[arg(long, default_value_t = 3, value_name = "N")]
    keep: usize,
    /// End when the validation rows have seen nothing better for this many epochs.
    #[arg(long, value_name = "EPOCHS")]
    patience: Option<u64>,
    /// End after this step, to be resumed: --steps or --epochs stays what schedules go by.
    #[arg(long, value_name = "STEPS", help_heading = CALL)]
    max_steps: Option<u64>,
    /// End after this many minutes, to be resumed.
    #[arg(long, value_name = "MINUTES", help_heading = CALL)]
    max_minutes: Option<f64>,
}

impl KeepArgs {
    pub fn settings(&self) -> Result<Settings> {
        for (name, value) in [
            ("--keep", Some(self.keep as u64)),
            ("--patience", self.patience),
            ("--max-steps", self.max_steps),
        ] {
            if value == Some(0) {
                return Err(Error::usage(name, "at least 1", "0"));
            }
        }
        let max_time = match self.max_minutes {
            None => None,
            Some(minutes) => match Duration::try_from_secs_f64(60.0 * minutes) {
                Ok(time) if !time.is_zero() => Some(time),
                _ => return Err(Error::usage("--max-minutes", "a number above 0", minutes.to_string())),
            },
        };
        Ok(Settings {
            every: self.checkpoint_every,
            keep: self.keep,
            patience: self.patience,
            max_steps: self.max_steps,
            max_time,
        })
    }

    /// Patience has something to wait for.
    pub fn check_validation(&self, validates: bool) -> Result<()> {
        match self.patience {
            Some(_) if !validates => Err(Error::usage("--patience", "labelled validation rows", "none")
                .with_hint("hold some back with --validation 0.1")),
            _ => Ok(()),
        }
    }
}

/// From now on, the first SIGINT or SIGTERM (Ctrl-C elsewhere) only sets what this returns; the
/// second one ends the process.
pub fn interruptions() -> Result<&'static AtomicBool> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    static SET: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let set = SET.get_or_init(|| {
        ctrlc::set_handler(|| {
            if ASKED.swap(true, Ordering::Relaxed) {
                environment::exit_at_once(130);
            }
            eprintln!("interrupted: finishing the step and saving a checkpoint; once more to end at once");
        })
        .map_err(|e| e.to_string())
    });
    match set {
        Ok(()) => Ok(&ASKED),
        Err(what) => Err(Error::Run(format!("signals cannot be handled: {what}"))),
    }
}

/// Against gradients that are too long or not finite.
#[derive(Args)]
#[command(next_help_heading = "Training")]
pub struct GuardArgs {
    /// Shorten the gradient of all weights to this norm where it is longer.
    #[arg(long, value_name = "NORM")]
    clip_norm: Option<f64>,
    /// A loss or gradient that is not finite: stop the run, or skip the step, which then changes nothing.
    #[arg(long, value_enum, default_value = "stop", value_name = "WHAT")]
    on_nonfinite: OnNonFinite,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnNonFinite {
    Stop,
    Skip,
}

impl GuardArgs {
    pub fn guard(&self) -> Result<Guard> {
        match self.clip_norm {
            Some(norm) if !(norm > 0.0 && norm.is_finite()) => {
                Err(Error::usage("--clip-norm", "a number above 0", norm.to_string()))
            }
            clip => Ok(Guard { clip, skip: self.on_nonfinite == OnNonFinite::Skip }),
        }
    }
}
