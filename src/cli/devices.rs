//! `limbeck devices`

use crate::cli::common::DeviceArgs;
use crate::error::{Error, Result};
use crate::gpu::surroundings::Surroundings;
use crate::gpu::{Gpu, adapter};
use crate::report::table;

/// Lists every adapter with its limits and features; `*` marks the one that a run would take.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let choice = args.device.choice();
    let adapters = adapter::list(&choice)?;
    let surroundings = Surroundings::look();
    if args.json {
        println!(
            "{}",
            serde_json::json!({"schema_version": 1, "adapters": adapters, "surroundings": surroundings})
        );
    } else if !adapters.is_empty() {
        let mut rows = vec![
            [
                "", "adapter", "type", "backend", "driver", "subgroup", "f16", "times", "buffer", "binding",
                "group",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        let mib = |b: u64| match b >> 20 {
            m if m >= 1 << 20 => "any".to_owned(),
            m => format!("{m} MiB"),
        };
        let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
        for a in &adapters {
            let subgroup = match a.subgroup {
                _ if !a.subgroups => "no".to_owned(),
                [low, high] if low == high => low.to_string(),
                [low, high] => format!("{low}-{high}"),
            };
            rows.push(vec![
                format!("{}{}", a.index, if a.chosen { " *" } else { "" }),
                a.name.clone(),
                a.kind.to_string(),
                a.backend.clone(),
                a.driver.clone(),
                subgroup,
                yes(a.f16),
                yes(a.timestamps),
                mib(a.max_buffer),
                mib(a.max_binding),
                format!("{} x {} KiB", a.workgroup_invocations, a.workgroup_memory >> 10),
            ]);
        }
        print!("{}", table::render(&rows));
        println!(
            "\n* is what a run takes. `subgroup`: lanes that run together; `times`: device timestamps;\n\
             `buffer`, `binding`: the largest buffer and the part of one that a kernel sees at once;\n\
             `group`: invocations and memory of a workgroup."
        );
    }
    if adapters.iter().any(|a| a.chosen) {
        return Ok(());
    }
    // Nothing usable is exit code 3, with the reason that a run would give.
    match Gpu::open(&choice) {
        Err(e) => Err(e),
        Ok(_) => Err(Error::Run("the adapters changed while they were listed".to_owned())),
    }
}
