//! `limbeck sweep`: a whole grid of distillations, students of one shape side by side.
//!
//! ```text
//! here      options; training and judging the students
//! together  a point of the grid; which students train together
//! report    a cell's means, the best by validation, table, CSV, JSON and model
//! ```

mod report;
mod together;

use std::path::PathBuf;
use std::time::Instant;

use crate::cli::cohort::{Cohort, EVAL_BATCH, logits_of_each};
use crate::cli::common::{DeviceArgs, FormArgs, refuse_existing};
use crate::cli::grid::{Axis, Grid, Value, layers_text};
use crate::cli::job::{Evaluation, evaluate, fitted};
use crate::cli::lesson::{LessonArgs, Prepared};
use crate::cli::options::{self, CALL, Resolved};
use crate::cli::sweep::together::{Cell, Place, in_halves, runs};
use crate::cli::teachers::{OnDisk, Teachers};
use crate::data::{Dataset, Split};
use crate::distill::step::{Loss, Teacher};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::environment::Load;
use crate::mlp::Mlp;
use crate::mlp::weights::{Weights, check_sizes, write_atomically};
use crate::report::progress::duration;
use crate::train::{Recipe, Replica, Rows};

/// What a sweep leaves in its folder, beside config.toml.
const FILES: [&str; 3] = ["sweep.csv", "sweep.json", "best/student.safetensors"];

/// Distils one student for every point of a grid and every seed, as many side by side as fit, and prints
/// mean and 95 % interval of each point and the best of them by validation.
///
/// All students see the same rows: those of --seed, which validation rows and kept labels are drawn with.
/// Each is judged with the weights of its last step. Writes DIR/sweep.csv, a line per student,
/// DIR/sweep.json and DIR/best/student.safetensors.
///
/// Example: limbeck sweep --data mnist --teacher teacher/model.safetensors
/// --grid temperature=1,2.5,4,8,20 --grid layers=784-800-800-10,784-300-300-10
/// --seeds 3 --validation 0.1 --out sweep
#[derive(clap::Args)]
#[command(mut_arg("layers", |arg| arg.required(false)))]
pub struct Args {
    #[command(flatten)]
    lesson: LessonArgs,
    /// Values of one setting; repeat for the product. KEY is layers, temperature, alpha, hard_weight,
    /// soft_weight, label_smoothing, loss_beta, dkd_alpha, dkd_beta, virtual_confidence, clip, lr or seed;
    /// layer sizes are joined by dashes, 784-300-10.
    #[arg(long, value_name = "KEY=V1,V2,...", help_heading = "Sweep")]
    grid: Vec<Axis>,
    /// Students of each point: seeds from --seed upwards.
    #[arg(long, value_name = "N", help_heading = "Sweep", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// The most students that train side by side.
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Sweep",
          value_parser = clap::value_parser!(u64).range(1..=4096))]
    at_once: u64,
    /// Folder for the results.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    form: FormArgs,
    /// Take options from this TOML file; what the command line says wins. See `limbeck config`.
    #[arg(long, value_name = "FILE", help_heading = CALL)]
    config: Option<PathBuf>,
    /// Overwrite the sweep that --out already holds.
    #[arg(long, help_heading = CALL)]
    force: bool,
    /// Print the result as one JSON object and no progress.
    #[arg(long, help_heading = CALL)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// One student at the end of its run.
struct Student {
    place: Place,
    weights: Weights,
    steps: u64,
    /// The step at which its numbers were no longer finite.
    diverged: Option<u64>,
    validation: Option<Evaluation>,
    test: Option<Evaluation>,
}

impl Args {
    fn grid(&self) -> Result<Grid> {
        if self.grid.is_empty() && self.seeds.is_none() {
            return Err(Error::usage("--grid", "at least one, or --seeds", "neither")
                .with_hint("for example --grid temperature=1,2.5,4,8,20"));
        }
        Grid::new(&self.grid, self.lesson.training.seed, self.seeds)
    }

