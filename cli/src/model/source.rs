//! Headers from where a model is: a path, or a URL read by ranges.

use std::path::Path;

use stowage_engine_models::inspect::{self, Facts, HeadError, MAX_HEAD};

use crate::Failure;
use stowage_engine_models::chain;

/// The first range; most headers fit in it. Each further one is as long as all before it together.
const FIRST: u64 = 1 << 20;

pub async fn facts(source: &str) -> Result<Facts, Failure> {
    if source.starts_with("http://") || source.starts_with("https://") {
        return behind_url(source).await.map_err(Failure::Model);
    }
    inspect::path(Path::new(source)).map_err(|e| Failure::Model(chain(&e)))
}

async fn behind_url(url: &str) -> Result<Facts, String> {
    let failed = |e: reqwest::Error| format!("cannot read {url}: {}", chain(&e.without_url()));
    let client = reqwest::Client::builder()
        .connect_timeout(std::time::Duration::from_secs(10))
        .read_timeout(std::time::Duration::from_secs(30))
        .build()
        .map_err(failed)?;
    let (mut head, mut len) = (Vec::new(), u64::MAX);
    while (head.len() as u64) < len.min(MAX_HEAD) {
        let at = head.len() as u64;
        let until = (at + at.max(FIRST)).min(len).min(MAX_HEAD);
        let request = client.get(url).header("range", format!("bytes={at}-{}", until - 1));
        let mut answer = request.send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let (start, total) = place(&answer)
            .ok_or_else(|| format!("{url} does not say how long the file is; fetch it and give its path instead"))?;
        if at > 0 && (start != at || total != len) {
            return Err(format!(
                "{url} changed while it was read, or gives no ranges; fetch it and give its path instead"
            ));
        }
        len = total;
        // A server without ranges sends everything: what is not needed is left in the connection.
        while (head.len() as u64) < until.min(len) {
            let Some(chunk) = answer.chunk().await.map_err(failed)? else {
                return Err(format!("{url} ended at byte {} of {len}; try again", head.len()));
            };
            head.extend_from_slice(&chunk);
        }
        match inspect::gguf(Path::new(url), &head, len) {
            Ok(facts) => return Ok(facts),
            Err(HeadError::NeedsMore) => {}
            Err(HeadError::Load(e)) => return Err(chain(&e)),
        }
    }
    Err(format!("the header of {url} is longer than {} MiB, which no model needs", MAX_HEAD >> 20))
}

/// Where the answer begins in the file, and how long the file is.
fn place(answer: &reqwest::Response) -> Option<(u64, u64)> {
    if answer.status() != http::StatusCode::PARTIAL_CONTENT {
        return Some((0, answer.content_length()?));
    }
    let range = answer.headers().get("content-range")?.to_str().ok()?;
    let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A GGUF file with one tensor and `filler` bytes of metadata.
    fn gguf(filler: usize) -> Vec<u8> {
        let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
        let entry = |key: &str, value: &str| [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat();
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &2u64.to_le_bytes()].concat();
        file.extend(entry("general.architecture", "llama"));
        file.extend(entry("filler", &"x".repeat(filler)));
        file.extend(text("token_embd.weight"));
        for number in [2u32.to_le_bytes().to_vec(), 32u64.to_le_bytes().to_vec(), 4u64.to_le_bytes().to_vec()] {
            file.extend(number);
        }
        file.extend([0; 12]);
        file.resize(file.len().next_multiple_of(32) + 512 + (8 << 20), 0);
        file
    }

    #[derive(Clone, Copy)]
    enum Server {
        Ranges,
        WholeFile,
        EndsEarly,
        NoLength,
        Missing,
    }

    /// Serves the file on a loopback port; a thread per test, which ends with the process.
    fn serve(kind: Server, file: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/model.gguf", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
                let range = request.split("range: bytes=").nth(1).unwrap().split("\r\n").next().unwrap();
                let (from, to) = range.split_once('-').unwrap();
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse::<usize>().unwrap() + 1);
                let len = file.len();
                let (head, body) = match kind {
                    Server::Ranges => (
                        format!(
                            "206 Partial Content\r\ncontent-range: bytes {from}-{}/{len}\r\ncontent-length: {}",
                            to - 1,
                            to - from
                        ),
                        &file[from..to],
                    ),
                    Server::WholeFile => (format!("200 OK\r\ncontent-length: {len}"), &file[..]),
                    Server::EndsEarly => (format!("200 OK\r\ncontent-length: {len}"), &file[..9]),
                    Server::NoLength => ("200 OK".to_owned(), &file[..]),
                    Server::Missing => ("404 Not Found\r\ncontent-length: 0".to_owned(), &file[..0]),
                };
                let _ = write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(body);
            }
        });
        url
    }

    async fn check(kind: Server, filler: usize, expected: Result<&str, &str>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        match (facts(&serve(kind, gguf(filler))).await, expected) {
            (Ok(facts), Ok(architecture)) => assert_eq!(facts.architecture, architecture),
            (Err(Failure::Model(message)), Err(part)) => assert!(message.contains(part), "{message}"),
            (found, _) => panic!("{:?} instead of {expected:?}", found.map(|facts| facts.architecture)),
        }
    }

    #[tokio::test]
    async fn header_is_read_by_ranges_however_long_it_is() {
        check(Server::Ranges, 10, Ok("llama")).await;
        check(Server::Ranges, 3 << 20, Ok("llama")).await;
    }

    #[tokio::test]
    async fn server_without_ranges_is_read_as_far_as_one_range_reaches() {
        check(Server::WholeFile, 10, Ok("llama")).await;
        check(Server::WholeFile, 3 << 20, Err("gives no ranges")).await;
    }

    #[tokio::test]
    async fn failures_say_what_happened() {
        check(Server::EndsEarly, 10, Err("cannot read")).await;
        check(Server::NoLength, 10, Err("does not say how long")).await;
        check(Server::Missing, 10, Err("404")).await;
    }
}
