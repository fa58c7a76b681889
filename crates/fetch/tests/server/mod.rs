//! An HTTP/1.1 server of one file, one thread per connection, that misbehaves as asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stowage_fetch::pieces::PIECE;

#[derive(Clone, Debug)]
pub enum Behaviour {
    Good,
    /// 200 and everything, whatever was asked for.
    NoRanges,
    /// Every second answer ends in the middle.
    EndsEarlySometimes,
    /// Every second answer stops in the middle and stays open.
    StallsSometimes,
    /// Every second answer is 503.
    FailsSometimes,
    AlwaysFails,
    AlwaysStalls,
    /// Closes each connection without an answer.
    Closes,
    /// Sends one byte of each range, and closes.
    OneByteEach,
    /// Sends a byte now and then.
    Drips,
    SendsAnotherRange,
    /// A range of 300,000 quotes.
    LongRange,
    /// Announces ranges of a byte and sends more.
    LongerThanSaid,
    NoLength,
    Missing,
    /// The validator changes after three answers.
    ChangesOnce,
    /// The validator is another one in each answer.
    ChangesAlways,
    /// Answers with a piece, and then without an end.
    SlowAfterFirstPiece,
    Redirects(String),
}

#[derive(Default)]
pub struct Seen {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    pub sent: AtomicU64,
    pub at_once: AtomicU64,
    pub most_at_once: AtomicU64,
    second_piece: AtomicU64,
}

pub struct Server {
    address: std::net::SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    pub seen: Arc<Seen>,
}

/// Bytes that differ everywhere.
pub fn content(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

impl Server {
    /// Serves until the process ends.
    pub fn start(behaviour: Behaviour, bytes: Vec<u8>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (behaviour, seen, bytes) = (Arc::new(Mutex::new(behaviour)), Arc::new(Seen::default()), Arc::new(bytes));
        let server = Server { address, behaviour: Arc::clone(&behaviour), seen: Arc::clone(&seen) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (behaviour, seen, bytes) = (Arc::clone(&behaviour), Arc::clone(&seen), Arc::clone(&bytes));
                std::thread::spawn(move || {
                    seen.connections.fetch_add(1, Ordering::Relaxed);
                    let _ = connection(&stream.unwrap(), &behaviour, &seen, &bytes);
                });
            }
        });
        server
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    pub fn url(&self) -> String {
        format!("http://{}/model.gguf", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub async fn second_piece_asked(&self) {
        while self.seen.second_piece.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn connection(stream: &TcpStream, behaviour: &Mutex<Behaviour>, seen: &Seen, bytes: &[u8]) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut range, mut line) = (None, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.trim_end().to_lowercase();
            if let Some(value) = lower.strip_prefix("range: bytes=") {
                let (from, last) = value.split_once('-').unwrap();
                range = Some((from.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1));
            }
            if lower.is_empty() {
                break;
            }
        }
        let number = seen.requests.fetch_add(1, Ordering::Relaxed);
        let now = seen.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        seen.most_at_once.fetch_max(now, Ordering::Relaxed);
        let behaviour = behaviour.lock().unwrap().clone();
        let result = answer(stream, &behaviour, number, range.unwrap(), seen, bytes);
        seen.at_once.fetch_sub(1, Ordering::Relaxed);
        if !result? {
            return Ok(());
        }
    }
}

/// Whether the connection goes on.
fn answer(
    mut stream: &TcpStream,
    behaviour: &Behaviour,
    number: u64,
    (from, to): (usize, usize),
    seen: &Seen,
    bytes: &[u8],
) -> std::io::Result<bool> {
    let to = to.min(bytes.len());
    let mut send = |head: String, body: &[u8]| {
        write!(stream, "HTTP/1.1 {head}\r\n\r\n")?;
        stream.write_all(body)?;
        seen.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
        Ok::<_, std::io::Error>(())
    };
    let total = bytes.len();
    let ranged = |etag: &str, from: usize, to: usize| {
        format!(
            "206 Partial Content\r\ncontent-range: bytes {from}-{}/{total}\r\ncontent-length: {}\r\netag: \"{etag}\"",
            to - 1,
            to - from
        )
    };
    let odd = number % 2 == 1;
    match behaviour {
        Behaviour::EndsEarlySometimes if odd => {
            send(ranged("v", from, to), &bytes[from..(from + to) / 2])?;
            return Ok(false);
        }
        Behaviour::StallsSometimes if odd => {
            send(ranged("v", from, to), &bytes[from..(from + to) / 2])?;
            std::thread::sleep(Duration::from_secs(2));
            return Ok(false);
        }
        Behaviour::FailsSometimes if odd => send("503 Service Unavailable\r\ncontent-length: 0".into(), &[])?,
        Behaviour::AlwaysFails => send("503 Service Unavailable\r\ncontent-length: 0".into(), &[])?,
        Behaviour::AlwaysStalls => {
            std::thread::sleep(Duration::from_secs(2));
            return Ok(false);
        }
        Behaviour::Closes => return Ok(false),
        Behaviour::OneByteEach if to - from > 2 => {
            send(ranged("v", from, to), &bytes[from..=from])?;
            return Ok(false);
        }
        Behaviour::Drips if to - from > 2 => {
            send(ranged("v", from, to), &[])?;
            for byte in &bytes[from..to] {
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(&[*byte])?;
            }
        }
        Behaviour::Missing => send("404 Not Found\r\ncontent-length: 0".into(), &[])?,
        Behaviour::NoRanges => send(format!("200 OK\r\ncontent-length: {total}"), bytes)?,
        Behaviour::NoLength => {
            send("200 OK\r\nconnection: close".into(), bytes)?;
            return Ok(false);
        }
        Behaviour::LongRange => {
            let head = format!("206 Partial Content\r\ncontent-range: {}\r\ncontent-length: 1", "\"".repeat(300_000));
            send(head, b"x")?;
        }
        Behaviour::SendsAnotherRange => send(ranged("v", 1, total), &bytes[1..])?,
        Behaviour::LongerThanSaid => {
            let head = format!(
                "206 Partial Content\r\ncontent-range: bytes {from}-{from}/{total}\r\ncontent-length: {}",
                total - from
            );
            send(head, &bytes[from..])?;
        }
        Behaviour::ChangesOnce if number >= 3 => send(ranged("second", from, to), &bytes[from..to])?,
        Behaviour::ChangesAlways => send(ranged(&format!("v{number}"), from, to), &bytes[from..to])?,
        Behaviour::SlowAfterFirstPiece if from as u64 >= PIECE => {
            seen.second_piece.store(1, Ordering::Relaxed);
            write!(stream, "HTTP/1.1 {}\r\n\r\n", ranged("v", from, to))?;
            std::thread::sleep(Duration::from_secs(1));
            return Ok(false);
        }
        Behaviour::Redirects(location) => send(format!("302 Found\r\nlocation: {location}\r\ncontent-length: 0"), &[])?,
        _ => send(ranged("v", from, to), &bytes[from..to])?,
    }
    Ok(true)
}