    /// Of the run that gains least by one thread to a device; none where the options make no sense.
    pub fn load(&self) -> Option<Load> {
        let grid = self.grid().ok()?;
        let cells = self.cells(&grid).unwrap_or_default();
        let runs = runs(&cells, &grid.seeds, |_| self.at_once as usize);
        let loads = runs.iter().map(|run| self.lesson.load(&cells[run[0].0].layers, run.len()));
        loads.max_by(|a, b| a.beyond().total_cmp(&b.beyond()))
    }

    /// Refuses values that make no sense, before any file is read.
    pub fn check(&self) -> Result<()> {
        self.recipe()?;
        self.cells(&self.grid()?).map(|_| ())
    }

    fn recipe(&self) -> Result<Recipe> {
        self.lesson.recipe(100)
    }

    /// The options of each point of the grid, checked.
    fn cells<'g>(&self, grid: &'g Grid) -> Result<Vec<Cell<'g>>> {
        let mut cells: Vec<Cell<'g>> = Vec::new();
        for values in grid.cells() {
            let (mut layers, mut lr) = (self.lesson.network.layers.clone(), self.lesson.training.lr);
            let mut loss = self.lesson.loss.clone();
            for (axis, value) in grid.axes.iter().zip(&values) {
                match value {
                    Value::Layers(sizes) => layers.clone_from(sizes),
                    Value::Number(x) if axis.key == "lr" => lr = *x,
                    Value::Number(x) if loss.set(axis.key, *x) => {}
                    _ => return Err(Error::usage("--grid", "a key of a student", axis.key)),
                }
            }
            if layers.is_empty() {
                return Err(Error::usage("--layers", "layer sizes, or --grid layers=A-B-C,...", "neither"));
            }
            check_sizes(&layers)?;
            let ends = |l: &[usize]| (l.first().copied(), l.last().copied());
            if let Some(first) = cells.first().filter(|first| ends(&first.layers) != ends(&layers)) {
                let expected = format!("inputs and classes as in {}", layers_text(&first.layers));
                return Err(Error::usage("--grid layers", expected, layers_text(&layers)));
            }
            if lr <= 0.0 {
                return Err(Error::usage("--grid lr", "a number above 0", lr.to_string()));
            }
            let loss = loss.loss(layers.last().copied().unwrap_or(0), true)?;
            self.lesson.teacher.check(&loss)?;
            cells.push(Cell { values, layers, lr, loss });
        }
        Ok(cells)
    }
}

/// Everything that all runs share.
struct Sweep<'a> {
    args: &'a Args,
    gpu: &'a Gpu,
    split: &'a Split,
    cells: &'a [Cell<'a>],
    recipe: Recipe,
    teachers: &'a Teachers,
    teacher: Teacher,
}

