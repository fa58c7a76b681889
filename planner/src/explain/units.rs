//! Figures as people read them: binary bytes, ages, times of day, GPUs.

/// `2 GiB`, `1.5 GiB`, `256 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 6] =
        [("EiB", 1 << 60), ("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| n >= *size) {
        Some((unit, size)) => format!("{} {unit}", tenths(n, *size)),
        None => format!("{n} B"),
    }
}

/// Rounded to tenths, which are left out when zero.
fn tenths(n: u64, unit: u64) -> String {
    let t = (u128::from(n) * 10 + u128::from(unit) / 2) / u128::from(unit);
    if t % 10 == 0 { format!("{}", t / 10) } else { format!("{}.{}", t / 10, t % 10) }
}

/// `0.8 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..10 => format!("{}.{} s", s, ms % 1000 / 100),
        10..120 => format!("{s} s"),
        120..7_200 => two(s / 60, "min", s % 60, "s"),
        7_200..172_800 => two(s / 3600, "h", s % 3600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

/// Of microseconds: `9.1 ms`, `3.2 s`.
pub fn latency(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

fn two(a: u64, unit_a: &str, b: u64, unit_b: &str) -> String {
    if b == 0 { format!("{a} {unit_a}") } else { format!("{a} {unit_a} {b} {unit_b}") }
}

/// Time of day in UTC.
pub fn clock(at_ms: u64) -> String {
    let s = at_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", s / 3600, s % 3600 / 60, s % 60)
}

/// Thousandths of a GPU (or a core) as a decimal: `4`, `0.3`, `1.025`.
pub fn gpus(milli: u64) -> String {
    let (whole, rest) = (milli / 1000, milli % 1000);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = format!("{rest:03}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_binary_with_one_decimal_where_it_says_something() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (2 << 30, "2 GiB"), (3 << 29, "1.5 GiB"), (256 << 20, "256 MiB")];
        for (n, want) in cases {
            assert_eq!(bytes(n), want);
        }
    }

    #[test]
    fn ages_have_two_units_at_most() {
        let cases =
            [(0, "0.0 s"), (1_240, "1.2 s"), (90_000, "90 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min")];
        for (ms, want) in cases {
            assert_eq!(age(ms), want);
        }
    }

    #[test]
    fn latencies_have_one_decimal() {
        assert_eq!([9_140, 212_400, 3_250_000].map(latency), ["9.1 ms", "212.4 ms", "3.2 s"]);
    }

    #[test]
    fn gpus_and_times() {
        assert_eq!((gpus(25), gpus(300), gpus(4000)), ("0.025".into(), "0.3".into(), "4".into()));
        assert_eq!(clock(1_700_000_000_000), "22:13:20Z");
    }
}
