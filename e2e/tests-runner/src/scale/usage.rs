//! What a process has used, from `/proc`.

use anyhow::Context;

/// Since the process began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    pub cpu_s: f64,
    pub peak_rss_mib: u64,
}

impl Usage {
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        parse(&read("stat")?, &read("status")?)
    }
}

/// Clock ticks are hundredths of a second on every Linux that Rust runs on.
fn parse(stat: &str, status: &str) -> anyhow::Result<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')').context("no command")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).context("no CPU time");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak of memory")?;
    let kib: u64 = peak.split_whitespace().next().context("no peak of memory")?.parse()?;
    Ok(Usage { cpu_s: (ticks(11)? + ticks(12)?) / 100.0, peak_rss_mib: kib / 1024 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_and_peak_memory_are_read() -> anyhow::Result<()> {
        let stat = "7 (a b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 1 2 3";
        let usage = parse(stat, "Name: a\nVmHWM:\t  20480 kB\n")?;
        assert_eq!(usage, Usage { cpu_s: 2.0, peak_rss_mib: 20 });
        Ok(())
    }
}