/// Trains, judges and prints the result.
pub fn run(args: &Args, resolved: &Resolved) -> Result<()> {
    let began = Instant::now();
    for name in FILES {
        refuse_existing("--out", &args.out.join(name), args.force)?;
    }
    let (grid, recipe) = (args.grid()?, args.recipe()?);
    let cells = args.cells(&grid)?;
    let losses: Vec<Loss> = cells.iter().map(|cell| cell.loss).collect();
    let Prepared { split, held_out, models, cached, start } =
        args.lesson.prepare(&recipe, &cells[0].layers, &losses)?;
    check(args, &cells, &recipe, &split, &start.weights)?;

    let gpu = args.device.open(args.json)?;
    let best = args.out.join(FILES[2]);
    let folder = best.parent().unwrap_or(&args.out);
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io("create", &args.out, e))?;
    write_atomically(&args.out.join(options::FILE), resolved.text().as_bytes())?;
    let teachers = args.lesson.teacher.ready(&gpu, &models, cached, cells[0].loss.temperature)?;
    let layers = cells.iter().flat_map(|cell| &cell.layers);
    let recipe = fitted(&recipe, &gpu, split.train.rows(), layers, &models, 1);
    let rows = (recipe.batch / recipe.accumulate).min(split.train.rows());
    let memory = args.lesson.rows.device_memory;
    let teacher = teachers.source(&gpu, &split.train, &recipe, memory, true, args.json)?;
    let most = |cell: &Cell<'_>| {
        let (asked, fit) = (args.at_once as usize, cell.fit(&gpu, rows));
        if fit < asked {
            eprintln!("note: {fit} students of {} fit side by side", layers_text(&cell.layers));
        }
        asked.min(fit)
    };
    let runs = runs(&cells, &grid.seeds, most);
    let sweep = Sweep { args, gpu: &gpu, split: &split, cells: &cells, recipe, teachers: &teachers, teacher };
    let mut students = sweep.train(&runs)?;
    teachers.check_unchanged(&gpu)?;
    if let Some(rows) = labelled(split.validation.as_ref()) {
        let on_disk = if held_out { OnDisk::Train } else { OnDisk::No };
        let seen = sweep.judge(&students, rows, on_disk)?;
        students.iter_mut().zip(seen).for_each(|(student, seen)| student.validation = seen);
    }
    let choice = report::choose(&cells, &students);
    // Everything is trained and chosen: now the test rows, once.
    if let Some(rows) = labelled(split.test.as_ref()) {
        let seen = sweep.judge(&students, rows, OnDisk::Test)?;
        students.iter_mut().zip(seen).for_each(|(student, seen)| student.test = seen);
    }
    // In the order of the grid.
    let chosen = choice.map(|i| students[i].place);
    students.sort_by_key(|student| (student.place.0, grid.seeds.iter().position(|s| *s == student.place.1)));
    let chosen = chosen.and_then(|place| students.iter().position(|student| student.place == place));
    match chosen {
        Some(i) => {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
            report::save(&best, &students[i], &split.train, &args.form)?;
        }
        // With --force, from the sweep before.
        None if best.exists() => std::fs::remove_file(&best).map_err(|e| Error::io("remove", &best, e))?,
        None => {}
    }
    let seconds = began.elapsed().as_secs_f64();
    let report = report::Report::of(&gpu, &grid, &cells, &students, runs.len(), seconds, chosen);
    report.write(&args.out, &grid, &cells)?;
    match args.json {
        true => println!("{}", report.json()?),
        false => report.print(&args.out, &cells),
    }
    Ok(())
}

/// Rows that can be judged by.
fn labelled(rows: Option<&Dataset>) -> Option<&Dataset> {
    rows.filter(|rows| rows.labels.is_some())
}

