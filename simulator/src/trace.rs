//! Arrivals in order of time, plain or gzip, with a header line: `t_s,input_tokens,output_tokens`, or the columns of
//! Azure's public traces, `TIMESTAMP,ContextTokens,GeneratedTokens`.

use std::io::{BufRead, BufReader, Read};

/// One request of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Seconds since the start of the trace.
    pub at_s: f64,
    /// Tokens of the prompt, at least 1.
    pub input_tokens: u32,
    /// Tokens of the answer, at least 1.
    pub output_tokens: u32,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// At least one.
    pub arrivals: Vec<Arrival>,
    /// When it starts, in milliseconds since 1970; `None`: the file has no dates.
    pub starts_ms: Option<u64>,
}

/// Most that is read of a file.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests.
    pub requests: usize,
    /// Bytes, unpacked.
    pub bytes: u64,
    /// Seconds from the start to the last request.
    pub seconds: f64,
}

impl Limits {
    /// What a run works through in minutes.
    pub const STANDARD: Self = Self { requests: 2_000_000, bytes: 256 << 20, seconds: 31.0 * 86_400.0 };
    /// Whatever there is.
    pub const NONE: Self = Self { requests: usize::MAX, bytes: u64::MAX, seconds: f64::INFINITY };
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be read or unpacked.
    #[error("read the trace: {0}")]
    Read(#[from] std::io::Error),
    /// The first line names no columns.
    #[error(
        "line 1: the header must name the columns t_s, input_tokens and output_tokens (or TIMESTAMP, ContextTokens and GeneratedTokens), found {0:?}"
    )]
    Header(String),
    /// A line that is no request.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// More than the limits allow.
    #[error("the trace has more than {0}; cut it, or take every tenth request of it")]
    TooMuch(String),
    /// Nothing to replay.
    #[error("the trace holds no request")]
    Empty,
}

/// Longest line.
const MAX_LINE: u64 = 4096;
/// Most tokens of a prompt or an answer: beyond any model.
const MAX_TOKENS: u32 = 1 << 20;
const DAY_S: f64 = 86_400.0;

/// Reads a trace; gzip is recognised by its first bytes.
pub fn read(source: impl Read, limits: &Limits) -> Result<Trace, TraceError> {
    let mut source = BufReader::new(source);
    if source.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return lines(BufReader::new(flate2::bufread::MultiGzDecoder::new(source)), limits);
    }
    lines(source, limits)
}

fn lines(mut source: impl BufRead, limits: &Limits) -> Result<Trace, TraceError> {
    let mut trace = Trace { arrivals: Vec::new(), starts_ms: None };
    let (mut columns, mut line, mut bytes, mut buffer) = (None, 0, 0, Vec::new());
    while next_line(&mut source, &mut buffer)? > 0 {
        line += 1;
        bytes += buffer.len() as u64;
        let refused = |reason: String| TraceError::Line { line, reason };
        if bytes > limits.bytes {
            return Err(TraceError::TooMuch(format!("{} MiB (unpacked)", limits.bytes >> 20)));
        }
        if buffer.len() as u64 > MAX_LINE {
            return Err(refused(format!("it is longer than {MAX_LINE} bytes")));
        }
        let text = std::str::from_utf8(&buffer).map_err(|_| refused("it is no UTF-8 text".to_owned()))?;
        let Some(columns) = &columns else {
            columns = Some(Columns::of(text)?);
            continue;
        };
        if text.trim().is_empty() {
            continue;
        }
        if trace.arrivals.len() == limits.requests {
            return Err(TraceError::TooMuch(format!("{} requests", limits.requests)));
        }
        trace.add(columns, text, limits).map_err(refused)?;
    }
    if trace.arrivals.is_empty() { Err(TraceError::Empty) } else { Ok(trace) }
}

/// Bytes read, at most one more than a line may have.
fn next_line(source: &mut impl BufRead, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    buffer.clear();
    source.take(MAX_LINE + 1).read_until(b'\n', buffer)
}

