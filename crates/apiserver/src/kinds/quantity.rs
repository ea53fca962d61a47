//! Resource quantities: `500m`, `1Gi`, `1e3`; parsing, comparing and their canonical form.
//!
//! Source: `k8s.io/apimachinery/pkg/api/resource`.

/// Complaint about a text that is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not have the form of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    /// The suffix is not known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

const NANO: i128 = 1_000_000_000;
/// Larger numbers than this (in nano units) are capped; the reference caps at 2^63 - 1.
const LIMIT: i128 = (i64::MAX as i128) * NANO;

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 1), ("Mi", 2), ("Gi", 3), ("Ti", 4), ("Pi", 5), ("Ei", 6)];

/// The value in units of 10^-9, rounded up.
///
/// # Errors
///
/// [`QuantityError`] if the text is no quantity.
pub fn nanos(text: &str) -> Result<i128, QuantityError> {
    parse(text).map(|(value, _)| value)
}

/// The canonical form: no fraction, and the largest suffix that needs none.
///
/// # Errors
///
/// [`QuantityError`] if the text is no quantity.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    let (value, format) = parse(text)?;
    if value == 0 {
        return Ok("0".into());
    }
    if format == Format::Binary && value.abs() >= 1024 * NANO {
        return Ok(binary_text(value));
    }
    let (mut number, mut exponent) = (value, -9);
    while number % 1000 == 0 && exponent < 18 {
        number /= 1000;
        exponent += 3;
    }
    if format == Format::Exponent {
        return Ok(if exponent == 0 { number.to_string() } else { format!("{number}e{exponent}") });
    }
    let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(suffix, _)| suffix);
    Ok(format!("{number}{suffix}"))
}

fn binary_text(value: i128) -> String {
    // Fractions of a byte are rounded up.
    let mut number = value.div_euclid(NANO) + i128::from(value.rem_euclid(NANO) != 0);
    let mut power = 0;
    while number % 1024 == 0 && power < 6 {
        number /= 1024;
        power += 1;
    }
    let suffix = BINARY.iter().find(|(_, p)| *p == power).map_or("", |(suffix, _)| suffix);
    format!("{number}{suffix}")
}

fn parse(text: &str) -> Result<(i128, Format), QuantityError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
        None => return Err(QuantityError::Form),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(QuantityError::Form);
    }
    let (scale, binary, format) = parse_suffix(suffix)?;
    let value = scaled(whole, fraction, scale, binary);
    Ok((if negative { -value } else { value }, format))
}

/// Power of ten, power of 1024, and format.
fn parse_suffix(suffix: &str) -> Result<(i32, u32, Format), QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((*exponent, 0, Format::Decimal));
    }
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((0, *power, Format::Binary));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or_else(|| {
        let known = suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c));
        if known { QuantityError::Suffix } else { QuantityError::Form }
    })?;
    let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    Ok((exponent.clamp(-64, 64), 0, Format::Exponent))
}

/// `whole.fraction * 10^scale * 1024^binary` in nano units, rounded up and capped.
fn scaled(whole: &str, fraction: &str, scale: i32, binary: u32) -> i128 {
    let mut value: i128 = 0;
    // Digits are taken until the number is far above the cap; later ones of the fraction cannot matter but for
    // rounding up.
    let (mut exponent, mut sticky) = (scale + 9, false);
    let digits = whole.bytes().map(|b| (b, false)).chain(fraction.bytes().map(|b| (b, true)));
    for (digit, after_point) in digits {
        if value > 1_000_000_000_000_000_000_000 {
            sticky |= digit != b'0';
            exponent += i32::from(!after_point);
            continue;
        }
        value = value * 10 + i128::from(digit - b'0');
        exponent -= i32::from(after_point);
    }
    for _ in 0..binary {
        value = value.saturating_mul(1024);
    }
    while exponent > 0 && value != 0 && value < LIMIT {
        value *= 10;
        exponent -= 1;
    }
    while exponent < 0 && value != 0 {
        sticky |= value % 10 != 0;
        value /= 10;
        exponent += 1;
        if value == 0 {
            break;
        }
    }
    (value + i128::from(sticky)).min(LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms_are_those_of_the_reference() {
        let rows = [
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("100m", "100m"),
            ("0", "0"),
            ("0Gi", "0"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1.5", "1500m"),
            ("-1", "-1"),
            ("+2", "2"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("1E", "1E"),
            ("4", "4"),
            ("8Gi", "8Gi"),
        ];
        for (given, wanted) in rows {
            assert_eq!(canonical(given).as_deref(), Ok(wanted), "{given}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for (given, wanted) in [
            ("", QuantityError::Form),
            ("x", QuantityError::Form),
            ("1x", QuantityError::Form),
            ("1 Gi", QuantityError::Form),
            ("1.2.3", QuantityError::Form),
            ("1KI", QuantityError::Form),
            ("1Kin", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
        ] {
            assert_eq!(canonical(given), Err(wanted), "{given}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_and_canonical_is_a_fixed_point(text in "[+-]?[0-9.]{0,40}[a-zA-Z]{0,2}[0-9-]{0,4}") {
            if let Ok(once) = canonical(&text) {
                proptest::prop_assert_eq!(canonical(&once), Ok(once.clone()));
            }
        }
    }
}
