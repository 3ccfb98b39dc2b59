//! How fast rows come: a robust estimate of the time between two of them.
//!
//! Posts are gathered into blocks of at least [`BLOCK`], each with its time and its rows. The estimate is the median of the blocks'
//! times per row, where each block counts as often as it has rows: a pause of an hour is one block with few rows, and a burst does
//! not last.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::fold::Sequence;

/// The shortest block.
const BLOCK: Duration = Duration::from_millis(50);
/// Blocks that are remembered, and fewer than which tell nothing.
const BLOCKS: usize = 64;
const BLOCKS_LEAST: usize = 4;

/// The newest blocks of a stream.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// When the block that is being gathered began, and after which row.
    begun: Option<(Instant, Sequence)>,
    blocks: VecDeque<Block>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    began: Instant,
    nanoseconds_per_row: u64,
    rows: u64,
}

impl Arrivals {
    /// Notes that the rows up to `head` are there.
    pub(super) fn note(&mut self, head: Sequence, now: Instant) {
        let Some((began, first)) = self.begun else {
            self.begun = Some((now, head));
            return;
        };
        let (time, rows) = (now.duration_since(began), head.saturating_sub(first));
        if time < BLOCK || rows == 0 {
            return;
        }
        if self.blocks.len() == BLOCKS {
            self.blocks.pop_front();
        }
        let nanoseconds_per_row = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / rows;
        self.blocks.push_back(Block { began, nanoseconds_per_row, rows });
        self.begun = Some((now, head));
    }

    /// Between two rows since `after` (none: ever); none while too little has come.
    pub(super) fn row_interval(&self, after: Option<Instant>) -> Option<Duration> {
        let newer = self.blocks.iter().filter(|block| after.is_none_or(|after| block.began > after));
        let mut blocks: Vec<(u64, u64)> = newer.map(|block| (block.nanoseconds_per_row, block.rows)).collect();
        if blocks.len() < BLOCKS_LEAST {
            return None;
        }
        blocks.sort_unstable();
        let all: u64 = blocks.iter().map(|(_, rows)| rows).sum();
        let mut before = 0;
        let median = blocks.into_iter().find(|(_, rows)| {
            before += rows;
            2 * before >= all
        });
        median.map(|(nanoseconds, _)| Duration::from_nanos(nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is estimated after posts that come so many milliseconds after each other, with so many rows.
    fn estimate(posts: impl IntoIterator<Item = (u64, u64)>) -> Option<Duration> {
        let (mut arrivals, mut now, mut head) = (Arrivals::default(), Instant::now(), 0);
        for (after, rows) in posts {
            (now, head) = (now + Duration::from_millis(after), head + rows);
            arrivals.note(head, now);
        }
        arrivals.row_interval(None)
    }

    #[test]
    fn the_median_is_not_moved_by_pauses_and_bursts() {
        let steady = || std::iter::repeat_n((10, 20), 200);
        assert_eq!(estimate(steady()), Some(Duration::from_micros(500)));
        let pauses = steady().chain([(3_600_000, 20)]).chain(steady()).chain([(60_000, 20)]);
        assert_eq!(estimate(pauses), Some(Duration::from_micros(500)));
        let burst = steady().chain(std::iter::repeat_n((0, 100), 10)).chain(steady());
        assert_eq!(estimate(burst), Some(Duration::from_micros(500)));
    }

    #[test]
    fn rare_posts_of_many_rows_count_by_their_rows() {
        assert_eq!(estimate(std::iter::repeat_n((1000, 1000), 20)), Some(Duration::from_millis(1)));
        assert_eq!(estimate([(0, 10), (100, 10), (100, 10)]), None);
    }

    #[test]
    fn what_came_before_a_moment_is_left_out() {
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        for (number, milliseconds) in [0, 100, 200, 300, 400, 500, 510, 570, 630, 690, 750, 810].into_iter().enumerate() {
            arrivals.note(20 * number as u64, start + Duration::from_millis(milliseconds));
        }
        assert_eq!(arrivals.row_interval(Some(start + Duration::from_millis(505))), Some(Duration::from_millis(3)));
        assert_eq!(arrivals.row_interval(Some(start + Duration::from_millis(700))), None);
    }

    #[test]
    fn it_follows_a_change() {
        let slower = std::iter::repeat_n((10, 20), 1000).chain(std::iter::repeat_n((100, 20), 200));
        assert_eq!(estimate(slower), Some(Duration::from_millis(5)));
    }
}
