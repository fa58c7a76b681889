//! Node and pod lists of the published placement protocol (CSV, plain or gzip), and its random order.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Command line of the bench.
pub struct Options {
    pub nodes: PathBuf,
    pub pods: PathBuf,
    pub seeds: Range<u64>,
    pub policy: String,
    /// Plan again after so many pods.
    pub learn: Option<usize>,
}

pub struct Node {
    pub cpu: i64,
    pub memory: i64,
    pub gpus: i64,
    pub model: String,
}

#[derive(Clone)]
pub struct Pod {
    pub cpu: i64,
    pub memory: i64,
    /// Of each GPU.
    pub milli: i64,
    pub gpus: i64,
    /// Empty: any.
    pub types: Vec<String>,
}

pub struct Trace {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    /// Sorted.
    pub models: Vec<String>,
}

impl Options {
    pub fn parse() -> Self {
        let mut given: BTreeMap<String, String> = BTreeMap::new();
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().unwrap_or_else(|| fail(&format!("{name} needs a value")));
            given.insert(name.trim_start_matches('-').to_owned(), value);
        }
        let path = |name: &str| {
            given.get(name).map(PathBuf::from).unwrap_or_else(|| fail(&format!("--{name} FILE is missing")))
        };
        let seeds = given.get("seeds").map_or("42..52", String::as_str);
        let ends = seeds.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
        Options {
            nodes: path("nodes"),
            pods: path("pods"),
            seeds: ends.unwrap_or_else(|| fail("--seeds has the form 42..52")),
            policy: given.get("policy").cloned().unwrap_or_else(|| "stowage".to_owned()),
            learn: given.get("learn").map(|n| n.parse().unwrap_or_else(|_| fail("--learn needs a number"))),
        }
    }
}

/// Ends the bench with a message.
pub fn fail(message: &str) -> ! {
    eprintln!(
        "error: {message}\nusage: --nodes FILE --pods FILE [--seeds 42..52] [--policy stowage|fgd|bestfit|random] [--learn PODS]"
    );
    std::process::exit(2);
}

impl Trace {
    pub fn load(nodes: &Path, pods: &Path) -> Self {
        let nodes: Vec<Node> = rows(nodes)
            .iter()
            .map(|r| Node {
                cpu: r.number("cpu_milli"),
                memory: r.number("memory_mib"),
                gpus: r.number("gpu"),
                model: r.text("model").to_owned(),
            })
            .collect();
        let mut models: Vec<String> = nodes.iter().map(|n| n.model.clone()).collect();
        models.sort();
        models.dedup();
        let pod = |r: &Row| {
            let gpus = r.number("num_gpu");
            let mut types: Vec<String> =
                r.text("gpu_spec").split('|').filter(|m| !m.is_empty()).map(str::to_owned).collect();
            types.sort();
            types.dedup();
            Pod {
                cpu: r.number("cpu_milli"),
                memory: r.number("memory_mib"),
                milli: if gpus > 0 { r.number("gpu_milli").min(1000) } else { 0 },
                gpus,
                types,
            }
        };
        let pods = rows(pods).iter().map(pod).collect();
        Trace { nodes, pods, models }
    }

    pub fn total_milli(&self) -> i64 {
        self.nodes.iter().map(|n| n.gpus * 1000).sum()
    }

    /// The pods in their order of arrival.
    pub fn inflate(&self, seed: u64) -> Vec<Pod> {
        let mut random = Random(seed);
        let mut order = self.pods.clone();
        random.shuffle(&mut order);
        let limit = self.total_milli() as f64 * 1.3;
        let mut sum: i64 = order.iter().map(|p| p.milli * p.gpus).sum();
        while sum as f64 > limit {
            let gone = order.remove(random.below(order.len()));
            sum -= gone.milli * gone.gpus;
        }
        loop {
            let p = &self.pods[random.below(self.pods.len())];
            // The published protocol's stopping test counts one GPU of the candidate.
            if (sum + p.milli) as f64 > limit {
                return order;
            }
            sum += p.milli * p.gpus;
            order.push(p.clone());
        }
    }

    /// The place of each node in the order of names.
    pub fn permutation(&self, seed: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        Random(seed ^ 0x5eed).shuffle(&mut order);
        order
    }
}

struct Row {
    file: PathBuf,
    line: usize,
    fields: BTreeMap<String, String>,
}

impl Row {
    fn text(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str) -> i64 {
        let value = self.text(key);
        value.parse().unwrap_or_else(|_| {
            fail(&format!("{}:{}: {key} is {value:?}, which is not a whole number", self.file.display(), self.line))
        })
    }
}

/// Rows by column name; no quoting, as these files have none.
fn rows(path: &Path) -> Vec<Row> {
    let text = if path.extension().is_some_and(|e| e == "gz") {
        let out = Command::new("gzip").arg("-dc").arg(path).output();
        let out = out.unwrap_or_else(|e| fail(&format!("cannot start gzip: {e}")));
        if !out.status.success() {
            fail(&format!("gzip cannot read {}", path.display()));
        }
        String::from_utf8_lossy(&out.stdout).into_owned()
    } else {
        std::fs::read_to_string(path).unwrap_or_else(|e| fail(&format!("cannot read {}: {e}", path.display())))
    };
    let mut lines = text.lines().enumerate().map(|(n, l)| (n + 1, l.trim_end_matches('\r')));
    let Some((_, header)) = lines.next() else { fail(&format!("{} is empty", path.display())) };
    let header: Vec<&str> = header.split(',').collect();
    lines
        .filter(|(_, l)| !l.is_empty())
        .map(|(line, l)| {
            let fields = header.iter().map(|h| (*h).to_owned()).zip(l.split(',').map(str::to_owned)).collect();
            Row { file: path.to_owned(), line, fields }
        })
        .collect()
}

/// SplitMix64: small, seeded, good enough to shuffle.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
