//! JSON as QEMU writes and reads it: strings in either kind of quotes, and complaints in its words.

use cowhand_core::{Error, Result};
use serde_json::{Map, Number, Value};

/// How deep one value may stand in another.
const DEPTH: usize = 1024;

/// The one value that `text` is, as QEMU takes it. Errors: it is none, or not one; in QEMU's words.
pub fn parse(text: &str) -> Result<Value> {
    let tokens = Lexer { text, at: 0 }.all()?;
    if tokens.is_empty() {
        return Err(Error::invalid("Expecting a JSON value"));
    }
    let mut parser = Parser { tokens: &tokens, depth: 0 };
    let value = parser.value()?;
    match parser.tokens {
        [] => Ok(value),
        _ => Err(Error::invalid("Expecting at most one JSON value")),
    }
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("JSON parse error, {what}"))
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    /// One of `{}[],:`.
    Mark(char),
    Keyword(&'a str),
    Number(&'a str),
    /// What stands between the quotes.
    Text(&'a str),
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn all(mut self) -> Result<Vec<Token<'a>>> {
        let mut tokens = Vec::new();
        while let Some(c) = self.peek() {
            if matches!(c, ' ' | '\t' | '\r' | '\n') {
                self.at += 1;
            } else {
                tokens.push(self.token(c)?);
            }
        }
        Ok(tokens)
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn skip(&mut self, wanted: impl Fn(char) -> bool) {
        while let Some(c) = self.peek().filter(|c| wanted(*c)) {
            self.at += c.len_utf8();
        }
    }

    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// What began at `start` and ends with the next character cannot be.
    fn stray<T>(&mut self, start: usize) -> Result<T> {
        self.at += self.peek().map_or(0, char::len_utf8);
        Err(wrong(format!("stray '{}'", self.since(start))))
    }

    fn token(&mut self, first: char) -> Result<Token<'a>> {
        let start = self.at;
        match first {
            '{' | '}' | '[' | ']' | ',' | ':' => {
                self.at += 1;
                Ok(Token::Mark(first))
            }
            'a'..='z' => {
                self.skip(|c| c.is_ascii_lowercase());
                Ok(Token::Keyword(self.since(start)))
            }
            '-' | '0'..='9' => self.number(start),
            '"' | '\'' => self.quoted(start, first),
            _ => self.stray(start),
        }
    }

    fn number(&mut self, start: usize) -> Result<Token<'a>> {
        let digit = |c: char| c.is_ascii_digit();
        if self.peek() == Some('-') {
            self.at += 1;
        }
        match self.peek() {
            Some('0') => {
                self.at += 1;
                if self.peek().is_some_and(digit) {
                    return self.stray(start);
                }
            }
            Some('1'..='9') => self.skip(digit),
            _ => return self.stray(start),
        }
        if self.peek() == Some('.') {
            self.at += 1;
            if !self.peek().is_some_and(digit) {
                return self.stray(start);
            }
            self.skip(digit);
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            self.at += 1;
            if matches!(self.peek(), Some('+' | '-')) {
                self.at += 1;
            }
            if !self.peek().is_some_and(digit) {
                return self.stray(start);
            }
            self.skip(digit);
        }
        Ok(Token::Number(self.since(start)))
    }

    fn quoted(&mut self, start: usize, quote: char) -> Result<Token<'a>> {
        self.at += 1;
        let inside = self.at;
        loop {
            match self.peek() {
                Some(c) if c == quote => {
                    let text = self.since(inside);
                    self.at += 1;
                    return Ok(Token::Text(text));
                }
                Some('\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(c) if c >= ' ' => self.at += c.len_utf8(),
                        _ => return self.stray(start),
                    }
                }
                Some(c) if c >= ' ' => self.at += c.len_utf8(),
                _ => return self.stray(start),
            }
        }
    }
}

struct Parser<'a, 't> {
    tokens: &'t [Token<'a>],
    depth: usize,
}

