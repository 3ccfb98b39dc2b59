//! The binary.

#[global_allocator]
static ALLOCATOR: mustela::allocator::Counting = mustela::allocator::Counting;

fn main() {}
