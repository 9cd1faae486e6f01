//! Cuts JSON values out of a body as it arrives. Reads one byte at a time, keeps one mark per open bracket and so needs no
//! recursion; says what is wrong with a value in the words of Go's `encoding/json`, which etcd's clients see.
//!
//! It must not know what a value is for.

use bytes::{Buf, Bytes, BytesMut};

use super::call::take_first;

/// Go's bound on brackets in brackets.
const MAX_DEPTH: usize = 10_000;

/// What a value is that ends with the body.
const CUT_OFF: &str = "unexpected EOF";

/// What is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// An object; a name is read.
    Name,
    /// An object; the value of a name is read.
    Member,
    Array,
}

/// What the next byte may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    /// Behind `[`.
    ValueOrEnd,
    Name,
    /// Behind `{`.
    NameOrEnd,
    String,
    Escape,
    /// Of four hexadecimal digits, so many are left.
    Hex(u8),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// In `true`, `false` or `null`, and what is left of it.
    Literal(&'static str, &'static str),
    /// A value has ended; only inside something.
    Behind,
}

/// What a byte did.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    More,
    /// The value ends with this byte.
    Ends,
    /// The value, a number, ended before this byte.
    Ended,
}

/// Reads one value.
#[derive(Debug)]
struct Scanner {
    state: State,
    open: Vec<Open>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Value, open: Vec::new() }
    }
}

impl Scanner {
    fn step(&mut self, byte: u8) -> Result<Step, String> {
        match self.state {
            State::String | State::Escape | State::Hex(_) => self.in_string(byte),
            State::Literal(whole, left) => self.in_literal(byte, whole, left),
            State::Value | State::ValueOrEnd | State::Name | State::NameOrEnd | State::Behind => self.between(byte),
            _ => self.in_number(byte),
        }
    }

