//! A run in its folder: rows to the metrics, checkpoints, evaluations, limits, interruptions.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::report::metrics_file::Line;
use crate::train::checkpoint::{Best, Checkpoint};
use crate::train::run_dir::RunDir;
use crate::train::state::State;
use crate::train::stop::{Ending, Every, Score};
use crate::train::{Row, Run, Span};

/// How a run is kept and when it ends before its last step.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often a checkpoint is written.
    pub every: Every,
    /// How many of them stay.
    pub keep: usize,
    /// End after so many evaluations without a better one.
    pub patience: Option<u64>,
    /// End after this step.
    pub max_steps: Option<u64>,
    /// End after this long in this process.
    pub max_time: Option<Duration>,
}

/// What a session asks of its caller.
pub trait Watcher {
    /// A row of metrics as a line of the metrics file; those of intervals are also progress.
    fn line(&mut self, row: &Row) -> Line;

    /// Whether there are validation rows.
    fn validates(&self) -> bool;

    /// The students held to the validation rows: asked after each epoch, where there are such rows.
    ///
    /// # Errors
    /// Whatever it meets; it ends the run.
    fn evaluate(&mut self, run: &Run<'_>) -> Result<(Line, Score)>;

    /// Asked after every submission: whether to end now, with a checkpoint.
    fn interrupted(&self) -> bool;
}

/// A run of one student, in its folder.
pub struct Session<'s, 'g> {
    run: &'s mut Run<'g>,
    dir: &'s mut RunDir,
    settings: Settings,
    best: Option<Best>,
    waited: u64,
    began: Instant,
    /// When and at which step the last checkpoint was written.
    saved: (Instant, Option<u64>),
    /// The step of the last evaluation.
    evaluated: Option<u64>,
    /// The last state that is known to be good, to look for a fault from.
    good: State,
}

impl<'s, 'g> Session<'s, 'g> {
    /// Begins, or goes on `from` a checkpoint.
    ///
    /// # Errors
    /// As [`Run::restore`].
    pub fn new(
        run: &'s mut Run<'g>,
        dir: &'s mut RunDir,
        settings: Settings,
        from: Option<Checkpoint>,
    ) -> Result<Self> {
        let now = Instant::now();
        let (mut best, mut waited, mut step) = (None, 0, None);
        if let Some(from) = from {
            run.restore(&from.state)?;
            (best, waited, step) = (from.best, from.waited, Some(from.state.step));
        }
        // At the end of an epoch a checkpoint is written after the evaluation.
        let evaluated = step.filter(|step| step.is_multiple_of(run.steps_per_epoch()));
        let good = run.state_blocking()?;
        Ok(Self { run, dir, settings, best, waited, began: now, saved: (now, step), evaluated, good })
    }

    /// Trains until the run ends, and leaves the students with the best weights on validation, or the
    /// last ones where there is no validation. Says why it ended and which step the weights are of.
    ///
    /// # Errors
    /// [`Error::Interrupted`] with a checkpoint saved; as [`Run::advance`] and [`RunDir::save`].
    pub fn drive(mut self, watcher: &mut dyn Watcher) -> Result<(Ending, u64)> {
        let result = self.steps(watcher);
        match (result, self.run.fault()) {
            (Err(Error::Run(what)), Some(step)) => Err(self.explain(what, step)),
            (result, _) => result,
        }
    }

    /// Adds to a fault where it began, by running from the last good state once more.
    fn explain(&mut self, what: String, step: u64) -> Error {
        let hint = "a lower learning rate or --clip-norm may help";
        match self.run.first_fault(&self.good, step) {
            Ok(Some(fault)) => Error::Run(format!("{what}; it began with {fault}; {hint}")),
            Ok(None) => Error::Run(format!("{what}; {hint}")),
            Err(error) => Error::Run(format!("{what}; where it began could not be found: {error}")),
        }
    }

    fn steps(&mut self, watcher: &mut dyn Watcher) -> Result<(Ending, u64)> {
        let ending = loop {
            if let Some(ending) = self.ended() {
                break ending;
            }
            self.stretch(watcher)?;
            let done = self.run.done;
            if done < self.run.steps && watcher.interrupted() {
                let checkpoint = self.save()?;
                return Err(Error::Interrupted { step: done, checkpoint });
            }
            if self.settings.every.due(done, self.saved.0.elapsed()) {
                self.save()?;
            }
        };
        // What follows the last full interval and epoch is not part of the checkpoint: a longer run
        // would not have it.
        if self.settings.every != Every::Never {
            self.save()?;
        }
        let metrics = &mut self.dir.metrics;
        let mut unfinished = None;
        self.run.rest(|row| match (row.span, watcher.line(row)) {
            (Span::Interval, line) => metrics.write(&line),
            (Span::Epoch, line) => {
                unfinished = Some(line);
                Ok(())
            }
        })?;
        let validation = if watcher.validates() { self.evaluate(watcher)? } else { None };
        if let Some(line) = unfinished {
            self.dir.metrics.write_epoch(&line, validation.as_ref())?;
        }
        let Some(best) = &self.best else { return Ok((ending, self.run.done)) };
        self.run.restore_students(&best.students)?;
        Ok((ending, best.step))
    }

