//! Reading numbers out of the text files of /proc.

/// Hexadecimal, without prefix.
pub fn hex(s: &[u8]) -> u64 {
    s.iter().map_while(|&c| char::from(c).to_digit(16)).fold(0, |a, d| a << 4 | u64::from(d))
}

/// Decimal.
pub fn dec(s: &[u8]) -> u64 {
    s.iter().map_while(|&c| char::from(c).to_digit(10)).fold(0, |a, d| a.wrapping_mul(10).wrapping_add(u64::from(d)))
}

/// Decimal with a sign.
pub fn signed(s: &[u8]) -> i64 {
    match s {
        [b'-', rest @ ..] => -(dec(rest) as i64),
        _ => dec(s) as i64,
    }
}

/// Lines without their ends, empty ones left out.
pub fn lines(s: &[u8]) -> impl Iterator<Item = &[u8]> {
    s.split(|&c| c == b'\n').filter(|l| !l.is_empty())
}

/// The value of `key` in lines of the form "Key:\tvalue".
pub fn value<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    lines(text).find_map(|l| l.strip_prefix(key.as_bytes())).map(|v| v.strip_prefix(b":").unwrap_or(v).trim_ascii())
}
