//! What the system says of this process, under the names that all exporters use. Read from `/proc`; on a system without one these
//! families are absent.

use std::fs;

use prometheus::proto::{MetricFamily, MetricType};
use rustix::process::{Resource, getrlimit};

use super::families::single;

/// The unit of times in `/proc` (USER_HZ): the same on every kind of processor that this is built for.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes of the unit in which `/proc/self/status` tells memory.
const KIB: f64 = 1024.0;

pub(super) fn families() -> Vec<MetricFamily> {
    use MetricType::{COUNTER, GAUGE};
    let times = times();
    let told = [
        (COUNTER, "process_cpu_seconds_total", "Processor time, of the user and of the system.", times.map(|times| times.used)),
        (
            GAUGE,
            "process_start_time_seconds",
            "When the process started, since 1970.",
            times.and_then(|times| Some(booted_seconds()? + times.started)),
        ),
        (GAUGE, "process_resident_memory_bytes", "Memory that is resident.", status_bytes("VmRSS:")),
        (GAUGE, "process_virtual_memory_bytes", "Memory that is mapped.", status_bytes("VmSize:")),
        (GAUGE, "process_open_fds", "File descriptors that are open.", open_descriptors()),
        (GAUGE, "process_max_fds", "File descriptors that may be open.", descriptors_max()),
    ];
    told.into_iter().filter_map(|(kind, name, help, value)| Some(single(kind, name, help, value?))).collect()
}

/// Seconds of processor time, and from the system's start to the process's.
#[derive(Clone, Copy, Debug)]
struct Times {
    used: f64,
    started: f64,
}

fn times() -> Option<Times> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets, which may have anything in it; state, the third, comes after the last one.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Times { used: seconds(14)? + seconds(15)?, started: seconds(22)? })
}

fn booted_seconds() -> Option<f64> {
    field(&fs::read_to_string("/proc/stat").ok()?, "btime")
}

fn status_bytes(name: &str) -> Option<f64> {
    Some(field(&fs::read_to_string("/proc/self/status").ok()?, name)? * KIB)
}

/// The number in the line that begins with a word.
fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_descriptors() -> Option<f64> {
    // One of them is the folder that is being read.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

/// Infinite where the system sets no limit.
fn descriptors_max() -> Option<f64> {
    Some(getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |most| most as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_told_as_it_is() {
        let began = times().unwrap().used;
        let mut sum = 0u64;
        while times().unwrap().used < began + 0.05 {
            sum = (0..100_000u64).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = booted_seconds().unwrap() + times().unwrap().started;
        assert!((now - 3600.0 * 24.0..=now + 1.0).contains(&started), "started at {started}, it is {now}");
        let resident = status_bytes("VmRSS:").unwrap();
        assert!(resident > 1e6 && resident < status_bytes("VmSize:").unwrap(), "{resident}");
        let before = open_descriptors().unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(open_descriptors().unwrap() >= 3.0 && before >= 3.0 && before < descriptors_max().unwrap());
        drop(file);
        assert_eq!(families().len(), 6);
    }

    #[test]
    fn a_field_is_found_by_its_line() {
        assert_eq!(field("Name:\tVmRSS: 9\nVmRSS:\t    1184 kB\n", "VmRSS:"), Some(1184.0));
        assert_eq!(field("cpu 1 2\nbtime 1750000000\n", "btime"), Some(1.75e9));
        assert_eq!(field("a\n", "btime"), None);
    }
}