    /// Between the tokens, where white space may be.
    fn between(&mut self, byte: u8) -> Result<Step, String> {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            return Ok(Step::More);
        }
        match (self.state, byte) {
            (State::ValueOrEnd, b']') | (State::NameOrEnd, b'}') => Ok(self.close()),
            (State::Value | State::ValueOrEnd, _) => self.begin(byte),
            (State::Name | State::NameOrEnd, b'"') => self.go(State::String),
            (State::Name | State::NameOrEnd, _) => Err(wrong(byte, "looking for beginning of object key string")),
            _ => self.behind(byte),
        }
    }

    fn begin(&mut self, byte: u8) -> Result<Step, String> {
        let state = match byte {
            b'{' => return self.enter(Open::Name, State::NameOrEnd),
            b'[' => return self.enter(Open::Array, State::ValueOrEnd),
            b'"' => State::String,
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Digits,
            b't' => State::Literal("true", "rue"),
            b'f' => State::Literal("false", "alse"),
            b'n' => State::Literal("null", "ull"),
            _ => return Err(wrong(byte, "looking for beginning of value")),
        };
        self.go(state)
    }

    fn behind(&mut self, byte: u8) -> Result<Step, String> {
        match (self.open.last_mut(), byte) {
            (Some(open @ Open::Name), b':') => {
                *open = Open::Member;
                self.go(State::Value)
            }
            (Some(Open::Name), _) => Err(wrong(byte, "after object key")),
            (Some(open @ Open::Member), b',') => {
                *open = Open::Name;
                self.go(State::Name)
            }
            (Some(Open::Member), b'}') | (Some(Open::Array), b']') => Ok(self.close()),
            (Some(Open::Member), _) => Err(wrong(byte, "after object key:value pair")),
            (Some(Open::Array), b',') => self.go(State::Value),
            (Some(Open::Array), _) => Err(wrong(byte, "after array element")),
            // Nothing is open: the value has ended, and its reader with it.
            (None, _) => Ok(Step::Ended),
        }
    }

    fn in_string(&mut self, byte: u8) -> Result<Step, String> {
        match (self.state, byte) {
            (State::String, b'"') => Ok(self.end()),
            (State::String, b'\\') => self.go(State::Escape),
            (State::String, 0..0x20) => Err(wrong(byte, "in string literal")),
            (State::String, _) => Ok(Step::More),
            (State::Escape, b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => self.go(State::String),
            (State::Escape, b'u') => self.go(State::Hex(4)),
            (State::Escape, _) => Err(wrong(byte, "in string escape code")),
            (State::Hex(left), _) if byte.is_ascii_hexdigit() => {
                self.go(if left == 1 { State::String } else { State::Hex(left - 1) })
            }
            _ => Err(wrong(byte, "in \\u hexadecimal character escape")),
        }
    }

    fn in_literal(&mut self, byte: u8, whole: &'static str, left: &'static str) -> Result<Step, String> {
        let expected = left.as_bytes()[0];
        if byte != expected {
            return Err(wrong(byte, &format!("in literal {whole} (expecting {})", quoted(expected))));
        }
        if left.len() == 1 { Ok(self.end()) } else { self.go(State::Literal(whole, &left[1..])) }
    }

    fn in_number(&mut self, byte: u8) -> Result<Step, String> {
        let state = match (self.state, byte) {
            (State::Minus, b'0') => State::Zero,
            (State::Minus, b'1'..=b'9') => State::Digits,
            (State::Minus, _) => return Err(wrong(byte, "in numeric literal")),
            (State::Digits, b'0'..=b'9') => State::Digits,
            (State::Digits | State::Zero, b'.') => State::Point,
            (State::Point | State::Fraction, b'0'..=b'9') => State::Fraction,
            (State::Point, _) => return Err(wrong(byte, "after decimal point in numeric literal")),
            (State::Digits | State::Zero | State::Fraction, b'e' | b'E') => State::Exponent,
            (State::Exponent, b'+' | b'-') => State::ExponentSign,
            (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => State::ExponentDigits,
            (State::Exponent | State::ExponentSign, _) => return Err(wrong(byte, "in exponent of numeric literal")),
            _ => {
                self.state = State::Behind;
                return self.between_or_ended(byte);
            }
        };
        self.go(state)
    }

    /// Behind a number, whose end only the next byte shows.
    fn between_or_ended(&mut self, byte: u8) -> Result<Step, String> {
        if self.open.is_empty() { Ok(Step::Ended) } else { self.between(byte) }
    }

    /// Whether the body may end here: behind a number that nothing encloses.
    fn may_end(&self) -> bool {
        let complete = matches!(self.state, State::Zero | State::Digits | State::Fraction | State::ExponentDigits);
        complete && self.open.is_empty()
    }

    fn go(&mut self, state: State) -> Result<Step, String> {
        self.state = state;
        Ok(Step::More)
    }

    fn enter(&mut self, open: Open, state: State) -> Result<Step, String> {
        self.open.push(open);
        if self.open.len() > MAX_DEPTH {
            return Err(wrong(if open == Open::Array { b'[' } else { b'{' }, "exceeded max depth"));
        }
        self.go(state)
    }

    fn close(&mut self) -> Step {
        self.open.pop();
        self.end()
    }

    fn end(&mut self) -> Step {
        self.state = State::Behind;
        if self.open.is_empty() { Step::Ends } else { Step::More }
    }
}

fn wrong(byte: u8, context: &str) -> String {
    format!("invalid character {} {context}", quoted(byte))
}

/// A byte as Go quotes it: as the character of that number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        7 => r"'\a'".to_owned(),
        8 => r"'\b'".to_owned(),
        9 => r"'\t'".to_owned(),
        10 => r"'\n'".to_owned(),
        11 => r"'\v'".to_owned(),
        12 => r"'\f'".to_owned(),
        13 => r"'\r'".to_owned(),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

/// The values of a body, in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Values {
    buffer: BytesMut,
    scanned: usize,
    scanner: Scanner,
}

