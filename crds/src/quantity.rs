//! Text to numbers: quantities to bytes or thousandths, durations to [`Duration`].
//!
//! Follows Kubernetes' notation (`20Gi`, `500m`, `1.5`, `2e3`) in integers only; fractions that
//! cannot be held are rounded up, as Kubernetes does. No input panics or overflows silently: what is
//! not understood comes back as a [`ParseError`] that shows the text and an example.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use thiserror::Error;

/// Why a text is not a number.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Not a quantity at all.
    #[error("\"{0}\" is not a quantity; write for example 20Gi, 500m or 4")]
    Quantity(String),
    /// Below zero.
    #[error("\"{0}\" is negative; write a quantity of at least 0")]
    Negative(String),
    /// More than a signed 64-bit number of thousandths can hold.
    #[error("\"{0}\" is too large; write a quantity below 8Pi")]
    TooLarge(String),
    /// Not a duration.
    #[error("\"{0}\" is not a duration; write a whole number and ms, s, m or h, for example 500ms or 10m")]
    Duration(String),
    /// More than ten years.
    #[error("\"{0}\" is longer than ten years; write a shorter duration, for example 24h")]
    TooLong(String),
    /// Not a price.
    #[error("\"{0}\" is not an amount; write digits with at most six decimals, for example 3.00")]
    Amount(String),
}

/// 1Mi. A size below it is a missing unit, and no engine runs in it.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// 1Pi. A size above it is a wrong unit.
pub const MAX_MEMORY_BYTES: u64 = 1 << 50;

/// Bytes. A fraction of a byte is rounded up.
pub fn parse_bytes(quantity: &Quantity) -> Result<u64, ParseError> {
    let milli = parse_milli_u128(&quantity.0)?;
    u64::try_from(milli.div_ceil(1000)).map_err(|_| ParseError::TooLarge(shown(&quantity.0)))
}

/// Thousandths: milli-CPU of a CPU quantity, milli-GPU of a GPU quantity. Finer parts are rounded up.
pub fn parse_milli(quantity: &Quantity) -> Result<u64, ParseError> {
    let milli = parse_milli_u128(&quantity.0)?;
    u64::try_from(milli).map_err(|_| ParseError::TooLarge(shown(&quantity.0)))
}

/// A duration: a whole number and `ms`, `s`, `m` or `h`, at most ten years.
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    let wrong = || ParseError::Duration(shown(text));
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    const TEN_YEARS_MS: u64 = 10 * 366 * 24 * 3_600_000;
    if number.is_empty() {
        return Err(wrong());
    }
    // Only digits are left, so a number that does not parse is one that does not fit.
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis_per_unit)) {
        Some(millis) if millis <= TEN_YEARS_MS => Ok(Duration::from_millis(millis)),
        _ => Err(ParseError::TooLong(shown(text))),
    }
}

