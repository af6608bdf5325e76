//! Which adapter this run's tests stand on.
//!
//! `make test-drivers` runs the suite once per driver and tells this test which one it asked for:
//! a driver that the loader passed over, or a vector width that the driver ignored, would otherwise
//! look like a pass.

use limbeck::gpu::{AdapterChoice, Gpu};

#[test]
fn the_adapter_is_the_one_asked_for() {
    let gpu = Gpu::open(&AdapterChoice::default()).unwrap_or_else(|e| panic!("{e}"));
    let (report, lanes) = (&gpu.report, gpu.report.subgroup);
    println!("adapter: {}, subgroups of {lanes:?}", report.line());
    if let Ok(name) = std::env::var("LIMBECK_TEST_ADAPTER") {
        assert!(report.name.contains(&name), "asked for {name}, got {}", report.line());
    }
    if let Ok(wanted) = std::env::var("LIMBECK_TEST_LANES") {
        let wanted: u32 = wanted.parse().expect("LIMBECK_TEST_LANES is a number");
        assert_eq!(lanes, [wanted, wanted], "subgroup sizes of {}", report.line());
    }
}