impl Values {
    /// Takes more of the body.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes are held.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The next value without the white space around it; `None` while it is not complete.
    ///
    /// # Errors
    /// What is wrong with it. Nothing can be read behind that.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, String> {
        if self.scanned == 0 {
            let blank = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace() && **byte != 12).count();
            self.buffer.advance(blank);
        }
        while let Some(byte) = self.buffer.get(self.scanned) {
            match self.scanner.step(*byte)? {
                Step::More => self.scanned += 1,
                Step::Ends => return Ok(Some(self.cut(self.scanned + 1))),
                Step::Ended => return Ok(Some(self.cut(self.scanned))),
            }
        }
        Ok(None)
    }

    /// The last value, once the body has ended; `None` when there is no further one.
    ///
    /// # Errors
    /// The body ends within a value.
    pub(super) fn last(&mut self) -> Result<Option<Bytes>, String> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        if self.scanner.may_end() { Ok(Some(self.cut(self.scanned))) } else { Err(CUT_OFF.to_owned()) }
    }

    fn cut(&mut self, length: usize) -> Bytes {
        (self.scanned, self.scanner) = (0, Scanner::default());
        take_first(&mut self.buffer, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All values of a body that comes in pieces of `size`, then what ended it.
    fn values(body: &[u8], size: usize) -> (Vec<String>, Result<(), String>) {
        let (mut values, mut found) = (Values::default(), Vec::new());
        let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
        for piece in body.chunks(size) {
            values.push(piece);
            loop {
                match values.next() {
                    Ok(Some(value)) => found.push(text(value)),
                    Ok(None) => break,
                    Err(error) => return (found, Err(error)),
                }
            }
        }
        match values.last() {
            Ok(last) => {
                found.extend(last.map(text));
                (found, Ok(()))
            }
            Err(error) => (found, Err(error)),
        }
    }

    #[test]
    fn values_are_cut_wherever_the_pieces_end() {
        let body = br#" {"a":[1,{"b":"}\""}]} {}[] "x"true 12 -1.5e+3null"#;
        let whole = values(body, body.len());
        assert_eq!(whole.0, [r#"{"a":[1,{"b":"}\""}]}"#, "{}", "[]", r#""x""#, "true", "12", "-1.5e+3", "null"]);
        for size in 1..body.len() {
            assert_eq!(values(body, size), whole, "pieces of {size}");
        }
    }

    #[test]
    fn errors_are_gos() {
        for (body, error) in [
            ("junk", "invalid character 'j' looking for beginning of value"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            ("{'a':1}", r"invalid character '\'' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":01}"#, "invalid character '1' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            (r#"{"a":+1}"#, "invalid character '+' looking for beginning of value"),
            ("[-x]", "invalid character 'x' in numeric literal"),
            ("[1.x]", "invalid character 'x' after decimal point in numeric literal"),
            ("[1ex]", "invalid character 'x' in exponent of numeric literal"),
            ("nil", "invalid character 'i' in literal null (expecting 'u')"),
            ("\"\n\"", r"invalid character '\n' in string literal"),
            (r#""\x""#, "invalid character 'x' in string escape code"),
            (r#""\u00g0""#, r"invalid character 'g' in \u hexadecimal character escape"),
            ("é", "invalid character 'Ã' looking for beginning of value"),
            ("{", CUT_OFF),
            ("-", CUT_OFF),
            ("\"a", CUT_OFF),
        ] {
            assert_eq!(values(body.as_bytes(), 1000).1, Err(error.to_owned()), "{body}");
        }
    }

    #[test]
    fn brackets_are_bounded() {
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(values(deep(MAX_DEPTH).as_bytes(), 1 << 20).1, Ok(()));
        let error = "invalid character '[' exceeded max depth".to_owned();
        assert_eq!(values(deep(MAX_DEPTH + 1).as_bytes(), 1 << 20).1, Err(error));
    }
}
