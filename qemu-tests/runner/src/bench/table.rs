// SPDX-License-Identifier: GPL-2.0
//! Tables, for a terminal and in Markdown.

use std::fmt::Write;

use protocol::bench::Cost;

use super::provenance::Provenance;
use crate::pages::number::grouped;

/// A table with a title and a description.
pub struct Section {
    /// The title.
    pub title: &'static str,
    /// What it shows.
    pub about: String,
    /// The columns' heads. The first column has words, the others have numbers.
    pub head: Vec<String>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
}

/// All tables for a terminal.
pub fn text(provenance: &Provenance, sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let widths: Vec<usize> = (0..section.head.len())
            .map(|column| {
                let cells = section.rows.iter().chain([&section.head]);
                cells
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths).enumerate();
            let cells: Vec<_> = cells
                .map(|(column, (cell, width))| match column {
                    0 => format!("{cell:width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            cells.join("  ")
        };
        let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let Section { title, about, .. } = section;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "\n{title}\n{about}\n\n{}\n{}",
            line(&section.head),
            line(&rule)
        );
        for row in &section.rows {
            let _ = writeln!(text, "{}", line(row).trim_end());
        }
    }
    let _ = writeln!(text, "\n{}", origin(provenance));
    text
}

/// All tables in Markdown.
pub fn markdown(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        let Section { title, about, .. } = section;
        let _ = writeln!(text, "\n## {title}\n\n{about}\n");
        let _ = writeln!(text, "| {} |", section.head.join(" | "));
        let _ = writeln!(text, "|---{}|", "|---:".repeat(section.head.len() - 1));
        for row in &section.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    text
}

/// What the figures were made from, in a sentence or two.
pub fn origin(provenance: &Provenance) -> String {
    let Provenance {
        run,
        compiler,
        options,
        qemu,
        parallel,
        seconds,
    } = provenance;
    let options = options.join(", ");
    format!(
        "{run}\nIt took {seconds} s in {qemu}, -icount shift=0,sleep=off; on two CPUs: {parallel}.\n\
         The kernels are of the flavor bench ({compiler}; {options})."
    )
}

/// A number of instructions, in groups of three digits.
pub fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| grouped(value, 0))
}

/// Ours as a multiple of stock.
pub fn ratio(ours: Option<f64>, stock: Option<f64>) -> String {
    match (ours, stock) {
        (Some(ours), Some(stock)) if stock >= 1.0 => grouped(ours / stock, 2),
        _ => "-".to_owned(),
    }
}

/// A cost, and the spread of its rounds if that is more than a trifle.
pub fn with_spread(cost: Option<Cost>) -> String {
    /// A spread that is not worth mentioning, in instructions and as a part of the cost.
    const TRIFLE: (f64, f64) = (2.0, 0.05);
    match cost {
        None => "-".to_owned(),
        Some(cost) => {
            let value = grouped(cost.instructions, 0);
            let (least, part) = TRIFLE;
            match cost.spread > least.max(part * cost.instructions) {
                true => format!("{value} ±{}", grouped(cost.spread, 0)),
                false => value,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_a_dash() {
        assert_eq!(number(None), "-");
        assert_eq!(ratio(Some(1.0), Some(2.0)), "0.50");
        assert_eq!(ratio(Some(1.0), Some(0.0)), "-");
    }

    #[test]
    fn markdown_has_a_rule_for_each_column() {
        let section = Section {
            title: "T",
            about: "About.".into(),
            head: vec!["a".into(), "b".into(), "c".into()],
            rows: vec![vec!["x".into(), "1".into(), "2".into()]],
        };
        let expected = "\n## T\n\nAbout.\n\n| a | b | c |\n|---|---:|---:|\n| x | 1 | 2 |\n";
        assert_eq!(markdown(&[section]), expected);
    }
}
