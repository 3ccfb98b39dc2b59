//! Every key is in the file and in the struct, can be set from each source, and is refused with all that a person needs.

use std::collections::BTreeMap;
use std::io::Write;

use super::sources::is_other;
use super::*;

fn default() -> Config {
    Config::load(None, [], &[]).unwrap()
}

fn environment(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(None, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())), &[])
}

fn flag(key: &str, value: &str) -> Result<Config, ConfigError> {
    Config::load(None, [], &[(key.to_owned(), value.to_owned())])
}

/// A file that is gone when it is dropped; its name ends in `own.toml`.
fn written(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix("own.toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn file(text: &str) -> Result<Config, ConfigError> {
    Config::load(Some(written(text).path()), [], &[])
}

/// The leaves of a configuration, by key.
fn leaves(config: &Config) -> BTreeMap<String, serde_json::Value> {
    let mut found = BTreeMap::new();
    let serde_json::Value::Object(top) = serde_json::to_value(config).unwrap() else { panic!("not an object") };
    for (name, value) in top {
        match value {
            serde_json::Value::Object(section) => {
                found.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            leaf => drop(found.insert(name, leaf)),
        }
    }
    found
}

/// The keys of the annotated file, read without the code above.
fn keys_of_the_file() -> Vec<String> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in DEFAULT.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.push(format!("{section}{key}"));
        }
    }
    keys.sort();
    keys
}

/// Another value than the default that is in range beside the other defaults.
fn other(key: &str, value: &serde_json::Value) -> String {
    match (key, value) {
        ("log_format", _) => "json".to_owned(),
        ("data_dir", _) => "/srv/elsewhere".to_owned(),
        ("memory.ceiling", _) => "3GiB".to_owned(),
        ("http.body_bytes_max", _) => "1MiB".to_owned(),
        ("http.wait_seconds_max", _) => "7".to_owned(),
        (_, serde_json::Value::Number(number)) => (number.as_u64().unwrap() + 1).to_string(),
        _ => "[::1]:0".to_owned(),
    }
}

#[test]
fn file_and_struct_have_the_same_keys_and_each_key_a_comment() {
    let keys = keys_of_the_file();
    assert_eq!(keys, leaves(&default()).into_keys().collect::<Vec<_>>());
    let lines: Vec<&str> = DEFAULT.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#')) {
        assert!(pair[0].starts_with("# "), "no comment above `{}`", pair[1]);
    }
}

#[test]
fn every_number_has_a_range() {
    let config = default();
    let numbers: Vec<String> = leaves(&config).into_iter().filter(|(_, value)| value.is_u64()).map(|(key, _)| key).collect();
    let mut ranged: Vec<&str> = config.ranges().iter().map(|(key, ..)| *key).collect();
    ranged.sort_unstable();
    assert_eq!(numbers, ranged);
}

#[test]
fn every_key_can_be_set_by_environment_and_by_flag() {
    for (key, value) in leaves(&default()) {
        let text = other(&key, &value);
        let name = format!("MUSTELA_{}", key.to_uppercase().replace('.', "__"));
        let by_environment = environment(&[(&name, &text)]).unwrap_or_else(|error| panic!("{name}={text}: {error}"));
        assert_ne!(leaves(&by_environment)[&key], value, "{name}={text}");
        assert_eq!(flag(&key, &text).unwrap(), by_environment, "{key}={text}");
        let changed = leaves(&by_environment).into_iter().filter(|(key, value)| leaves(&default())[key] != *value).count();
        assert_eq!(changed, 1, "{name} changes nothing else");
    }
}

