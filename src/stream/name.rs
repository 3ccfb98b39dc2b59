//! Names of streams and models: they become parts of paths, labels and messages, so they are plain.

use crate::limits::NAME_BYTES_MAX;

/// Whether `name` matches `^[a-z0-9][a-z0-9_-]{0,63}$`; what is wrong with it where it does not.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || byte == b'_' || byte == b'-');
    if good {
        return Ok(());
    }
    Err(format!("`{name}` is not a name: 1 to {NAME_BYTES_MAX} of a-z, 0-9, _ and -, beginning with a letter or digit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "0", "fashion-mnist_2", &"n".repeat(64)] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a/b", "..", "ä", "a b", &"n".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
