//! Runs that can be trusted: the same bits however they are cut, killed, resumed or replayed.

mod accumulate;
mod bench;
mod faults;
mod guard;
#[cfg(unix)]
mod interrupt;
mod limits;
mod replay;
mod same_bits;
mod shares;
#[cfg(target_os = "linux")]
mod soak;