#[test]
fn later_sources_win() {
    let file = written("[compute]\nthreads = 1\nnice = 1\n[predict]\nthreads = 1\n");
    let variables = [("MUSTELA_COMPUTE__THREADS", "2"), ("MUSTELA_COMPUTE__NICE", "2")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::load(Some(file.path()), variables, &[("compute.threads".to_owned(), "3".to_owned())]).unwrap();
    assert_eq!((config.compute.threads, config.compute.nice, config.predict.threads), (3, 2, 1));
    assert_eq!(config.http, default().http);
}

#[test]
fn sizes_are_text_or_numbers() {
    for (text, bytes) in [("64MiB", 64 << 20), ("64 MiB", 64 << 20), ("64MB", 64_000_000), ("1048577", 1_048_577)] {
        assert_eq!(flag("log.cache_bytes", text).unwrap().log.cache_bytes, bytes, "{text}");
    }
    assert_eq!(file("[log]\ncache_bytes = 1048577\n").unwrap().log.cache_bytes, 1_048_577);
}

#[test]
fn what_is_wrong_is_said_in_full() {
    let check = |result: Result<Config, ConfigError>, parts: &[&str]| {
        let message = result.unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    };
    check(flag("http.nope", "1"), &["`http.nope`", "by a flag", "request_seconds"]);
    check(environment(&[("MUSTELA_NOPE", "1")]), &["`nope`", "MUSTELA_NOPE", "data_dir"]);
    check(environment(&[("MUSTELA_HTTP", "1")]), &["`http` is `1`", "MUSTELA_HTTP", "a section"]);
    check(
        environment(&[("MUSTELA_HTTP__REQUEST_SECONDS", "soon")]),
        &["`http.request_seconds` is `soon`", "MUSTELA_HTTP__REQUEST_SECONDS", "a whole number"],
    );
    check(flag("http.request_seconds", "-1"), &["`-1`", "a whole number, not negative"]);
    check(file("[http]\nrequest_seconds = 1.5\n"), &["`1.5`", "own.toml", "a whole number"]);
    check(file("[http]\nrequest_seconds = true\n"), &["`true`", "a whole number"]);
    check(file("[http]\nrequest_second = 3\n"), &["`http.request_second`", "own.toml", "request_seconds"]);
    check(file("data_dir = 3\n"), &["`data_dir` is `3`", "text"]);
    check(file("[http\n"), &["own.toml"]);
    check(flag("data_dir", ""), &["`data_dir`", "text"]);
    check(flag("log.cache_bytes", "64 parsecs"), &["`64 parsecs`", "64MiB"]);
    check(flag("listen", "localhost"), &["`listen` is `localhost`", "by a flag", "127.0.0.1:7070"]);
    check(flag("memory.ceiling", "most"), &["`memory.ceiling` is `most`", "by a flag", "1% to 100%"]);
    check(flag("log_format", "loud"), &["`log_format` is `loud`", "by a flag", "auto, human, json"]);
    check(flag("compute.nice", "300"), &["`compute.nice` is `300`", "by a flag"]);
    check(Config::load(Some(Path::new("/nowhere.toml")), [], &[]), &["/nowhere.toml"]);
}

#[test]
fn ranges_hold_at_the_limit_and_one_past_it() {
    for (key, _, range) in default().ranges() {
        // What must hold between keys comes after the ranges of each, so it is enough that the message is another one.
        let beyond = range.end() + 1;
        let message = flag(key, &beyond.to_string()).unwrap_err().to_string();
        if key != "compute.nice" || beyond < 256 {
            assert!(message.contains(&format!("expected {} to {}", range.start(), range.end())), "{message}");
        }
        if let Err(error) = flag(key, &range.end().to_string()) {
            assert!(error.to_string().contains("which is"), "{key}: {error}");
        }
    }
}

#[test]
fn keys_are_held_to_each_other() {
    for (key, value) in [("http.decoded_bytes_max", "1MiB"), ("http.wait_seconds_max", "30"), ("log.retain_bytes", "65GiB")] {
        let message = flag(key, value).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("by a flag") && message.contains("which is"), "{message}");
    }
    assert!(flag("http.decoded_bytes_max", "32MiB").is_ok());
    assert!(flag("http.wait_seconds_max", "29").is_ok());
    assert!(flag("log.retain_bytes", "64GiB").is_ok());
}

#[test]
fn variables_that_are_no_keys_are_passed_over() {
    let others = [
        ("PATH", "/bin"),
        ("MUSTELA_CONFIG", "x"),
        ("MUSTELA_LOG", "debug"),
        ("MUSTELA_URL", "http://127.0.0.1:7070"),
        ("MUSTELA_SERVICE_HOST", "10.0.0.1"),
        ("MUSTELA_PORT", "tcp://10.0.0.1:7070"),
        ("MUSTELA_PORT_7070_TCP_ADDR", "10.0.0.1"),
        ("MUSTELA_READ_SERVICE_PORT_HTTP", "7070"),
    ];
    assert_eq!(environment(&others).unwrap(), default());
    assert!(keys_of_the_file().iter().all(|key| !is_other(&format!("MUSTELA_{}", key.to_uppercase().replace('.', "__")))));
}

#[test]
fn settings_are_split_at_the_first_equals_sign() {
    assert_eq!(parse_setting("a.b = c=d").unwrap(), ("a.b".to_owned(), "c=d".to_owned()));
    assert!(parse_setting("a.b").is_err());
}