/// Names of the columns of a format.
type Names = [&'static str; 3];

const SECONDS: Names = ["t_s", "input_tokens", "output_tokens"];
const AZURE: Names = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

/// Where in a line the fields are.
struct Columns {
    names: Names,
    at: [usize; 3],
}

impl Columns {
    fn of(header: &str) -> Result<Self, TraceError> {
        let found: Vec<&str> = header.trim_start_matches('\u{feff}').trim().split(',').map(str::trim).collect();
        let all = |names: Names| match names.map(|name| found.iter().position(|column| *column == name)) {
            [Some(at), Some(input), Some(output)] => Some(Self { names, at: [at, input, output] }),
            _ => None,
        };
        all(SECONDS).or_else(|| all(AZURE)).ok_or_else(|| TraceError::Header(header.trim().chars().take(80).collect()))
    }

    fn field<'a>(&self, fields: &[&'a str], column: usize) -> Result<&'a str, String> {
        fields
            .get(self.at[column])
            .map(|field| field.trim())
            .ok_or_else(|| format!("{} is missing", self.names[column]))
    }

    fn tokens(&self, fields: &[&str], column: usize) -> Result<u32, String> {
        let (name, text) = (self.names[column], self.field(fields, column)?);
        let count: u32 = text.parse().map_err(|_| format!("{name} {text:?} is no whole number"))?;
        if count > MAX_TOKENS {
            return Err(format!("{name} {count} is more than {MAX_TOKENS}"));
        }
        Ok(count.max(1))
    }
}

impl Trace {
    fn add(&mut self, columns: &Columns, line: &str, limits: &Limits) -> Result<(), String> {
        let fields: Vec<&str> = line.split(',').collect();
        let text = columns.field(&fields, 0)?;
        let at_s = if columns.names == AZURE { self.since_start(text)? } else { seconds(text)? };
        let time = columns.names[0];
        if self.arrivals.last().is_some_and(|before| before.at_s > at_s) || at_s < 0.0 {
            return Err(format!("{time} {text} is before that of the line above; sort the trace"));
        }
        if at_s > limits.seconds {
            let (days, most) = (at_s / DAY_S, limits.seconds / DAY_S);
            return Err(format!(
                "{time} {text} is {days:.0} days after the start, which is 0 in t_s; at most {most:.0} days are simulated"
            ));
        }
        let (input_tokens, output_tokens) = (columns.tokens(&fields, 1)?, columns.tokens(&fields, 2)?);
        self.arrivals.push(Arrival { at_s, input_tokens, output_tokens });
        Ok(())
    }

    /// Seconds from the first date, which is remembered, to this one.
    fn since_start(&mut self, text: &str) -> Result<f64, String> {
        let wrong = || format!("TIMESTAMP {text:?} is no date and time like 2023-11-16 18:15:46.68");
        let at = date(text).ok_or_else(wrong)?;
        let start_ms = *self.starts_ms.get_or_insert(u64::try_from(at.as_millisecond()).map_err(|_| wrong())?);
        // The start is cut to milliseconds, so the first request may be a part of one later.
        Ok((at.as_nanosecond() - i128::from(start_ms) * 1_000_000) as f64 / 1e9)
    }
}

