//! The binary: all it adds to the library is the allocator.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mustela::allocator::Counting = mustela::allocator::Counting;

fn main() -> ExitCode {
    mustela::cli::run(std::env::args_os())
}
