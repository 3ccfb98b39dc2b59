//! The configuration as a page for people: a table for each section of the annotated default, so that the page cannot say
//! anything else than the file that is built in.

use std::fmt::Write;
use std::ops::RangeInclusive;

use bytesize::ByteSize;

use super::{Config, ConfigError, DEFAULT, ENVIRONMENT_PREFIX};

/// The command that writes the page anew; a test that finds it out of date says it.
pub const RENEW: &str = "cargo run -- config --markdown > docs/configuration.md";

/// A key of the annotated default.
struct Key {
    /// Empty for the keys before the first section.
    section: String,
    name: String,
    default: String,
    /// What the lines above it say, as one paragraph.
    meaning: String,
}

impl Key {
    fn path(&self) -> String {
        if self.section.is_empty() { self.name.clone() } else { format!("{}.{}", self.section, self.name) }
    }

    fn variable(&self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.path().to_uppercase().replace('.', "__"))
    }
}

/// The page, as Markdown.
///
/// # Errors
/// The built-in default is not valid, which a test rules out.
pub fn markdown() -> Result<String, ConfigError> {
    let config = Config::load(None, [], &[])?;
    let ranges = config.ranges();
    let (introduction, keys) = read();
    let mut page = format!(
        "# Configuration\n\n<!-- Made from config/mustela.toml and the ranges in src/config.rs by `{RENEW}`. -->\n\n{introduction}\n\
         `mustela config` prints the annotated default, from which a file of your own can be made. A key or a value that is wrong \
         ends `mustela serve` with the exit status 64, before anything is opened, and says which, from where, and what was expected.\n"
    );
    let mut section = None;
    for key in keys {
        if section.as_ref() != Some(&key.section) {
            let title = if key.section.is_empty() { "The process".to_owned() } else { format!("`[{}]`", key.section) };
            page += &format!("\n## {title}\n\n| key, default, range | variable | what it does |\n|---|---|---|\n");
            section = Some(key.section.clone());
        }
        let range = ranges.iter().find(|(path, ..)| *path == key.path()).map(|(path, _, range)| allowed(path, range));
        let range = range.map(|range| format!("<br>{range}")).unwrap_or_default();
        let (path, default, variable, meaning) = (key.path(), &key.default, key.variable(), &key.meaning);
        // A write to a string cannot fail.
        writeln!(page, "| `{path}`<br>`{default}`{range} | `{variable}` | {meaning} |").ok();
    }
    Ok(page)
}

/// The text before the first key, and all keys, of the annotated default.
fn read() -> (String, Vec<Key>) {
    let (mut introduction, mut keys, mut section) = (None, Vec::new(), String::new());
    let mut above: Vec<&str> = Vec::new();
    for line in DEFAULT.lines() {
        if let Some(text) = line.strip_prefix('#') {
            above.push(text.strip_prefix(' ').unwrap_or(text));
        } else if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((name, default)) = line.split_once(" = ") {
            let meaning = above.join(" ").replace('|', "\\|");
            keys.push(Key { section: section.clone(), name: name.to_owned(), default: default.to_owned(), meaning });
            above.clear();
        } else if introduction.is_none() {
            introduction = Some(paragraphs(&above));
            above.clear();
        }
    }
    (introduction.unwrap_or_default(), keys)
}

/// Comment lines as Markdown: what is indented in them keeps its columns.
fn paragraphs(lines: &[&str]) -> String {
    let mut text = String::new();
    let mut in_block = false;
    for line in lines {
        let is_block = line.starts_with("  ");
        if is_block != in_block {
            text += if is_block { "\n```text\n" } else { "```\n" };
            in_block = is_block;
        }
        text += line.strip_prefix("  ").unwrap_or(line);
        text.push('\n');
    }
    text + if in_block { "```" } else { "" }
}

/// A range in the unit of its key. The largest number of 63 bits stands for no limit.
fn allowed(path: &str, range: &RangeInclusive<u64>) -> String {
    let show = |value: u64| match value {
        0 => "0".to_owned(),
        _ if super::sources::is_size(path) => ByteSize(value).display().iec().to_string().replace(".0 ", " "),
        _ => value.to_string(),
    };
    match *range.end() {
        end if end == u64::MAX >> 1 => format!("from {}", show(*range.start())),
        end => format!("{} to {}", show(*range.start()), show(end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_there_with_what_it_does() {
        let page = markdown().unwrap();
        let (introduction, keys) = read();
        for said in ["Later ones win", "\n```text\nenvironment: MUSTELA_ and", "```\n\nThe unit is the last word"] {
            assert!(introduction.contains(said), "{said} is not in: {introduction}");
        }
        assert_eq!(introduction.matches("```").count(), 2);
        for key in &keys {
            assert!(!key.meaning.is_empty(), "{}", key.path());
            assert_eq!(page.matches(&format!("| `{}`<br>`{}`", key.path(), key.default)).count(), 1, "{}", key.path());
        }
        assert_eq!(keys.len(), DEFAULT.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count());
        assert!(page.contains("| `http.request_seconds`<br>`30`<br>1 to 3600 | `MUSTELA_HTTP__REQUEST_SECONDS` | Time that"));
        assert!(page.contains("<br>`\"64GiB\"`<br>from 16 MiB |"), "{page}");
    }

    #[test]
    fn ranges_are_said_in_the_unit_of_their_key() {
        assert_eq!(allowed("log.cache_bytes", &(1 << 20..=1 << 40)), "1 MiB to 1 TiB");
        assert_eq!(allowed("predict.threads", &(1..=1024)), "1 to 1024");
        assert_eq!(allowed("log.check_bytes_max", &(0..=u64::MAX >> 1)), "from 0");
    }
}
