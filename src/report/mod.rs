//! What people and machines read: metrics files, tables, intervals, progress.

pub mod metrics_file;
pub mod progress;
pub mod quality;
pub mod stats;
pub mod table;
