//! The binary: parse, call the command, turn an error into `error:`, `hint:` and an exit code.

use std::process::ExitCode;

use limbeck::cli;

fn main() -> ExitCode {
    limbeck::gpu::device::install_panic_hook();
    // wgpu speaks through `log`; by default it only says what went wrong.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("off")).init();
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
