//! How many bytes weights and KV cache may take: the smallest of what was requested, granted and given.
//!
//! The container's limit covers the whole process, so a margin for everything else (tokenizer,
//! buffers, stacks) is taken off it. The slice and the flag are meant for the model alone.

use std::fmt;
use std::path::Path;

/// The whole process beside weights and KV cache, in bytes.
pub const PROCESS_MARGIN: u64 = 96 << 20;

/// A budget and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub bytes: u64,
    pub source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `--memory-bytes`
    Flag,
    /// `STOWAGE_GPU_MEMORY_BYTES`: the slice of a GPU.
    Slice,
    /// The container's memory limit, less the margin.
    Container,
    /// Half of the machine's memory: a slice of a simulated GPU may be larger than the machine.
    Machine,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "--memory-bytes",
            Self::Slice => "the GPU slice (STOWAGE_GPU_MEMORY_BYTES)",
            Self::Container => "the container's memory limit",
            Self::Machine => "half of the machine's memory",
        })
    }
}

/// The smallest of the limits there are; `None` where there is none.
///
/// `machine` is the size of the machine's memory. It bounds the others and is no limit by itself:
/// without any of them the loader takes what the model needs.
pub fn budget(flag: Option<u64>, slice: Option<u64>, container: Option<u64>, machine: Option<u64>) -> Option<Budget> {
    let machine = machine.filter(|_| flag.or(slice).or(container).is_some()).map(|bytes| bytes / 2);
    let container = container.map(|limit| limit.saturating_sub(PROCESS_MARGIN));
    [(flag, Source::Flag), (slice, Source::Slice), (container, Source::Container), (machine, Source::Machine)]
        .into_iter()
        .filter_map(|(bytes, source)| bytes.map(|bytes| Budget { bytes, source }))
        .min_by_key(|budget| budget.bytes)
}

/// A number of bytes from the environment. Present and unreadable is an error, never "no limit".
pub fn parse_bytes(name: &str, value: Option<&str>) -> Result<Option<u64>, String> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return Ok(None) };
    value.parse().map(Some).map_err(|_| format!("{name} is {value:?}, not a number of bytes"))
}

/// The memory limit of this process's cgroup, `None` without one. Understands version 2 and 1.
pub fn container_limit(cgroup_root: &Path) -> Option<u64> {
    let files = ["memory.max", "memory/memory.limit_in_bytes"];
    let text = files.iter().find_map(|file| std::fs::read_to_string(cgroup_root.join(file)).ok())?;
    // No limit is `max` in version 2, and a number near 2^63 in version 1.
    text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60)
}

/// The machine's memory in bytes, from the text of `/proc/meminfo`.
pub fn machine_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_smallest_limit_counts_and_is_named() {
        let found = budget(Some(3 * GIB), Some(2 * GIB), Some(8 * GIB), None).unwrap();
        assert_eq!(found, Budget { bytes: 2 * GIB, source: Source::Slice });
        let found = budget(Some(GIB), Some(2 * GIB), None, None).unwrap();
        assert_eq!(found.source, Source::Flag);
        let found = budget(None, Some(80 * GIB), Some(GIB), None).unwrap();
        assert_eq!(found, Budget { bytes: GIB - PROCESS_MARGIN, source: Source::Container });
        assert_eq!(budget(None, None, None, Some(GIB)), None);
        let found = budget(None, Some(80 * GIB), None, Some(24 * GIB)).unwrap();
        assert_eq!(found, Budget { bytes: 12 * GIB, source: Source::Machine });
    }

    #[test]
    fn a_limit_below_the_margin_is_zero_and_not_huge() {
        assert_eq!(budget(None, None, Some(1), None).unwrap().bytes, 0);
    }

    #[test]
    fn an_unreadable_slice_is_an_error() {
        assert_eq!(parse_bytes("X", Some("1073741824")), Ok(Some(GIB)));
        assert_eq!(parse_bytes("X", None), Ok(None));
        assert_eq!(parse_bytes("X", Some(" ")), Ok(None));
        for bad in ["1Gi", "-1", "1e9", "99999999999999999999"] {
            assert!(parse_bytes("X", Some(bad)).unwrap_err().contains("X is"));
        }
    }

    #[test]
    fn the_size_of_the_machine_is_read_from_meminfo() {
        assert_eq!(machine_memory("MemTotal:       24689652 kB\nMemFree: 1 kB\n"), Some(24689652 << 10));
        assert_eq!(machine_memory("unreadable"), None);
    }

    #[test]
    fn both_versions_of_cgroups_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(container_limit(dir.path()), None);
        std::fs::create_dir(dir.path().join("memory")).unwrap();
        std::fs::write(dir.path().join("memory/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(container_limit(dir.path()), None);
        std::fs::write(dir.path().join("memory/memory.limit_in_bytes"), "1073741824\n").unwrap();
        assert_eq!(container_limit(dir.path()), Some(GIB));
        std::fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(container_limit(dir.path()), None);
        std::fs::write(dir.path().join("memory.max"), "2147483648\n").unwrap();
        assert_eq!(container_limit(dir.path()), Some(2 * GIB));
    }
}
