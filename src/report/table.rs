//! Aligned text tables.

/// Rows of cells; the first row is the heading. Columns after the first are right-aligned.
pub fn render(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, w))| match c {
            0 => format!("{cell:<w$}"),
            _ => format!("{cell:>w$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        if i == 0 {
            let rule: Vec<_> = widths.iter().map(|w| "─".repeat(*w)).collect();
            text.push_str(&rule.join("  "));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn aligns_by_characters_not_bytes() {
        let rows = [["who", "err"], ["a", "1 ± 2"]].map(|r| r.map(str::to_owned).to_vec());
        assert_eq!(super::render(&rows), "who    err\n───  ─────\na    1 ± 2\n");
    }
}
