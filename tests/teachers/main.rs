//! Teachers from outside: logits on disk, ensembles, few labels, transfer sets, streamed rows; and what a
//! bad input leaves behind.

mod bench;
mod files;
mod input;
mod logits;
mod losses;
mod quality;
mod repair;
mod rows;
mod sweep;
mod tables;
