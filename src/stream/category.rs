//! The bucket of a word in a categorical column: a number that follows from the column's name and the word alone.
//!
//! Buckets are in the log and in what models have learned, so this hash may never change. It is BLAKE3 keyed with what
//! `derive_key("mustela categories 1", name)` gives; its first eight bytes as a little-endian number, modulo the column's buckets,
//! plus 1. Bucket 0 is that of missing values. Two words of one column may share a bucket; more buckets make that rarer.

const CONTEXT: &str = "mustela categories 1";

/// The bucket of missing values.
pub const MISSING: u32 = 0;

/// What hashes the words of one column.
#[derive(Clone, Copy, Debug)]
pub struct Hash {
    key: [u8; 32],
    buckets: u32,
}

impl Hash {
    /// Of the column `name`, whose words have `buckets` buckets; at least one.
    pub fn new(name: &str, buckets: usize) -> Hash {
        let buckets = u32::try_from(buckets).unwrap_or(u32::MAX).max(1);
        Hash { key: blake3::derive_key(CONTEXT, name.as_bytes()), buckets }
    }

    /// The bucket of a word, from 1 to the number of buckets.
    pub fn bucket(&self, word: &str) -> u32 {
        let hash = blake3::keyed_hash(&self.key, word.as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        // Less than the number of buckets, which is a u32.
        1 + (u64::from_le_bytes([a, b, c, d, e, f, g, h]) % u64::from(self.buckets)) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_those_that_logs_hold() {
        let cases = [
            ("carrier", 256, "AA"),
            ("carrier", 256, "UA"),
            ("carrier", 65_536, "AA"),
            ("origin", 256, "AA"),
            ("city", 1000, "Zürich"),
            ("flag", 2, "true"),
            ("flag", 2, "17"),
        ];
        let buckets = cases.map(|(name, buckets, word)| Hash::new(name, buckets).bucket(word));
        assert_eq!(buckets, [255, 114, 6399, 52, 178, 1, 1]);
    }

    #[test]
    fn words_fill_their_buckets() {
        let hash = Hash::new("word", 16);
        let mut counts = [0; 17];
        for word in 0..16_000 {
            counts[hash.bucket(&word.to_string()) as usize] += 1;
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn a_bucket_follows_from_name_and_word_alone(name in ".{1,40}", word in ".{0,80}", buckets in 2usize..=65_536) {
            let bucket = Hash::new(&name, buckets).bucket(&word);
            prop_assert!((1..=buckets as u32).contains(&bucket));
            prop_assert_eq!(bucket as f32 as u32, bucket, "exact in the log");
            prop_assert_eq!(Hash::new(&name, buckets).bucket(&word), bucket);
            // By the words of this file's head.
            let key = blake3::Hasher::new_derive_key("mustela categories 1").update(name.as_bytes()).finalize();
            let hash = blake3::Hasher::new_keyed(key.as_bytes()).update(word.as_bytes()).finalize();
            let number = hash.as_bytes()[..8].iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
            prop_assert_eq!(u64::from(bucket), 1 + number % buckets as u64);
        }
    }
}
