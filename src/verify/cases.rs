//! The fixed lists of cases: sizes that fit no tile, and every combination of constants.

mod gathers;
mod regularizers;

use crate::kernels::adam::Adam;
use crate::kernels::ensemble::Rule;
use crate::kernels::feature::Kind;
use crate::kernels::head::{self as kernel, Soft};
use crate::kernels::matmul::{Choice, Form};
use crate::rng::{self, stream};
use crate::verify::head::From;
use crate::verify::inputs::Data;
use crate::verify::matmul::{Ends, Shared, choices};
use crate::verify::zone::Padding;
use crate::verify::{Case, adam, ensemble, feature, head, matmul, metrics, norm, sgd};

/// m, n, k: each of 1, 3, 31, 64, 65 and 257 in each place, and one past the largest tile.
pub const MATMUL_SIZES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [1, 3, 31],
    [3, 1, 65],
    [31, 64, 3],
    [64, 31, 257],
    [65, 65, 64],
    [257, 3, 1],
    [3, 257, 64],
    [65, 257, 31],
    [129, 33, 9],
];

/// Batch and classes: each awkward batch, each class count that a shader treats in its own way.
pub const HEAD_SIZES: [[usize; 2]; 10] =
    [[1, 2], [3, 10], [31, 10], [64, 31], [65, 3], [257, 10], [31, 65], [3, 257], [2, 1000], [65, 64]];

fn padding(i: usize) -> Padding {
    let all = [
        Padding::NONE,
        Padding { row: 1, replica: 0 },
        Padding { row: 2, replica: 3 },
        Padding { row: 0, replica: 1 },
    ];
    pick(&all, i, 2)
}

/// One of the list, by the number of the case and of the question: no two questions go in step.
fn pick<T: Copy>(list: &[T], case: usize, question: u64) -> T {
    list[rng::block(question, stream::CHECK, case as u64)[0] as usize % list.len()]
}

/// Numbers cases, so that paddings, kinds of data and sharing all meet all options over a list
/// without the product of everything.
#[derive(Default)]
struct Counter(usize);

impl Counter {
    fn next(&mut self) -> usize {
        self.0 += 1;
        self.0
    }
}

fn matmul_case(i: usize, choice: Choice, replicas: usize, [m, n, k]: [usize; 3], option: usize) -> Case {
    let (form, ends) = Ends::all()[option];
    let shared = pick(&[Shared::None, Shared::A, Shared::B], i, 3);
    Case::Matmul(matmul::Case {
        choice,
        m,
        n,
        k,
        replicas,
        shared,
        padding: padding(i),
        form,
        ends,
        data: pick(&Data::ALL, i, 1),
        seed: i as u64,
    })
}

/// The smallest tile of each member and width, and one that is turned: these are seen with every epilogue. The other
/// tiles differ from them in their loops, not in what follows, and drivers take a second and more to compile each
/// combination; so they are seen with what the loops do themselves and what a run asks for.
pub const SMALLEST: [&str; 8] = [
    "plain",
    "vec4-32x32",
    "tile4-16x16",
    "subgroup4-8x16",
    "subgroup8-16x64",
    "subgroup8-32x16",
    "subgroup16-16x64",
    "subgroup32-64x128",
];

/// What doctor asks of a choice.
fn asked_by_doctor(choice: &Choice, form: Form, ends: &Ends) -> bool {
    let smallest = SMALLEST.contains(&choice.variant.name);
    match (smallest, choice.splits) {
        (true, 1) => true,
        (false, 1) => ends.is_usual(form),
        // Where K is split, matmul_reduce has the epilogues: one member shows them.
        (_, _) => choice.variant.name == "vec4-32x32" && !ends.is_bare() || ends.is_bare() && ends.row_sums,
    }
}

/// A product whose K is split is made by a member without an epilogue and by matmul_reduce with one:
/// all epilogues are seen where one member splits, and elsewhere those that the member itself does.
fn asked(choice: &Choice, form: Form, ends: &Ends) -> bool {
    let smallest = SMALLEST.contains(&choice.variant.name);
    match (smallest, choice.splits) {
        (true, 1) => true,
        (true, _) => choice.variant.name == "vec4-32x32" || ends.is_bare(),
        (false, 1) => ends.is_bare() || ends.is_usual(form),
        (false, _) => ends.is_bare() && ends.row_sums,
    }
}

fn matmuls(sizes: &[[usize; 3]], asked: impl Fn(&Choice, Form, &Ends) -> bool) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for choice in choices() {
        for (turn, size) in sizes.iter().enumerate() {
            // The baseline sees every size with both; the others in turn, for time.
            let both = choice.variant.name == "plain" || sizes.len() == 1;
            for replicas in [1, 3].into_iter().filter(|r| both || (turn % 2 == 0) == (*r == 1)) {
                let options = Ends::all().into_iter().enumerate().filter(|(_, (f, e))| asked(&choice, *f, e));
                all.extend(options.map(|(o, _)| matmul_case(i.next(), choice, replicas, *size, o)));
            }
        }
    }
    all
}

