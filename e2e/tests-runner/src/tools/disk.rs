//! A full disk in one container: a small file system with a copy of what was there, filled to the last byte, is
//! mounted over a directory as this container sees it. No other process sees it.
//!
//! Entering another process's mounts needs a process with one thread, so this runs as a program of its own:
//! `stowage-e2e full-disk PID DIR` and `stowage-e2e free-disk PID DIR`.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

/// What the hidden commands ask for.
pub struct Request {
    fill: bool,
    pid: i32,
    dir: PathBuf,
}

/// A full disk, until it is dropped.
pub struct Full {
    pid: i32,
    dir: String,
}

// === impl Request ===

impl Request {
    /// `None`: the program was started for something else.
    pub fn of(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let fill = match args.nth(1)?.as_str() {
            "full-disk" => true,
            "free-disk" => false,
            _ => return None,
        };
        Some(Self { fill, pid: args.next()?.parse().ok()?, dir: args.next()?.into() })
    }

    pub fn carry_out(self) -> anyhow::Result<()> {
        enter_mounts(self.pid)?;
        let target = CString::new(self.dir.display().to_string())?;
        if !self.fill {
            // SAFETY: a valid C string; the call keeps nothing of it.
            let done = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
            ensure!(done == 0, "unmount {}: {}", self.dir.display(), std::io::Error::last_os_error());
            return Ok(());
        }
        let kept = read_all(&self.dir)?;
        let (kind, options) = (c"tmpfs", c"size=256k");
        // SAFETY: valid C strings; the call keeps nothing of them.
        let done = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
        ensure!(done == 0, "mount over {}: {}", self.dir.display(), std::io::Error::last_os_error());
        for (path, data) in kept {
            fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
            fs::write(&path, data).with_context(|| format!("copy {}", path.display()))?;
        }
        fill(&self.dir.join("filler"))
    }
}

// === impl Full ===

impl Full {
    pub fn disk(pid: i32, dir: &str) -> anyhow::Result<Self> {
        command("full-disk", pid, dir)?;
        Ok(Self { pid, dir: dir.to_owned() })
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        if let Err(e) = command("free-disk", self.pid, &self.dir) {
            eprintln!("the disk was not freed: {e:#}");
        }
    }
}

fn command(what: &str, pid: i32, dir: &str) -> anyhow::Result<()> {
    let output = std::process::Command::new(std::env::current_exe()?).args([what, &pid.to_string(), dir]).output()?;
    if !output.status.success() {
        bail!("{what} {dir} of process {pid}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn enter_mounts(pid: i32) -> anyhow::Result<()> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).context("open the process's mounts")?;
    // SAFETY: the descriptor is open, and this process has one thread.
    let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) };
    ensure!(done == 0, "enter the mounts of {pid}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The small files of a directory tree, with their content.
fn read_all(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(read_all(&path)?);
        } else if entry.metadata().is_ok_and(|m| m.is_file() && m.len() < 32 << 10) {
            found.push((path.clone(), fs::read(&path)?));
        }
    }
    Ok(found)
}

/// Writes until nothing more fits.
fn fill(path: &Path) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    loop {
        match file.write(&[0; 512]) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => return Ok(()),
            Err(e) => return Err(e).context("fill the disk"),
        }
    }
}