    fn ended(&self) -> Option<Ending> {
        let done = self.run.done;
        let Settings { patience, max_steps, max_time, .. } = self.settings;
        let endings = [
            (done >= self.run.steps, Ending::Complete),
            (patience.is_some_and(|p| self.waited >= p), Ending::Patience),
            (max_steps.is_some_and(|n| done >= n), Ending::MaxSteps),
            (max_time.is_some_and(|t| self.began.elapsed() >= t), Ending::MaxMinutes),
        ];
        endings.into_iter().find(|(is, _)| *is).map(|(_, ending)| ending)
    }

    /// Trains up to the next step at which something is to be done, and evaluates where that is an
    /// epoch's end.
    fn stretch(&mut self, watcher: &mut dyn Watcher) -> Result<()> {
        let per_epoch = self.run.steps_per_epoch();
        let done = self.run.done;
        let validates = watcher.validates();
        let epoch_end = validates.then(|| (done / per_epoch + 1) * per_epoch);
        let stops = [epoch_end, self.settings.every.next(done), self.settings.max_steps];
        let to = stops.into_iter().flatten().fold(self.run.steps, u64::min);
        let Settings { every, max_time, .. } = self.settings;
        let (began, saved) = (self.began, self.saved.0);
        let watched = std::cell::RefCell::new(watcher);
        let stop = || {
            let timed = matches!(every, Every::Time(_)) && every.due(0, saved.elapsed());
            timed || max_time.is_some_and(|t| began.elapsed() >= t) || watched.borrow().interrupted()
        };
        let mut epoch = None;
        let metrics = &mut self.dir.metrics;
        self.run.advance_until(to, stop, |row| {
            let line = watched.borrow_mut().line(row);
            match row.span {
                Span::Interval => metrics.write(&line),
                Span::Epoch if validates => {
                    epoch = Some(line);
                    Ok(())
                }
                Span::Epoch => metrics.write_epoch(&line, None),
            }
        })?;
        if let Some(line) = epoch {
            let validation = self.evaluate(watched.into_inner())?;
            self.dir.metrics.write_epoch(&line, validation.as_ref())?;
        }
        Ok(())
    }

    /// Evaluates the step done, unless it was already, and keeps its weights if they are the best.
    fn evaluate(&mut self, watcher: &mut dyn Watcher) -> Result<Option<Line>> {
        if self.evaluated == Some(self.run.done) {
            return Ok(None);
        }
        self.evaluated = Some(self.run.done);
        let began = Instant::now();
        let (line, score) = watcher.evaluate(self.run)?;
        self.run.log.left.evaluated(began.elapsed());
        self.dir.metrics.write(&line)?;
        self.waited += 1;
        if self.best.as_ref().is_none_or(|best| score.beats(&best.score)) {
            let state = self.run.state_blocking()?;
            self.best = Some(Best { score, step: state.step, students: state.students().to_vec() });
            self.waited = 0;
        }
        Ok(Some(line))
    }

    /// Writes a checkpoint of the step done, unless it has one, and gives its folder.
    fn save(&mut self) -> Result<std::path::PathBuf> {
        let done = self.run.done;
        if self.saved.1 == Some(done) {
            return Ok(self.dir.checkpoint(done));
        }
        self.good = self.run.state_blocking()?;
        let checkpoint = Checkpoint {
            state: self.good.clone(),
            best: self.best.clone(),
            waited: self.waited,
            files: Default::default(),
        };
        let path = self.dir.save(checkpoint, self.settings.keep)?;
        self.saved = (Instant::now(), Some(done));
        Ok(path)
    }
}

/// Attempts a run on a device, and after a fault of the device up to `retries` times more on a new one.
/// `attempt` is told whether it is to go on with what an earlier one left.
///
/// # Errors
/// Whatever opening or the last attempt met.
pub fn retrying<T>(
    retries: u32,
    open: impl Fn() -> Result<Gpu>,
    mut attempt: impl FnMut(&Gpu, bool) -> Result<T>,
    say: impl Fn(&str),
) -> Result<T> {
    let mut left = retries;
    let mut again = false;
    loop {
        let gpu = open()?;
        match attempt(&gpu, again) {
            Err(error @ Error::Device { .. }) if left > 0 => {
                left -= 1;
                again = true;
                say(&format!("{error}; opening the device again"));
            }
            other => return other,
        }
    }
}
