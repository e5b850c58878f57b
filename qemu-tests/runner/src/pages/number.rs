// SPDX-License-Identifier: GPL-2.0
//! Numbers for people, with their digits in groups of three.

/// A number with this many digits after the decimal point.
pub fn grouped(value: f64, digits: usize) -> String {
    let plain = format!("{:.digits$}", value.abs());
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let is_zero = plain.chars().all(|c| !c.is_ascii_digit() || c == '0');
    let sign = if value < 0.0 && !is_zero { "-" } else { "" };
    format!("{sign}{grouped}{fraction}")
}

/// A number with two digits after the decimal point, unless it is an integer.
pub fn shown(value: f64) -> String {
    grouped(value, if value.fract() == 0.0 { 0 } else { 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(grouped(1234567.4, 0), "1,234,567");
        assert_eq!(grouped(999.0, 0), "999");
        assert_eq!(grouped(-1000.0, 0), "-1,000");
        assert_eq!(grouped(-0.2, 0), "0");
        assert_eq!(grouped(1.049, 2), "1.05");
        assert_eq!(grouped(-100.0, 0), "-100");
        assert_eq!(grouped(0.0, 0), "0");
    }
}
