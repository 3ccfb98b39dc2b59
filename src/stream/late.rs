//! Late labels: which rows of a stream wait for theirs, by their ids.
//!
//! A label names its row by id, and the log is read by sequence number: this is where the one becomes the other, at the door, so
//! that what is stored in the log needs no index. Ids are kept for as many numbers as the stream's window has, as 16 bytes of their
//! blake3, and are read from the log again at a start. Whether a label comes in time is not decided here: each model does, by its
//! place in the log.

use std::collections::{BTreeMap, VecDeque};

use crate::fold::Sequence;
use crate::rows::Rows;

use super::record::Label;

/// An id, in a few bytes.
pub(super) type IdHash = [u8; 16];

/// The hash of an id.
pub(super) fn id_hash(id: &str) -> IdHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
    hash
}

/// The rows that have no label: their places from 0, and their ids.
pub(super) fn unlabelled(rows: &Rows) -> Vec<(u64, IdHash)> {
    let (Some(ids), Some(target)) = (&rows.ids, &rows.target) else { return Vec::new() };
    let late = ids.iter().enumerate().filter(|(row, _)| !target.is_known(*row));
    late.map(|(row, id)| (row as u64, id_hash(id))).collect()
}

/// The rows that labels have found: their numbers and ids.
pub(super) fn found(labels: &[Label]) -> Vec<(Sequence, IdHash)> {
    labels.iter().filter_map(|label| Some((label.at?, id_hash(&label.row)))).collect()
}

/// Rows of the newest numbers that wait for their labels.
#[derive(Debug)]
pub(super) struct Late {
    window: u64,
    by_id: BTreeMap<IdHash, Sequence>,
    in_order: VecDeque<(Sequence, IdHash)>,
}

impl Late {
    /// Nothing waits; rows are remembered for `window` further numbers.
    pub(super) fn new(window: u64) -> Late {
        Late { window, by_id: BTreeMap::new(), in_order: VecDeque::new() }
    }

    /// Rows have come, the first of their post with the number `first`. Of two rows with one id the newer is meant.
    pub(super) fn arrive(&mut self, first: Sequence, rows: Vec<(u64, IdHash)>) {
        for (place, id) in rows {
            self.by_id.insert(id, first + place);
            self.in_order.push_back((first + place, id));
        }
    }

    /// The row with this id, if it waits.
    pub(super) fn find(&self, id: &IdHash) -> Option<Sequence> {
        self.by_id.get(id).copied()
    }

    /// Labels of these rows have come. A row with the id of one of them may be newer than it, or than its label: that one waits on.
    pub(super) fn label(&mut self, rows: &[(Sequence, IdHash)]) {
        for (row, id) in rows {
            if self.by_id.get(id) == Some(row) {
                self.by_id.remove(id);
            }
        }
    }

    /// The log has come to `head`: rows that are too old for their labels are forgotten.
    pub(super) fn advance(&mut self, head: Sequence) {
        while let Some(&(row, id)) = self.in_order.front()
            && row + self.window <= head
        {
            self.in_order.pop_front();
            if self.by_id.get(&id) == Some(&row) {
                self.by_id.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::record::LabelValue;

    #[test]
    fn a_label_that_found_no_row_leaves_one_that_came_before_it_could_be_written_down() {
        let label = |row: &str, at| Label {
            row: row.to_owned(),
            at,
            value: LabelValue::Class(0),
            source: None,
            weight: 1.0,
            supersedes: None,
        };
        let [a, b] = ["a", "b"].map(id_hash);
        let mut late = Late::new(10);
        // When the labels were sent, there was no `a`, and 1 was the only `b`.
        late.arrive(1, vec![(0, b), (1, a), (2, b)]);
        late.label(&found(&[label("a", None), label("b", Some(1))]));
        assert_eq!((late.find(&a), late.find(&b)), (Some(2), Some(3)));
        late.label(&found(&[label("a", Some(2)), label("b", Some(3))]));
        assert_eq!((late.find(&a), late.find(&b)), (None, None));
    }

    #[test]
    fn rows_are_found_until_they_are_labelled_or_too_old() {
        let [a, b] = ["a", "b"].map(id_hash);
        let mut late = Late::new(10);
        late.arrive(5, vec![(0, a), (2, b)]);
        assert_eq!((late.find(&a), late.find(&b)), (Some(5), Some(7)));
        late.label(&[(7, b)]);
        assert_eq!((late.find(&a), late.find(&b)), (Some(5), None));
        late.arrive(9, vec![(0, a)]);
        late.advance(14);
        assert_eq!(late.find(&a), Some(9), "5 is still remembered, and 9 is meant");
        late.advance(15);
        assert_eq!(late.find(&a), Some(9), "5 is forgotten, and not what is newer");
        late.advance(18);
        assert_eq!(late.find(&a), Some(9));
        late.advance(19);
        assert_eq!(late.find(&a), None);
    }
}
