//! Admission credits: a step enters only when its worst-case bytes are reserved at once, so no two steps can each hold half of
//! what they need and wait for the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The bytes that steps in flight may hold together.
#[derive(Debug)]
pub struct Credits {
    free: Arc<AtomicU64>,
}

/// A step's reservation, given back when this is dropped.
#[derive(Debug)]
pub struct Credit {
    free: Arc<AtomicU64>,
    bytes: u64,
}

impl Credits {
    /// Credits of `bytes` in all.
    pub fn new(bytes: u64) -> Credits {
        Credits { free: Arc::new(AtomicU64::new(bytes)) }
    }

    /// Reserves `bytes`, or nothing at all.
    pub fn reserve(&self, bytes: u64) -> Option<Credit> {
        self.free.try_update(Relaxed, Relaxed, |free| free.checked_sub(bytes)).ok()?;
        Some(Credit { free: self.free.clone(), bytes })
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.free.fetch_add(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_whole_or_not_at_all() {
        let credits = Credits::new(100);
        let first = credits.reserve(60).unwrap();
        assert!(credits.reserve(41).is_none());
        let second = credits.reserve(40).unwrap();
        assert!(credits.reserve(1).is_none());
        drop(first);
        assert!(credits.reserve(60).is_some());
        drop(second);
        assert!(credits.reserve(100).is_some());
    }
}
