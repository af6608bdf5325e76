//! Index lists: pure, stratified, nested.

use super::*;
use crate::data::split::*;

fn labels() -> Vec<u32> {
    // 60 of class 0, 30 of class 1, 10 of class 3, 7 without a label; interleaved.
    let mut labels = [vec![0; 60], vec![1; 30], vec![3; 10], vec![UNLABELLED; 7]].concat();
    let order = crate::rng::permutation(9, 0, labels.len() as u32);
    labels = order.iter().map(|&i| labels[i as usize]).collect();
    labels
}

fn count(labels: &[u32], rows: &[u32], class: u32) -> usize {
    rows.iter().filter(|&&row| labels[row as usize] == class).count()
}

#[test]
fn validation_is_a_stratified_partition() {
    let labels = labels();
    let (train, held) = validation(Some(&labels), labels.len(), 0.1, 5).unwrap();
    assert_eq!(held.len(), 11);
    assert_eq!([0, 1, 3].map(|class| count(&labels, &held, class)), [6, 3, 1]);
    let mut all = [train.clone(), held.clone()].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..107));
    assert!(train.is_sorted() && held.is_sorted());
    assert_eq!(validation(Some(&labels), 107, 0.1, 5).unwrap(), (train, held.clone()));
    assert_ne!(validation(Some(&labels), 107, 0.1, 6).unwrap().1, held);
    assert_eq!(validation(None, 107, 0.5, 5).unwrap().1.len(), 54);
    for bad in [0.0, 1.0, -0.5, 1e-9, f64::NAN] {
        assert_eq!(validation(Some(&labels), 107, bad, 5).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn few_labels_are_nested() {
    let labels = labels();
    let five = labels_per_class(&labels, 5, 1).unwrap();
    let ten = labels_per_class(&labels, 10, 1).unwrap();
    assert_eq!([0, 1, 3].map(|class| count(&labels, &five, class)), [5; 3]);
    assert_eq!((five.len(), ten.len()), (15, 30));
    assert!(five.iter().all(|row| ten.contains(row)));
    let error = labels_per_class(&labels, 11, 1).unwrap_err().to_string();
    assert!(error.contains("at most 10") && error.contains("class 3"), "{error}");
    assert!(labels_per_class(&labels, 0, 1).unwrap().is_empty());
}

#[test]
fn a_fraction_keeps_every_class() {
    let labels = labels();
    let rows = label_fraction(&labels, 0.1, 1).unwrap();
    assert_eq!([0, 1, 3].map(|class| count(&labels, &rows, class)), [6, 3, 1]);
    let rows = label_fraction(&labels, 0.001, 1).unwrap();
    assert_eq!([0, 1, 3].map(|class| count(&labels, &rows, class)), [1; 3]);
    assert_eq!(label_fraction(&labels, 1.0, 1).unwrap().len(), 100);
    assert!(label_fraction(&labels, 1.1, 1).is_err());
}

#[test]
fn dropped_classes_are_gone() {
    let labels = labels();
    let rows = drop_classes(&labels, &[0, 3]);
    assert_eq!([0, 1, 3, UNLABELLED].map(|class| count(&labels, &rows, class)), [0, 30, 0, 7]);
    assert_eq!(drop_classes(&labels, &[]).len(), 107);
}

#[test]
fn hold_out_takes_from_training_rows_only() {
    let split = optdigits().unwrap().hold_out(0.1, 3).unwrap();
    let held = split.validation.clone().unwrap();
    assert_eq!((split.train.rows(), held.rows(), split.test.as_ref().unwrap().rows()), (3441, 382, 1797));
    assert_eq!(split.clone().hold_out(0.5, 4).unwrap().validation.unwrap().rows(), 382);
}

#[test]
fn standardised_rows_have_mean_0_and_deviation_1() {
    let n = 1000;
    let x = (0..n).flat_map(|i| [1e4 + (i % 7) as f32, 3.0, -(i as f32)]).collect();
    let set = Dataset::new("x", Elements::F32(x), vec![3], None, None).unwrap();
    let normal = Normalisation::standardised(&set).unwrap();
    normal.check(3).unwrap();
    let mut moments = [[0.0_f64; 2]; 3];
    for row in values(&set).chunks_exact_mut(3) {
        normal.apply(row);
        for (m, &v) in moments.iter_mut().zip(row.iter()) {
            m[0] += f64::from(v) / n as f64;
            m[1] += f64::from(v).powi(2) / n as f64;
        }
    }
    assert_eq!(moments[1], [0.0, 0.0]);
    for m in [moments[0], moments[2]] {
        assert!(m[0].abs() < 1e-3 && (m[1] - 1.0).abs() < 1e-3, "{moments:?}");
    }
    let text = serde_json::to_string(&normal).unwrap();
    assert_eq!(serde_json::from_str::<Normalisation>(&text).unwrap(), normal);
    assert_eq!(serde_json::to_string(&Normalisation::scaled(0.5)).unwrap(), r#"{"scale":0.5}"#);
    assert!(normal.check(4).is_err());
    assert!(Normalisation { scale: f32::NAN, ..normal }.check(3).is_err());
}
