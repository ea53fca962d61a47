//! The word that was probably meant: for unknown commands, fields and names.

/// Letters that a prefix must have to count as meant (`max` for `maximum`).
const SHORTEST_PREFIX: usize = 3;
/// Words longer than this are compared by nobody.
const LONGEST_WORD: usize = 64;

/// The one of `known` that `word` was probably meant to be: few typing errors away, or one the beginning of the other.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.chars().flat_map(char::to_lowercase).collect::<Vec<char>>();
    let wanted = plain(word);
    if wanted.is_empty() || wanted.len() > LONGEST_WORD {
        return None;
    }
    let rate = |candidate: &'a str| {
        let found = plain(candidate);
        let (shorter, longer) = if found.len() < wanted.len() { (&found, &wanted) } else { (&wanted, &found) };
        let distance = distance(&wanted, &found);
        let begins = shorter.len() >= SHORTEST_PREFIX && longer.starts_with(shorter);
        let near = distance <= (longer.len() / 3).max(1) && distance < longer.len();
        // A few letters too many or too few at the end are no worse than a typing error.
        (near || begins).then_some((if begins { distance.min(2) } else { distance }, candidate))
    };
    let rated = known.into_iter().filter(|candidate| candidate.len() <= LONGEST_WORD).filter_map(rate);
    rated.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// Letters to insert, remove, change or swap with their neighbour.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meant_word_is_found() {
        let known = ["runtime", "handler", "scaling", "max", "min", "minScale", "env", "envFrom", "python"];
        let rows = [
            ("runtme", Some("runtime")),
            ("runitme", Some("runtime")),
            ("Runtime", Some("runtime")),
            ("maximum", Some("max")),
            ("minscale", Some("minScale")),
            ("pyton", Some("python")),
            ("ev", Some("env")),
            ("envfrom", Some("envFrom")),
            ("color", None),
            ("", None),
            ("x", None),
        ];
        for (word, wanted) in rows {
            assert_eq!(nearest(word, known), wanted, "{word}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_word_may_come(word in ".{0,80}", other in ".{0,80}") {
            let _ = nearest(&word, [other.as_str()]);
            if !word.is_empty() && word.chars().flat_map(char::to_lowercase).count() <= LONGEST_WORD && word.len() <= LONGEST_WORD {
                proptest::prop_assert_eq!(nearest(&word, [word.as_str()]), Some(word.as_str()));
            }
        }
    }
}
