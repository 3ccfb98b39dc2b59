//! What the numbers of a flat row mean, where they are not all plain numbers: some may be missing, and some are categories.

/// One column of a stream, as the numbers that a row has of it. No number of a row is ever NaN: what is missing is said beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// One number.
    Number,
    /// Two numbers: the value, and then 1 where it is missing (the value is 0 then) and 0 where it is there.
    Optional,
    /// One number: a bucket, from 0 to before `buckets`.
    Category {
        /// How many there are, the one of missing values included; at least one.
        buckets: usize,
    },
}

impl Column {
    /// How many numbers a row has of it.
    pub fn width(self) -> usize {
        match self {
            Column::Number | Column::Category { .. } => 1,
            Column::Optional => 2,
        }
    }

    /// Each of `columns` with the place of its first number in a row.
    pub fn places(columns: &[Column]) -> impl Iterator<Item = (usize, Column)> + '_ {
        columns.iter().scan(0, |next, &column| {
            let at = *next;
            *next += column.width();
            Some((at, column))
        })
    }

    /// How many numbers a row has.
    pub fn total_width(columns: &[Column]) -> usize {
        columns.iter().map(|column| column.width()).sum()
    }

    /// Whether it is a category.
    pub fn is_category(self) -> bool {
        matches!(self, Column::Category { .. })
    }
}
