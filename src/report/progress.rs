//! Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing with `--json`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One piece of long work, counted in steps.
pub struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    quiet: bool,
    last: Instant,
}

/// Seconds between lines where stderr is not a terminal.
const QUIET_GAP: Duration = Duration::from_secs(10);

impl Progress {
    /// Begins; `quiet` shows nothing at all.
    pub fn new(title: &str, steps: u64, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{prefix:24} {bar:30} {pos}/{len} steps  {msg}  {elapsed}");
            let bar = ProgressBar::new(steps).with_prefix(title.to_owned());
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar, title: title.to_owned(), quiet, last: Instant::now() }
    }

    /// `step` of `steps` are done, the rest takes `left`; `message` says how it goes.
    pub fn at(&mut self, step: u64, steps: u64, left: Option<Duration>, message: &str) {
        let left = left
            .filter(|left| !left.is_zero())
            .map_or(String::new(), |left| format!("  {} left", duration(left)));
        let message = format!("{message}{left}");
        if let Some(bar) = &self.bar {
            bar.set_message(message);
            bar.set_position(step);
        } else if !self.quiet && (self.last.elapsed() > QUIET_GAP || step == steps) {
            eprintln!("{}: step {step}/{steps}  {message}", self.title);
            self.last = Instant::now();
        }
    }

    /// Takes the bar off the screen.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `4.5 s`, `45 s`, `12 min`, `34 h`: two digits or more.
pub fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 600.0 => format!("{s:.0} s"),
        s if s < 36_000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}
