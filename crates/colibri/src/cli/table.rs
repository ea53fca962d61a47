//! Columns of text, and times as people read them.

use std::fmt::Write;

use base::duration;
use jiff::Timestamp;

/// Rows under a header, each column as wide as its widest cell.
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(row, "{cell:<width$}   ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// The time since `then`, as kubectl shows it.
pub fn age(then: Option<Timestamp>, now: Timestamp) -> String {
    // Clocks of two machines differ.
    then.map_or_else(|| "?".to_owned(), |then| duration::human((now.as_second() - then.as_second()).max(0)))
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{} KiB", bytes / KIB),
        MIB..GIB => format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB),
        _ => format!("{}.{} GiB", bytes / GIB, bytes % GIB * 10 / GIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_their_widest_cell() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), String::new()]];
        assert_eq!(render(&["NAME", "N"], &rows), "NAME     N\na        1\nlonger\n");
    }

    #[test]
    fn sizes() {
        for (bytes, expected) in
            [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (3 << 19, "1.5 MiB"), (5 << 29, "2.5 GiB")]
        {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn ages() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(age(Some(at(1000)), at(1200)), "3m20s");
        assert_eq!(age(Some(at(1000)), at(990)), "0s");
        assert_eq!(age(None, at(990)), "?");
    }
}