/// Products so long that rounding errors, split K and drivers that end a loop early have room to show:
/// every choice as far as it reaches, with what its loops do themselves.
pub fn long_products() -> Vec<Case> {
    let of = |choice: Choice, option| {
        let k = choice.reach().min(152_000);
        let Case::Matmul(case) = matmul_case(7, choice, 1, [3, 2, k], option) else { unreachable!() };
        // Of both signs, half of the sum could be missing within the bound of the whole.
        Case::Matmul(matmul::Case { data: Data::Positive, ..case })
    };
    let mut all = Vec::new();
    for choice in choices() {
        let smallest = SMALLEST.contains(&choice.variant.name);
        let bare =
            Ends::all().into_iter().enumerate().filter(|(_, (f, e))| e.is_bare() && asked(&choice, *f, e));
        all.extend(bare.take(if smallest { usize::MAX } else { 1 }).map(|(option, _)| of(choice, option)));
    }
    all
}

fn head_case(
    i: usize,
    replicas: usize,
    form: kernel::Form,
    [batch, k]: [usize; 2],
    teacher: From,
) -> head::Case {
    head::Case {
        batch,
        rows: if pick(&[true, false, false], i, 4) { batch.div_ceil(2) } else { batch },
        k,
        replicas,
        form,
        teacher,
        soft: Soft::FORWARD_KL,
        one_order: pick(&[true, false, false], i, 5),
        unlabelled: pick(&[true, false], i, 6),
        temperature: pick(&[1.0, 0.5, 4.0, 20.0, 100.0], i, 7),
        hard_weight: pick(&[0.25, 1.0, 0.0], i, 8),
        soft_weight: pick(&[0.75, 1.0], i, 9),
        smoothing: pick(&[0.0, 0.1], i, 10),
        padding: padding(i),
        data: pick(&Data::ALL, i, 1),
        seed: i as u64,
    }
}

fn heads(sizes: &[[usize; 2]]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for [batch, k] in sizes {
        for form in kernel::Form::all(None).into_iter().filter(|f| f.takes(*k)) {
            for replicas in [1, 3] {
                let of = |teacher| Case::Head(head_case(i.next(), replicas, form, [*batch, *k], teacher));
                all.extend(From::ALL.map(of));
            }
        }
    }
    all
}

/// A vocabulary's worth of classes, for one invocation and for a workgroup.
pub fn wide_heads() -> Vec<Case> {
    let forms = kernel::Form::all(None).into_iter().filter(|f| f.block == 16 && !f.held);
    let cases = forms.flat_map(|form| From::ALL.map(|teacher| (form, teacher)));
    cases
        .enumerate()
        .map(|(i, (form, teacher))| Case::Head(head_case(7 * i, 1, form, [2, 152_000], teacher)))
        .collect()
}

/// Every other loss than forward KL, in each of its forms or in turn in one of them: a case per size, each
/// with the next kind of data, so that ten sizes meet all of them.
fn losses(sizes: &[[usize; 2]], every_form: bool) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    let kinds = Soft::kinds().into_iter().filter(|s| *s != Soft::FORWARD_KL);
    for (number, soft) in kinds.enumerate() {
        let forms = kernel::Form::all(Some(soft));
        let in_turn = forms[number % forms.len()];
        for form in forms.into_iter().filter(|f| every_form || *f == in_turn) {
            for (turn, [batch, k]) in sizes.iter().enumerate() {
                let most = if form.lanes == 1 { kernel::Form::MOST_ALONE } else { *k };
                let (i, k) = (i.next(), (*k).min(most));
                let teacher = match soft.loss.needs_teacher() {
                    true => pick(&[From::Live, From::LiveShared, From::Cached], i, 19),
                    false => From::Nowhere,
                };
                let size = [*batch, if soft.check_classes(k).is_ok() { k } else { k + 1 }];
                let case = head_case(i, pick(&[1, 3], i, 20), form, size, teacher);
                all.push(Case::Head(head::Case { soft, data: Data::ALL[turn % Data::ALL.len()], ..case }));
            }
        }
    }
    all
}

/// Three teachers: the first, one in the middle and the last are three variants of the shader.
fn ensembles(sizes: &[[usize; 2]]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for [batch, k] in sizes {
        for rule in Rule::ALL {
            for (cached, replicas) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
                let i = i.next();
                all.push(Case::Ensemble(ensemble::Case {
                    batch: *batch,
                    rows: if pick(&[true, false, false], i, 4) { batch.div_ceil(2) } else { *batch },
                    k: *k,
                    replicas,
                    members: 3,
                    rule,
                    cached,
                    temperature: pick(&[1.0, 0.5, 4.0, 20.0, 100.0], i, 7),
                    padding: padding(i),
                    data: pick(&Data::ALL, i, 1),
                    seed: i as u64,
                }));
            }
        }
    }
    all
}

fn features(sizes: &[[usize; 2]]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for [batch, width] in sizes {
        for kind in Kind::ALL {
            for replicas in [1, 3] {
                let i = i.next();
                all.push(Case::Feature(feature::Case {
                    kind,
                    batch: *batch,
                    rows: if pick(&[true, false], i, 4) { batch.div_ceil(2) } else { *batch },
                    width: *width,
                    replicas,
                    one_teacher: pick(&[true, false], i, 5),
                    weight: pick(&[1.0, 0.3, 50.0], i, 8),
                    padding: padding(i),
                    data: pick(&Data::ALL, i, 1),
                    seed: i as u64,
                }));
            }
        }
    }
    all
}

