//! The real processes behind pods, found from the root pid namespace by their cgroup.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// Pids of the processes called `name` whose cgroup belongs to the pod with this UID.
pub fn of_pod(uid: &str, name: &str) -> Vec<i32> {
    let marks = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<i32> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            marks.iter().any(|m| cgroup.contains(m.as_str())) && command(*pid) == name
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// Pids of the processes called `name` with this text in their arguments.
pub fn named(name: &str, argument: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command(*pid) == name && String::from_utf8_lossy(&line).contains(argument)
    })
    .collect()
}

/// The base name of a process's program, from its command line.
fn command(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = line.split(|b| *b == 0).next().unwrap_or_default();
    Path::new(&*String::from_utf8_lossy(first))
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Sends a signal to exactly one process, by pid.
pub fn signal(pid: i32, signal: &str) -> anyhow::Result<()> {
    let status = std::process::Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status()
        .context("run kill")?;
    anyhow::ensure!(status.success(), "kill -{signal} {pid} failed");
    Ok(())
}

/// What a server answers on the loopback address of the network that process `pid` is in, whatever the
/// network policies allow. The status stands on the first line.
pub async fn ask_inside(pid: i32, request: &[&str]) -> anyhow::Result<(u16, String)> {
    let net = format!("--net=/proc/{pid}/ns/net");
    let output = tokio::process::Command::new("nsenter")
        .args([&net, "curl", "--silent", "--max-time", "30", "--write-out", "\n%{http_code}"])
        .args(request)
        .output()
        .await
        .context("run nsenter")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
    Ok((status.trim().parse().unwrap_or(0), body.to_owned()))
}

/// Seconds of CPU that it used since its start.
pub fn cpu_seconds(pid: i32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read the times of {pid}"))?;
    // The name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).context("the times of a process");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// Resident memory in MiB.
pub fn resident_mib(pid: i32) -> anyhow::Result<f64> {
    let statm =
        fs::read_to_string(format!("/proc/{pid}/statm")).with_context(|| format!("read the memory of {pid}"))?;
    let pages: f64 = statm.split_whitespace().nth(1).context("statm has no second field")?.parse()?;
    Ok(pages * 4096.0 / (1024.0 * 1024.0))
}