/// What every student needs, before the first one is trained.
fn check(args: &Args, cells: &[Cell<'_>], recipe: &Recipe, split: &Split, start: &Weights) -> Result<()> {
    if labelled(split.validation.as_ref()).or(labelled(split.test.as_ref())).is_none() {
        return Err(Error::usage("sweep", "validation or test rows with labels", "neither")
            .with_hint("--validation 0.1 holds some of the training rows back"));
    }
    for (i, cell) in cells.iter().enumerate() {
        let (schedules, student) = (args.lesson.schedules(), start.clone());
        Replica { seed: 0, lr: cell.lr, loss: cell.loss, schedules, student }.check(recipe.optimizer)?;
        if cells[..i].iter().all(|before| before.layers != cell.layers) {
            args.lesson.start(&cell.layers, &split.train, args.lesson.training.seed)?;
        }
    }
    Ok(())
}

impl Sweep<'_> {
    /// All students, in the order of the runs.
    fn train(&self, runs: &[Vec<Place>]) -> Result<Vec<Student>> {
        let began = Instant::now();
        let work = |run: &Vec<Place>| run.len() as f64 * self.cells[run[0].0].parameters() as f64;
        let (all, mut done) = (runs.iter().map(work).sum::<f64>(), 0.0);
        let mut students = Vec::new();
        for (i, run) in runs.iter().enumerate() {
            if runs.len() > 1 && !self.args.json {
                let left = began.elapsed().as_secs_f64() * (all - done) / done;
                let left = std::time::Duration::try_from_secs_f64(left).ok().filter(|_| done > 0.0);
                let left =
                    left.map_or(String::new(), |left| format!("; about {} left in all", duration(left)));
                let layers = layers_text(&self.cells[run[0].0].layers);
                eprintln!("run {} of {}: {} students of {layers}{left}", i + 1, runs.len(), run.len());
            }
            students.extend(in_halves(self.gpu, run, &mut |places| self.train_run(places))?);
            done += work(run);
        }
        Ok(students)
    }

    /// The replicas of one run.
    fn train_run(&self, places: &[Place]) -> Result<Vec<Student>> {
        let lesson = &self.args.lesson;
        let replica = |&(cell, seed): &Place| {
            let Cell { layers, lr, loss, .. } = &self.cells[cell];
            let student = lesson.start(layers, &self.split.train, seed)?.weights;
            Ok(Replica { seed, lr: *lr, loss: *loss, schedules: lesson.schedules(), student })
        };
        let replicas = places.iter().map(replica).collect::<Result<Vec<_>>>()?;
        let cohort =
            Cohort { gpu: self.gpu, train: &self.split.train, let_fall: true, quiet: self.args.json };
        let rows = Rows { device_memory: lesson.rows.device_memory, ..Rows::default() };
        let title = format!("distilling {} students", places.len());
        let trained = cohort.train(&title, rows, &self.teacher, self.recipe.clone(), replicas)?;
        let ends = trained.students.into_iter().zip(trained.fallen);
        let student = |(&place, (weights, fallen)): (&Place, (Weights, Option<u64>))| {
            // The last step's update is in no loss.
            let finite =
                weights.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias)).all(|w| w.is_finite());
            let diverged = fallen.or((!finite).then_some(trained.steps));
            Student { place, weights, steps: trained.steps, diverged, validation: None, test: None }
        };
        Ok(places.iter().zip(ends).map(student).collect())
    }

    /// What each student that has not diverged says of `rows`.
    fn judge(
        &self,
        students: &[Student],
        rows: &Dataset,
        on_disk: OnDisk,
    ) -> Result<Vec<Option<Evaluation>>> {
        let answers = self.teachers.answers(self.gpu, rows, on_disk)?;
        let cell = |i: usize| &self.cells[students[i].place.0];
        let mut judge = |some: &[usize]| {
            let weights: Vec<Weights> = some.iter().map(|i| students[*i].weights.clone()).collect();
            let logits = logits_of_each(self.gpu, &Mlp::upload(self.gpu, "students", &weights)?, rows)?;
            let seen = some.iter().zip(&logits).map(|(i, z)| {
                let teacher = answers.as_ref().map(|all| all.at(cell(*i).loss.temperature));
                evaluate(z, rows, teacher.as_deref())
            });
            seen.collect::<Result<Vec<_>>>()
        };
        let mut all: Vec<Option<Evaluation>> = students.iter().map(|_| None).collect();
        let standing: Vec<usize> = (0..students.len()).filter(|i| students[*i].diverged.is_none()).collect();
        for group in standing.chunk_by(|a, b| cell(*a).layers == cell(*b).layers) {
            // Their logits, as f32 and f64, take at most a GiB of the host.
            let classes = cell(group[0]).layers.last().copied().unwrap_or(1);
            let most = (1 << 30) / (12 * rows.rows() * classes).max(1);
            let most = most.min(cell(group[0]).fit(self.gpu, EVAL_BATCH));
            for part in group.chunks(most.clamp(1, self.args.at_once as usize)) {
                let seen = in_halves(self.gpu, part, &mut judge)?;
                part.iter().zip(seen).for_each(|(i, seen)| all[*i] = Some(seen));
            }
        }
        Ok(all)
    }
}
