//! Arrivals: `t_s,input_tokens,output_tokens`, a header line, plain or gzip, in order of time.

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

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be read or unpacked.
    #[error("read the trace: {0}")]
    Read(#[from] std::io::Error),
    /// The first line names no columns.
    #[error("line 1: the header must name the columns t_s, input_tokens and output_tokens, found {0:?}")]
    Header(String),
    /// A line that is no request.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to replay.
    #[error("the trace holds no request")]
    Empty,
}

const COLUMNS: [&str; 3] = ["t_s", "input_tokens", "output_tokens"];

/// Reads a trace; gzip is recognised by its first bytes.
pub fn read(source: impl Read) -> Result<Vec<Arrival>, TraceError> {
    let mut source = BufReader::new(source);
    if source.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return lines(BufReader::new(flate2::bufread::GzDecoder::new(source)));
    }
    lines(source)
}

fn lines(source: impl BufRead) -> Result<Vec<Arrival>, TraceError> {
    let mut arrivals: Vec<Arrival> = Vec::new();
    let mut columns = [0, 1, 2];
    for (index, text) in source.lines().enumerate() {
        let text = text?;
        if index == 0 {
            columns = header(&text)?;
            continue;
        }
        if text.trim().is_empty() {
            continue;
        }
        let refused = |reason: String| TraceError::Line { line: index + 1, reason };
        let arrival = arrival(&text, columns).map_err(refused)?;
        if arrivals.last().is_some_and(|before| before.at_s > arrival.at_s) {
            return Err(refused(format!("t_s {} is before that of the line above; sort the trace", arrival.at_s)));
        }
        arrivals.push(arrival);
    }
    if arrivals.is_empty() { Err(TraceError::Empty) } else { Ok(arrivals) }
}

fn header(text: &str) -> Result<[usize; 3], TraceError> {
    let names: Vec<&str> = text.trim().split(',').map(str::trim).collect();
    let found = COLUMNS.map(|column| names.iter().position(|name| *name == column));
    match found {
        [Some(t), Some(input), Some(output)] => Ok([t, input, output]),
        _ => Err(TraceError::Header(text.chars().take(80).collect())),
    }
}

fn arrival(text: &str, columns: [usize; 3]) -> Result<Arrival, String> {
    let fields: Vec<&str> = text.split(',').map(str::trim).collect();
    let field =
        |column: usize| fields.get(columns[column]).copied().ok_or_else(|| format!("{} is missing", COLUMNS[column]));
    let tokens = |column: usize| {
        let text = field(column)?;
        let count: u32 = text.parse().map_err(|_| format!("{} {text:?} is no whole number", COLUMNS[column]))?;
        Ok::<_, String>(count.max(1))
    };
    let at = field(0)?;
    let at_s = at.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0);
    Ok(Arrival {
        at_s: at_s.ok_or_else(|| format!("t_s {at:?} is no number of seconds"))?,
        input_tokens: tokens(1)?,
        output_tokens: tokens(2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, want: &str) {
        assert_eq!(read(text.as_bytes()).unwrap_err().to_string(), want);
    }

    #[test]
    fn columns_are_found_by_name_and_zero_tokens_count_as_one() {
        let arrivals = read("input_tokens,t_s,output_tokens,note\n7,0.5,3,x\n9,1,0,y\n".as_bytes()).unwrap();
        assert_eq!(arrivals[0], Arrival { at_s: 0.5, input_tokens: 7, output_tokens: 3 });
        assert_eq!(arrivals[1].output_tokens, 1);
    }
    #[test]
    fn gzip_is_read_as_the_plain_text() {
        use std::io::Write;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"t_s,input_tokens,output_tokens\n1,2,3\n").unwrap();
        assert_eq!(read(packed.finish().unwrap().as_slice()).unwrap().len(), 1);
    }
    #[test]
    fn bad_line_is_refused_with_its_number_and_reason() {
        const HEAD: &str = "t_s,input_tokens,output_tokens\n1,2,3\n";
        refused("", "the trace holds no request");
        refused(
            "a,b,c\n",
            "line 1: the header must name the columns t_s, input_tokens and output_tokens, found \"a,b,c\"",
        );
        refused(&format!("{HEAD}2,x,3\n"), "line 3: input_tokens \"x\" is no whole number");
        refused(&format!("{HEAD}NaN,1,3\n"), "line 3: t_s \"NaN\" is no number of seconds");
        refused(&format!("{HEAD}2,1\n"), "line 3: output_tokens is missing");
        refused(&format!("{HEAD}\n0.5,1,1\n"), "line 4: t_s 0.5 is before that of the line above; sort the trace");
    }
}