/// An amount of money in millionths of its currency.
pub fn parse_micros(text: &str) -> Result<u64, ParseError> {
    let wrong = || ParseError::Amount(shown(text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 12 || fraction.len() > 6 || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    format!("{whole}{fraction:0<6}").parse().map_err(|_| wrong())
}

/// Bytes as the shortest exact quantity in binary units: `20Gi`, `1536Mi`, `7`.
pub fn bytes_quantity(bytes: u64) -> Quantity {
    const UNITS: [(&str, u32); 4] = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    for (unit, shift) in UNITS {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return Quantity(format!("{}{unit}", bytes >> shift));
        }
    }
    Quantity(bytes.to_string())
}

/// Thousandths as a quantity: `4`, `500m`.
pub fn milli_quantity(milli: u64) -> Quantity {
    if milli.is_multiple_of(1000) { Quantity((milli / 1000).to_string()) } else { Quantity(format!("{milli}m")) }
}

/// `10^power` or `2^power`, and the text's value in thousandths.
fn parse_milli_u128(text: &str) -> Result<u128, ParseError> {
    let wrong = || ParseError::Quantity(shown(text));
    let too_large = || ParseError::TooLarge(shown(text));
    if let Some(rest) = text.strip_prefix('-') {
        // "-0" is zero to Kubernetes; anything else below zero has no meaning in our API.
        return match parse_milli_u128(rest) {
            Ok(0) => Ok(0),
            Ok(_) | Err(ParseError::TooLarge(_)) => Err(ParseError::Negative(shown(text))),
            Err(_) => Err(wrong()),
        };
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let number_len = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = unsigned.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || text.len() > 64 {
        return Err(wrong());
    }
    // Decimals beyond the ninth cannot matter after rounding up to a thousandth or a byte.
    let kept = &fraction[..fraction.len().min(9)];
    let lost = fraction[kept.len()..].bytes().any(|b| b != b'0');
    let digits = format!("{whole}{kept:0<9}");
    let nanos: u128 = digits.parse().map_err(|_| too_large())?;
    let nanos = nanos.checked_add(lost.into()).ok_or_else(too_large)?;
    let (multiplier, divisor) = scale_of(suffix).ok_or_else(wrong)?;
    let scaled = nanos.checked_mul(multiplier).ok_or_else(too_large)?;
    // nanos → thousandths
    let milli = scaled.div_ceil(divisor).div_ceil(1_000_000);
    if milli > i64::MAX as u128 { Err(too_large()) } else { Ok(milli) }
}

/// Multiplier and divisor of a suffix.
fn scale_of(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-18..=18).contains(&exponent) {
                return None;
            }
            let power = 10u128.pow(exponent.unsigned_abs());
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

/// The text as it appears in messages: bounded, whatever was stored.
fn shown(text: &str) -> String {
    const LONGEST: usize = 32;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let start: String = text.chars().take(LONGEST).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<u64, ParseError> {
        parse_bytes(&Quantity(text.into()))
    }

    fn milli(text: &str) -> Result<u64, ParseError> {
        parse_milli(&Quantity(text.into()))
    }

    #[test]
    fn sizes_are_bytes() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("20Gi", 20 << 30),
            ("1.5Gi", 3 << 29),
            ("+256Mi", 256 << 20),
            ("80G", 80_000_000_000),
            ("1e3", 1000),
            ("2E3", 2000),
            ("100m", 1),
            (".5Ki", 512),
            ("7.", 7),
            ("1.0000000000001", 2),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn gpus_and_cpus_are_thousandths() {
        for (text, expected) in [("4", 4000), ("500m", 500), ("0.25", 250), ("0.0001", 1), ("1u", 1), ("2k", 2_000_000)]
        {
            assert_eq!(milli(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn number_that_fits_until_its_lost_digits_are_rounded_up_is_too_large() {
        let text = "340282366920938463463374607431.7682114551";
        assert_eq!(bytes(text), Err(ParseError::TooLarge(shown(text))));
    }

    #[test]
    fn text_that_is_no_quantity_is_refused_without_a_panic() {
        for text in
            ["", " ", "Gi", "1Qi", "1 Gi", "1..2", "1.2.3", "0x10", "NaN", "1e", "1e99", "--1", "é", "1é", "Auto", "٣"]
        {
            assert!(matches!(bytes(text), Err(ParseError::Quantity(_))), "{text}: {:?}", bytes(text));
        }
        assert!(matches!(bytes("-1Gi"), Err(ParseError::Negative(_))));
        for text in ["8Ei", "99999999999999999999", "999999999999999999999999999999999999999999999999", "16Pi"] {
            assert!(matches!(bytes(text), Err(ParseError::TooLarge(_))), "{text}: {:?}", bytes(text));
        }
        let long = "9".repeat(5000);
        assert!(bytes(&long).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn durations_have_one_unit() {
        for (text, expected) in [("500ms", 500), ("0s", 0), ("300s", 300_000), ("10m", 600_000), ("24h", 86_400_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "5", "s", "1h30m", "-1s", "1.5s", "1d", "5 s", "é"] {
            assert!(matches!(parse_duration(text), Err(ParseError::Duration(_))), "{text}");
        }
        for text in ["99999999999999999999h", "9999999999h", "87841h", "999999999999999999ms"] {
            assert!(matches!(parse_duration(text), Err(ParseError::TooLong(_))), "{text}");
        }
    }

    #[test]
    fn money_is_exact() {
        assert_eq!(parse_micros("3.00"), Ok(3_000_000));
        assert_eq!(parse_micros("0.000002"), Ok(2));
        assert_eq!(parse_micros("120"), Ok(120_000_000));
        for text in ["", ".5", "1,5", "-1", "1.2345678", "1e3", "1.2.3"] {
            assert!(parse_micros(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_are_written_in_the_largest_exact_unit() {
        for (value, expected) in [(0, "0"), (7, "7"), (20 << 30, "20Gi"), (1536 << 20, "1536Mi"), (1 << 40, "1Ti")] {
            assert_eq!(bytes_quantity(value).0, expected);
            assert_eq!(parse_bytes(&bytes_quantity(value)), Ok(value));
        }
        assert_eq!(milli_quantity(4000).0, "4");
        assert_eq!(milli_quantity(250).0, "250m");
    }
}
