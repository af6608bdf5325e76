//! Students on several devices at once are those of one device, bit for bit.

use limbeck::data::{Dataset, Elements};
use limbeck::distill::infer::Inference;
use limbeck::distill::{Guard, Loss, Member, Regularize, Teacher};
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::ensemble::Rule;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::Mlp;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::train::shares::{Trained, Whole};
use limbeck::train::{Length, Recipe, Replica, Rows};

use crate::same_bits::ADAM;

const STUDENTS: u64 = 5;

fn network(hidden: usize, seed: u64) -> Weights {
    Weights::init(&[64, hidden, 10], Activation::Relu, Initializer::He, seed).expect("weights")
}

fn whole<'a>(gpu: &'a Gpu, data: &'a Dataset, teacher: &'a Teacher, rows: Rows) -> Whole<'a> {
    let recipe = Recipe {
        batch: 32,
        accumulate: 1,
        length: Length::Steps(23),
        optimizer: ADAM,
        shuffle: true,
        log_every: 5,
        guard: Guard { clip: Some(0.5), skip: false },
        features: vec![],
        regularize: Regularize { dropout: 0.3, ..Regularize::default() },
    };
    let replica = |seed| Replica {
        seed,
        lr: 0.01 * (1.0 + seed as f64),
        loss: Loss { temperature: 3.0, hard_weight: 0.3, soft_weight: 0.7, ..Loss::HARD },
        schedules: Default::default(),
        student: network(12, seed),
    };
    Whole {
        gpu,
        data,
        rows,
        teacher,
        recipe,
        replicas: (0..STUDENTS).map(replica).collect(),
        let_fall: false,
    }
}

fn hashes(trained: &Trained) -> Vec<String> {
    trained.students.iter().map(Weights::sha256).collect()
}

#[test]
fn students_on_several_devices_have_the_bits_of_one() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let data = limbeck::data::optdigits().expect("embedded").train;
    let mlp = |networks: &[Weights]| Mlp::upload(&gpu, "teacher", networks).expect("memory");
    let one = mlp(&[network(20, 99)]);
    let cached = || Inference::record(&gpu, &one, &data, 500).expect("a plan").cache(&gpu).expect("logits");
    let logits = vec![0.25; data.rows() * 10];
    let kept = Dataset::new("logits", Elements::F32(logits), vec![10], None, None).expect("rows");
    let several = vec![
        Member::Live(one.clone(), None),
        Member::Cached(cached()),
        Member::Rows(std::sync::Arc::new(kept), None),
    ];
    let own: Vec<Weights> = (0..STUDENTS).map(|seed| network(20, 50 + seed)).collect();
    let teachers = [
        Teacher::None,
        Teacher::Live(one.clone()),
        // One to a student.
        Teacher::Live(mlp(&own)),
        Teacher::Cached(cached()),
        Teacher::Ensemble(several, Rule::Arithmetic),
    ];
    let labels = data.labels.clone().expect("labels");
    let shifted = |by: usize| (0..300).map(|i| (i * 7 + by as u32) % 3000).collect::<Vec<u32>>();
    let rows = [
        Rows { walked: vec![shifted(0)], ..Rows::default() },
        // One list to a student.
        Rows {
            walked: (0..STUDENTS as usize).map(shifted).collect(),
            labels: (0..STUDENTS as u32).map(|by| labels.iter().map(|l| (l + by) % 10).collect()).collect(),
            ..Rows::default()
        },
    ];
    for (i, teacher) in teachers.iter().enumerate() {
        let whole = whole(&gpu, &data, teacher, rows[i % 2].clone());
        let mut shown = [vec![], vec![]];
        let train = |share: usize, shown: &mut Vec<(u64, u64)>| {
            let trained = whole.train(share, |row| {
                if row.replica == 0 {
                    shown.push((row.step, row.loss.to_bits()));
                }
                Ok(())
            });
            hashes(&trained.expect("it trains"))
        };
        let alone = train(STUDENTS as usize, &mut shown[0]);
        assert_eq!(alone.iter().collect::<std::collections::BTreeSet<_>>().len(), STUDENTS as usize);
        assert_eq!(alone, train(2, &mut shown[1]), "teacher {i}");
        assert_eq!(shown[0], shown[1], "teacher {i}: the first student's rows");
        assert_eq!(shown[0].last().map(|row| row.0), Some(whole.steps()));
    }
}

/// A student of the second device overflows: alone it falls, or it ends what the others do.
#[test]
fn a_share_that_fails_ends_all() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let data = limbeck::data::optdigits().expect("embedded").train;
    let mut whole = whole(&gpu, &data, &Teacher::None, Rows::default());
    whole.recipe.guard = Guard::default();
    whole.replicas[3].lr = 1e30;
    let said = whole.train(2, |_| Ok(())).err().expect("not finite").to_string();
    assert!(said.contains("replica 3"), "{said}");
    whole.let_fall = true;
    let [one, two] = [5, 2].map(|share| whole.train(share, |_| Ok(())).expect("the others train"));
    assert_eq!(one.fallen, two.fallen);
    assert_eq!(
        two.fallen.iter().map(Option::is_some).collect::<Vec<_>>(),
        [false, false, false, true, false]
    );
    assert_eq!(hashes(&one)[4], hashes(&two)[4]);
    // What the caller says ends all of them too.
    let stop =
        whole.train(2, |_| Err(limbeck::Error::Run("enough".to_owned()))).err().expect("its own error");
    assert!(stop.to_string().contains("enough"), "{stop}");
}
