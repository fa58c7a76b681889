//! A process on a simulated GPU, for tests: holds the lock of a report directory, really allocates
//! memory, reports the given figures, and stays until it is ended.
//!
//! `simulated-gpu-process <report dir> [--report BYTES] [--allocate BYTES] [--sm PERCENT]`
//! Prints `running` when everything is in place.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

fn main() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: simulated-gpu-process <report dir> [--report N] [--allocate N] [--sm N]")?;
    let (mut report, mut allocate, mut sm) = (None, 0usize, 0u32);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(format!("{flag} needs a value"))?;
        let number: u64 = value.parse().map_err(|err| format!("{flag} {value}: {err}"))?;
        match flag.as_str() {
            "--report" => report = Some(number),
            "--allocate" => allocate = number as usize,
            "--sm" => sm = number as u32,
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    let dir = Path::new(&dir);
    let _lock = hold_lock(&dir.join("lock"))?;
    let memory = touched(allocate);
    if let Some(bytes) = report {
        let (file, draft) = (dir.join("usage.json"), dir.join("usage.json.tmp"));
        std::fs::write(&draft, format!(r#"{{"bytes":{bytes},"smPercent":{sm}}}"#))
            .and_then(|()| std::fs::rename(&draft, &file))
            .map_err(|err| format!("cannot write {}: {err}", file.display()))?;
    }
    println!("running");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(3600));
        std::hint::black_box(&memory);
    }
}

/// A POSIX write lock on the file, for as long as the file stays open.
fn hold_lock(path: &Path) -> Result<File, String> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|err| format!("cannot open {}: {err}", path.display()))?;
    // SAFETY: plain data for which zeroes are valid; the descriptor is open.
    let result = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock)
    };
    if result != 0 {
        return Err(format!("cannot lock {}: {}", path.display(), std::io::Error::last_os_error()));
    }
    Ok(file)
}

/// Memory that is really there: one byte of each page written.
fn touched(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0u8; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    memory
}
