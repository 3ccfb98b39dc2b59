//! The machine's memory, and what of it this process may hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of memory: bytes, or a part of some whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many hundredths, 1 to 100.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

/// What is no amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a size, such as 2GiB, or a percentage from 1% to 100%")]
pub struct AmountError;

impl Amount {
    /// The amount in bytes, where the whole is `whole_bytes`.
    pub fn of(self, whole_bytes: u64) -> u64 {
        match self {
            // Not more than the whole, so it fits again.
            Amount::Percent(percent) => (u128::from(whole_bytes) * u128::from(percent) / 100) as u64,
            Amount::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Amount, AmountError> {
        match text.strip_suffix('%') {
            Some(percent) => match percent.trim_end().parse() {
                Ok(percent @ 1..=100) => Ok(Amount::Percent(percent)),
                _ => Err(AmountError),
            },
            None => text.parse().map(|ByteSize(bytes)| Amount::Bytes(bytes)).map_err(|_| AmountError),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Amount::Percent(percent) => serializer.serialize_str(&format!("{percent}%")),
            Amount::Bytes(bytes) => serializer.serialize_u64(*bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Wire {
            Number(u64),
            Text(String),
        }
        let amount = match Wire::deserialize(deserializer) {
            Ok(Wire::Number(bytes)) => Ok(Amount::Bytes(bytes)),
            Ok(Wire::Text(text)) => text.parse(),
            Err(_) => Err(AmountError),
        };
        amount.map_err(serde::de::Error::custom)
    }
}

/// What the process may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub ceiling_bytes: u64,
    /// What of it is no model's, less than all.
    pub reserved_bytes: u64,
}

impl Room {
    /// The room under a ceiling, on a machine of `machine_bytes`.
    ///
    /// # Errors
    /// Nothing is left for models, or the machine's memory would have to be known and is not.
    pub fn new(ceiling: Amount, machine_bytes: Option<u64>, reserved_bytes: u64) -> Result<Room, String> {
        let ceiling_bytes = match (ceiling, machine_bytes) {
            (Amount::Percent(percent), None) => {
                return Err(format!(
                    "memory.ceiling is {percent}% of the machine's memory, which cannot be read here: set it to a size, such as 2GiB"
                ));
            }
            (ceiling, machine_bytes) => ceiling.of(machine_bytes.unwrap_or_default()),
        };
        if ceiling_bytes <= reserved_bytes {
            return Err(format!(
                "nothing is left for models: memory.ceiling comes to {ceiling_bytes} bytes, and log.cache_bytes and \
                 memory.reserve_bytes keep {reserved_bytes} bytes of it"
            ));
        }
        Ok(Room { ceiling_bytes, reserved_bytes })
    }

    /// What is left for all models together.
    pub fn models_bytes(self) -> u64 {
        self.ceiling_bytes - self.reserved_bytes
    }
}

/// The memory that there is: the machine's, or the least that a control group around this process leaves of it. None where the
/// system does not say.
pub fn machine_bytes() -> Option<u64> {
    least(|path| fs::read_to_string(path).ok())
}

fn least(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|file| read(&file)?.trim().parse().ok());
    machine.into_iter().chain(limits).min()
}

/// The machine's memory, from `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let kibibytes = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
    kibibytes.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the limits may stand of the control groups that `/proc/self/cgroup` names and of those around them, in either version.
/// A container may see its own group as the root, so paths that are not there are no fault.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut words = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (words.next(), words.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            named if named.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        files.extend(Path::new(path.trim_start_matches('/')).ancestors().map(|group| Path::new(root).join(group).join(name)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16384 kB\nMemFree:         1024 kB\n";

    /// What there is where these files are all.
    fn of(files: &[(&str, &str)]) -> Option<u64> {
        least(|path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn the_least_limit_around_the_process_holds() {
        let machine = ("/proc/meminfo", MEMINFO);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[machine]), Some(16 << 20));
        assert_eq!(of(&[("/proc/meminfo", "MemTotal: much kB\n")]), None);

        let v2 = ("/proc/self/cgroup", "0::/outer/inner\n");
        assert_eq!(of(&[machine, v2, ("/sys/fs/cgroup/outer/inner/memory.max", "max\n")]), Some(16 << 20));
        assert_eq!(of(&[machine, v2, ("/sys/fs/cgroup/outer/inner/memory.max", "4096\n")]), Some(4096));
        assert_eq!(of(&[machine, v2, ("/sys/fs/cgroup/outer/memory.max", "8192\n")]), Some(8192));
        assert_eq!(of(&[machine, v2, ("/sys/fs/cgroup/memory.max", "4194304\n")]), Some(4 << 20));
        assert_eq!(of(&[v2, ("/sys/fs/cgroup/memory.max", "99999999\n")]), Some(99_999_999));

        let v1 = ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n");
        let unlimited = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(of(&[machine, v1, unlimited]), Some(16 << 20));
        assert_eq!(of(&[machine, v1, ("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "512\n")]), Some(512));
    }

    #[test]
    fn amounts_are_sizes_or_percentages() {
        for (text, amount) in [
            ("80%", Amount::Percent(80)),
            ("1 %", Amount::Percent(1)),
            ("100%", Amount::Percent(100)),
            ("2GiB", Amount::Bytes(2 << 30)),
            ("1000", Amount::Bytes(1000)),
        ] {
            assert_eq!(text.parse(), Ok(amount), "{text}");
            let written = serde_json::to_string(&amount).unwrap();
            assert_eq!(serde_json::from_str::<Amount>(&written).unwrap(), amount, "{text}");
        }
        for bad in ["", "%", "0%", "101%", "-1%", "1.5%", "much"] {
            assert_eq!(bad.parse::<Amount>(), Err(AmountError), "{bad}");
        }
        for bad in ["-1", "1.5", "[]", "true", "null"] {
            assert!(serde_json::from_str::<Amount>(bad).is_err(), "{bad}");
        }
        assert_eq!((Amount::Percent(50).of(u64::MAX), Amount::Bytes(7).of(3)), (u64::MAX / 2, 7));
    }

    #[test]
    fn a_ceiling_that_leaves_nothing_is_refused() {
        let room = Room::new(Amount::Percent(50), Some(1000), 100).unwrap();
        assert_eq!((room.ceiling_bytes, room.models_bytes()), (500, 400));
        assert_eq!(Room::new(Amount::Bytes(101), None, 100).unwrap().models_bytes(), 1);
        assert!(Room::new(Amount::Bytes(100), None, 100).unwrap_err().contains("memory.ceiling comes to 100 bytes"));
        assert!(Room::new(Amount::Percent(80), None, 0).unwrap_err().contains("cannot be read"));
    }
}