/// A date without an offset is one of UTC.
fn date(text: &str) -> Option<jiff::Timestamp> {
    let local = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    text.parse().ok().or_else(|| Some(local()?.timestamp()))
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0);
    number.ok_or_else(|| format!("t_s {text:?} is no number of seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "t_s,input_tokens,output_tokens\n1,2,3\n";

    fn packed(text: &str) -> Vec<u8> {
        use std::io::Write;
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(text.as_bytes()).unwrap();
        packer.finish().unwrap()
    }

    fn arrivals(source: &[u8]) -> Vec<Arrival> {
        read(source, &Limits::STANDARD).unwrap().arrivals
    }

    #[track_caller]
    fn refused(source: &[u8], want: &str) {
        let error = read(source, &Limits::STANDARD).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }

    #[test]
    fn columns_are_found_by_name_and_zero_tokens_count_as_one() {
        let found = arrivals(b"\xef\xbb\xbfinput_tokens,t_s,output_tokens,note\r\n7,0.5,3,x\r\n9, 1,0,y\r\n");
        assert_eq!(found[0], Arrival { at_s: 0.5, input_tokens: 7, output_tokens: 3 });
        assert_eq!(found[1], Arrival { at_s: 1.0, input_tokens: 9, output_tokens: 1 });
    }
    #[test]
    fn gzip_is_read_as_the_plain_text_also_in_several_parts() {
        assert_eq!(arrivals(&packed(HEAD)), arrivals(HEAD.as_bytes()));
        assert_eq!(arrivals(&[packed(HEAD), packed("2,2,3\n")].concat()).len(), 2);
        let whole = packed(HEAD);
        refused(&whole[..whole.len() - 4], "read the trace");
    }
    #[test]
    fn dates_of_azures_traces_count_from_the_first() {
        for (first, second) in [
            ("2023-11-16 18:15:46.6800000", "2023-11-16 18:15:48.1800000"),
            ("2024-05-10 00:00:00.250000+00:00", "2024-05-10 00:00:01.750000+00:00"),
        ] {
            let text = format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{first},4808,10\n{second},110,27\n");
            let trace = read(text.as_bytes(), &Limits::STANDARD).unwrap();
            let times: Vec<f64> = trace.arrivals.iter().map(|a| (a.at_s * 1e6).round() / 1e6).collect();
            assert_eq!(times, [0.0, 1.5], "{first}");
            assert_eq!((trace.arrivals[1].input_tokens, trace.arrivals[1].output_tokens), (110, 27));
            assert!(trace.starts_ms.is_some());
        }
    }
    #[test]
    fn bad_line_is_refused_with_its_number_and_reason() {
        let after = |line: &str| format!("{HEAD}{line}\n").into_bytes();
        refused(b"", "the trace holds no request");
        refused(b"t_s,input_tokens,output_tokens\n\n", "the trace holds no request");
        refused(
            b"a,b,c\n",
            "line 1: the header must name the columns t_s, input_tokens and output_tokens (or TIMESTAMP",
        );
        refused(&after("2,x,3"), "line 3: input_tokens \"x\" is no whole number");
        refused(&after("2,1,-3"), "line 3: output_tokens \"-3\" is no whole number");
        refused(&after("2,1,2000000"), "line 3: output_tokens 2000000 is more than 1048576");
        refused(&after("NaN,1,3"), "line 3: t_s \"NaN\" is no number of seconds");
        refused(&after("2,1"), "line 3: output_tokens is missing");
        refused(&after("\n0.5,1,1"), "line 4: t_s 0.5 is before that of the line above; sort the trace");
        refused(&after("1700000000,1,1"), "line 3: t_s 1700000000 is 19676 days after the start");
        refused(&after(&"9".repeat(5000)), "line 3: it is longer than 4096 bytes");
        refused(&[HEAD.as_bytes(), b"\xff\xfe"].concat(), "line 3: it is no UTF-8 text");
        let dates = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,1\n";
        refused(format!("{dates}yesterday,1,1\n").as_bytes(), "line 3: TIMESTAMP \"yesterday\" is no date and time");
        refused(
            format!("{dates}2023-11-16 18:15:40,1,1\n").as_bytes(),
            "line 3: TIMESTAMP 2023-11-16 18:15:40 is before",
        );
    }
    #[test]
    fn more_than_the_limits_is_refused_whether_packed_or_not() {
        let text = format!("{HEAD}{}", "1,2,3\n".repeat(100));
        let check = |limits: Limits, want: &str| {
            for source in [text.clone().into_bytes(), packed(&text)] {
                assert!(read(source.as_slice(), &limits).unwrap_err().to_string().contains(want), "{want}");
            }
        };
        check(Limits { requests: 100, ..Limits::NONE }, "more than 100 requests");
        check(Limits { bytes: 100, ..Limits::NONE }, "more than 0 MiB (unpacked)");
        assert_eq!(read(text.as_bytes(), &Limits { requests: 101, ..Limits::NONE }).unwrap().arrivals.len(), 101);
    }
}