fn reductions(batches: &[usize]) -> Vec<Case> {
    let of = |(i, batch): (usize, &usize)| {
        [1, 3].map(|replicas| {
            let data = pick(&Data::ALL, i, 1);
            Case::Metrics(metrics::Case {
                batch: *batch,
                replicas,
                padding: padding(i),
                data,
                seed: i as u64,
            })
        })
    };
    batches.iter().enumerate().flat_map(of).collect()
}

fn updates(lens: &[usize]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    let flags = [false, true].into_iter().flat_map(|f| [(f, 0.0), (f, 0.01)]);
    let options = flags.flat_map(|(flag, decay)| [(flag, decay, 1), (flag, decay, 3)]);
    let scales = [None, Some(0.5), Some(0.0)];
    let options: Vec<_> = options.flat_map(|o| scales.map(|scale| (o, scale))).collect();
    for len in lens {
        for ((flag, weight_decay, replicas), scale) in options.clone() {
            let i = i.next();
            // Every option meets ordinary numbers, on which it shows, and in turn the hard ones.
            let data = if replicas == 3 { Data::Random } else { pick(&Data::ALL, i, 1) };
            let lr = pick(&[1e-3, 0.1, 0.5], i, 13);
            let (len, seed) = (*len, i as u64);
            let momentum = pick(&[0.9, 0.0, 0.5], i, 14);
            all.push(Case::Sgd(sgd::Case {
                len,
                replicas,
                nesterov: flag,
                momentum,
                weight_decay,
                lr,
                scale,
                data,
                seed,
            }));
            let adam = Adam {
                beta_1: 0.9,
                beta_2: pick(&[0.999, 0.99], i, 15),
                epsilon: pick(&[1e-8, 1e-7], i, 16),
                weight_decay: f64::from(weight_decay),
                decoupled: flag,
            };
            let step = pick(&[1, 2, 10, 1000], i, 17);
            all.push(Case::Adam(adam::Case {
                len,
                replicas,
                adam,
                keras: pick(&[true, false], i, 18),
                step,
                lr,
                scale,
                data,
                seed,
            }));
        }
    }
    all
}

fn norms(lens: &[usize]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for len in lens {
        for replicas in [1, 3] {
            for clip in [None, Some(0.5), Some(10.0)] {
                let i = i.next();
                let data = pick(&Data::ALL, i, 1);
                all.push(Case::Norm(norm::Case { len: *len, replicas, clip, data, seed: i as u64 }));
            }
        }
    }
    all
}

/// What the tests run.
pub fn thorough() -> Vec<Case> {
    let rest = [
        ensembles(&[[1, 2], [3, 31], [5, 64], [3, 65], [2, 257], [2, 1000]]),
        features(&[[1, 1], [3, 31], [31, 64], [64, 3], [65, 65], [13, 257], [129, 7]]),
        gathers::all(&[[1, 1], [3, 31], [31, 64], [64, 3], [65, 65], [257, 257], [7, 784], [5, 147]]),
        regularizers::dropouts(&[[1, 1], [3, 31], [31, 64], [65, 65], [257, 257]]),
        regularizers::max_norms(&[[1, 1], [3, 31], [64, 3], [65, 257], [7, 1021]]),
        reductions(&[1, 3, 31, 64, 65, 257]),
        norms(&[1, 3, 31, 64, 65, 257, 1021, 66_000]),
        updates(&[1, 3, 31, 64, 65, 257, 1021, 66_000]),
    ];
    [
        matmuls(&MATMUL_SIZES, asked),
        long_products(),
        heads(&HEAD_SIZES),
        wide_heads(),
        losses(&HEAD_SIZES, true),
        losses(&[[2, 152_000]], true),
        rest.concat(),
    ]
    .concat()
}

/// What doctor runs: every choice and every other kernel's variants, on sizes past one tile.
pub fn short() -> Vec<Case> {
    let rest = [
        ensembles(&[[5, 67]]),
        features(&[[67, 31]]),
        gathers::all(&[[65, 33], [31, 65]]),
        regularizers::dropouts(&[[65, 31]]),
        regularizers::max_norms(&[[13, 261]]),
        reductions(&[65]),
        norms(&[1021]),
        updates(&[1021, 33_000]),
    ];
    // As far as the shortest lists of the tests reach, on the tile that compiles soonest.
    let smallest = |c: &Choice| c.splits == 1 && SMALLEST.contains(&c.variant.name);
    let long = long_products().into_iter().filter(|c| c.member().is_some_and(|m| smallest(&m)));
    let products = matmuls(&[[131, 67, 37]], asked_by_doctor);
    let heads = [heads(&[[65, 10], [3, 257]]), wide_heads(), losses(&[[9, 10]; 4], false)].concat();
    [products, long.collect(), heads, rest.concat()].concat()
}
