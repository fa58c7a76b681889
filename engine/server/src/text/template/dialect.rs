//! The language of published chat templates: Jinja2 as Hugging Face's `transformers` sets it up.
//!
//! Differences between Jinja2 and the engine used here that templates can notice are removed: how values
//! are printed, the methods of Python's types, JSON as Python writes it, and the functions that
//! `transformers` adds.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python;

/// Marks the messages of `raise_exception`, which are meant for the client that sent the request.
pub(super) const REFUSAL: &str = "\u{1}refused: ";

pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&python::text(value)).map_err(Error::from),
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("attr", attribute);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_test("callable", |value: &Value| {
        value.as_object().is_some_and(|object| object.repr() == minijinja::value::ObjectRepr::Plain)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSAL}{message}")))
    });
    Ok(environment)
}

/// The one function that depends on the time.
pub(super) fn set_clock(environment: &mut Environment<'_>, now: Timestamp) {
    environment.add_function("strftime_now", move |format: &str| {
        let time = now.to_zoned(TimeZone::UTC);
        jiff::fmt::strtime::format(format, &time)
            .map_err(|err| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {err}")))
    });
}

/// JSON as `transformers` has it: not escaped for HTML, and ASCII only when asked for.
fn to_json(state: &mut State<'_, '_>, value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let or = |name: &str, default: bool| Ok::<bool, Error>(options.get::<Option<bool>>(name)?.unwrap_or(default));
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let format = python::JsonFormat {
        ensure_ascii: or("ensure_ascii", false)?,
        sort_keys: or("sort_keys", false)?,
        indent: indent.as_ref().and_then(|indent| usize::try_from(indent.clone()).ok()),
        separators: separators.and_then(|pair| <[String; 2]>::try_from(pair).ok()),
    };
    options.assert_all_used()?;
    let text = python::json(value, &format)?;
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(Value::from_safe_string(text))
}

/// An attribute is no item: the keys of a mapping are not found by it.
fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if value.kind() == ValueKind::Map { Ok(Value::UNDEFINED) } else { value.get_attr(name) }
}

/// The methods of Python. They pay for what they make, all but `format`, for which we do.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == "format"
        && let Some(text) = value.as_str()
    {
        state.consume_fuel(most_formatted(text, args)? / 64)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// No `str.format` of this text makes more bytes: each field is as wide as the widest argument, or as any
/// number in the text says. Lists and mappings are refused: what they take is not known beforehand.
fn most_formatted(text: &str, args: &[Value]) -> Result<u64, Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    let named: Vec<Value> = named.args().map(|name| named.get(name)).collect::<Result<_, _>>()?;
    let mut widest = 0;
    for value in positional.iter().chain(&named) {
        let Some(width) = width(value) else {
            let what = format!("str.format takes text and numbers, not a {}", value.kind());
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        };
        widest = widest.max(width as u64);
    }
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
    let widths = numbers.map(|run| run.parse().unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
    let fields = text.matches('{').count() as u64;
    // A character that fills may be four bytes long.
    Ok(fields.saturating_mul(widest).saturating_add(widths.saturating_mul(4)).saturating_add(text.len() as u64))
}

/// Bytes of a value written out, at most; `None`: of what it consists of.
fn width(value: &Value) -> Option<usize> {
    match value.kind() {
        ValueKind::String => value.as_str().map(str::len),
        // The least positive double in full.
        ValueKind::Number | ValueKind::Bool | ValueKind::None | ValueKind::Undefined => Some(1100),
        _ => None,
    }
}