impl<'a> Parser<'a, '_> {
    fn next(&mut self) -> Result<Token<'a>> {
        let (first, rest) = self.tokens.split_first().ok_or_else(|| wrong("premature EOI"))?;
        self.tokens = rest;
        Ok(first.clone())
    }

    /// Takes the mark if it is the next token.
    fn takes(&mut self, mark: char) -> bool {
        let found = self.tokens.first() == Some(&Token::Mark(mark));
        if found {
            self.tokens = self.tokens.get(1..).unwrap_or_default();
        }
        found
    }

    fn value(&mut self) -> Result<Value> {
        match self.next()? {
            Token::Mark(open @ ('{' | '[')) => {
                self.depth += 1;
                if self.depth > DEPTH {
                    return Err(Error::invalid("JSON nesting depth limit exceeded"));
                }
                let value = if open == '{' { self.object() } else { self.list() };
                self.depth -= 1;
                value
            }
            Token::Keyword("true") => Ok(Value::Bool(true)),
            Token::Keyword("false") => Ok(Value::Bool(false)),
            Token::Keyword("null") => Ok(Value::Null),
            Token::Keyword(other) => Err(wrong(format!("invalid keyword '{other}'"))),
            Token::Number(text) => number(text),
            Token::Text(text) => unescaped(text).map(Value::String),
            Token::Mark(_) => Err(wrong("expecting value")),
        }
    }

    fn object(&mut self) -> Result<Value> {
        let mut all = Map::new();
        if self.takes('}') {
            return Ok(Value::Object(all));
        }
        loop {
            let Value::String(key) = self.value()? else {
                return Err(wrong("key is not a string in object"));
            };
            if self.next()? != Token::Mark(':') {
                return Err(wrong("missing : in object pair"));
            }
            let value = self.value()?;
            if all.insert(key, value).is_some() {
                return Err(wrong("duplicate key"));
            }
            match self.next()? {
                Token::Mark('}') => return Ok(Value::Object(all)),
                Token::Mark(',') => {}
                _ => return Err(wrong("expected separator in dict")),
            }
        }
    }

    fn list(&mut self) -> Result<Value> {
        let mut all = Vec::new();
        if self.takes(']') {
            return Ok(Value::Array(all));
        }
        loop {
            all.push(self.value()?);
            match self.next()? {
                Token::Mark(']') => return Ok(Value::Array(all)),
                Token::Mark(',') => {}
                _ => return Err(wrong("expected separator in list")),
            }
        }
    }
}

/// A whole number where it is one of 64 bits, else a fraction.
fn number(text: &str) -> Result<Value> {
    let whole = text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from));
    let found = whole.ok().or_else(|| Number::from_f64(text.parse().ok()?));
    found.map(Value::Number).ok_or_else(|| wrong(format!("stray '{text}'")))
}

fn unescaped(text: &str) -> Result<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('\\') {
        plain.push_str(before);
        let mut chars = behind.chars();
        plain.push(match chars.next() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some(c @ ('"' | '\'' | '\\' | '/')) => c,
            Some('u') => {
                let (c, left) = code_point(behind)?;
                plain.push(c);
                rest = left;
                continue;
            }
            _ => return Err(wrong("invalid escape sequence in string")),
        });
        rest = chars.as_str();
    }
    plain.push_str(rest);
    Ok(plain)
}

/// The character of `uXXXX`, or of two of them that stand for one, and what is behind. The end of text is written as QEMU
/// keeps it.
fn code_point(text: &str) -> Result<(char, &str)> {
    let unit = |text: &str| {
        let digits = text.strip_prefix('u')?.get(..4)?;
        let all = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        all.then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let invalid = || {
        let shown: String = text.chars().take(5).collect();
        wrong(format!("\\{shown} is not a valid Unicode character"))
    };
    let first = unit(text).ok_or_else(invalid)?;
    let behind = text.get(5..).unwrap_or_default();
    if (0xd800..0xdc00).contains(&first) {
        let second = behind.strip_prefix('\\').and_then(unit).filter(|unit| (0xdc00..0xe000).contains(unit));
        let second = second.ok_or_else(invalid)?;
        let c = char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)).ok_or_else(invalid)?;
        return Ok((c, behind.get(6..).unwrap_or_default()));
    }
    Ok((char::from_u32(first).ok_or_else(invalid)?, behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_kinds_of_quotes() {
        assert_eq!(
            parse(r#" {'a': "b'c", "d": ['\'x', -1, 2.5, true, null, {}, []], "\u00e9\ud83d\ude00": 18446744073709551615} "#)
                .unwrap(),
            json!({"a": "b'c", "d": ["'x", -1, 2.5, true, null, {}, []], "é😀": u64::MAX})
        );
    }

    #[test]
    fn complaints() {
        for (text, said) in [
            ("", "Expecting a JSON value"),
            ("{} x", "Expecting at most one JSON value"),
            ("{", "JSON parse error, premature EOI"),
            ("{]", "JSON parse error, expecting value"),
            ("}", "JSON parse error, expecting value"),
            ("{'a'}", "JSON parse error, missing : in object pair"),
            ("{'a':}", "JSON parse error, expecting value"),
            ("{'a':1,}", "JSON parse error, expecting value"),
            ("{'a':1 'b'}", "JSON parse error, expected separator in dict"),
            ("[1 2]", "JSON parse error, expected separator in list"),
            ("{a:1}", "JSON parse error, invalid keyword 'a'"),
            ("{1:1}", "JSON parse error, key is not a string in object"),
            ("{'a':1,'a':2}", "JSON parse error, duplicate key"),
            ("'\\q'", "JSON parse error, invalid escape sequence in string"),
            ("'\\u00zz'", "JSON parse error, \\u00zz is not a valid Unicode character"),
            ("\"abc", "JSON parse error, stray '\"abc'"),
            ("01", "JSON parse error, stray '01'"),
            ("{'a':-}", "JSON parse error, stray '-}'"),
            ("TRUE", "JSON parse error, stray 'T'"),
        ] {
            assert_eq!(parse(text).unwrap_err().message(), said, "{text}");
        }
        assert!(parse(&"[".repeat(5000)).is_err());
    }
}
