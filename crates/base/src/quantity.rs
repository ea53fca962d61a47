//! Kubernetes quantities: `100m`, `64Mi`, `1.5G`, `2e3`.
//!
//! Source: `k8s.io/apimachinery/pkg/api/resource`, in the range that fits 128 bits of thousandths.

/// An amount, exact to a thousandth; finer parts are rounded up as the reference does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    milli: i128,
}

/// The text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantity {text:?} is not valid: write a number with an optional suffix such as m, k, M, Mi or Gi")]
pub struct QuantityError {
    text: String,
}

impl Quantity {
    /// Parses a quantity.
    ///
    /// # Errors
    ///
    /// [`QuantityError`] when the text has another form or is out of range.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse(text).map(|milli| Self { milli }).ok_or_else(|| QuantityError { text: text.to_owned() })
    }

    /// The amount in thousandths.
    pub fn milli(self) -> i128 {
        self.milli
    }

    /// The amount in whole units, rounded up.
    pub fn whole(self) -> i128 {
        self.milli.div_euclid(1000) + i128::from(self.milli.rem_euclid(1000) != 0)
    }
}

fn parse(text: &str) -> Option<i128> {
    if text.len() > 64 {
        return None;
    }
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, divisor) = scale(suffix)?;
    // Thousandths = digits * 1000 * factor / divisor / 10^(digits after the point), rounded away from zero.
    let numerator = digits.checked_mul(1000)?.checked_mul(factor)?;
    let denominator = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(divisor)?;
    let milli = numerator / denominator + i128::from(numerator % denominator != 0);
    Some(if negative { -milli } else { milli })
}

/// Factor and divisor of a suffix.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if let Some(power) = BINARY.iter().position(|name| *name == suffix) {
        return Some((1024_i128.pow(u32::try_from(power).ok()? + 1), 1));
    }
    if let Some(power) = DECIMAL.iter().position(|name| *name == suffix) {
        return Some((1000_i128.pow(u32::try_from(power).ok()? + 1), 1));
    }
    match suffix {
        "" => Some((1, 1)),
        "m" => Some((1, 1000)),
        "u" => Some((1, 1_000_000)),
        "n" => Some((1, 1_000_000_000)),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_in_thousandths() {
        let rows = [
            ("0", 0),
            ("100m", 100),
            ("1", 1000),
            ("1.5", 1500),
            (".5", 500),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1.5Gi", 1_610_612_736_000),
            ("2k", 2_000_000),
            ("2e3", 2_000_000),
            ("2E-1", 200),
            ("-1", -1000),
            ("1n", 1),
        ];
        for (text, milli) in rows {
            assert_eq!(Quantity::parse(text).map(Quantity::milli), Ok(milli), "{text:?}");
        }
        assert_eq!(Quantity::parse("1500m").unwrap().whole(), 2);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "-", ".", "1.2.3", "1 Mi", "Mi", "1mi", "0x1", "1e", "9999999999999999999999999999999999999999E"]
        {
            assert!(Quantity::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn whole_numbers_are_exact(number in 0_i64..1_000_000_000_000) {
            prop_assert_eq!(Quantity::parse(&number.to_string()).unwrap().whole(), i128::from(number));
        }
    }
}
