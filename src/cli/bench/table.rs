//! The table that `bench` prints: one line per result, followed by the parts of its profiled run.

use super::report::{PartReport, Report, ResultReport};

const COLUMNS: [&str; 10] = [
    "model",
    "task",
    "dtype",
    "level",
    "batch",
    "tokens",
    "median ms",
    "min ms",
    "max ms",
    "ms/item",
];

/// Number of columns, from the left, that hold words and are left-aligned. The others hold numbers and are
/// right-aligned.
const WORDS: usize = 4;

pub(super) fn table(report: &Report) -> String {
    let rows: Vec<[String; 10]> = report.results.iter().map(cells).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([COLUMNS[column].len()]).max().unwrap_or_default()
    };
    let widths: [usize; 10] = std::array::from_fn(width);
    let mut text = report.head() + "\n" + &line(&COLUMNS.map(str::to_owned), &widths);
    for (row, result) in rows.iter().zip(&report.results) {
        text += &line(row, &widths);
        text += &parts(&result.parts);
    }
    text
}

fn cells(result: &ResultReport) -> [String; 10] {
    let milliseconds = |seconds: f64| format!("{:.2}", seconds * 1e3);
    [
        result.model.clone(),
        result.task.to_owned(),
        result.dtype.to_owned(),
        result.level.clone(),
        result.batch.to_string(),
        result.tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
        milliseconds(result.median_s),
        milliseconds(result.min_s),
        milliseconds(result.max_s),
        milliseconds(result.per_item_s),
    ]
}

fn line(cells: &[String; 10], widths: &[usize; 10]) -> String {
    let cells = cells.iter().zip(widths).enumerate();
    let padded = cells.map(|(column, (cell, &width))| {
        if column < WORDS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    let line = padded.collect::<Vec<_>>().join("  ");
    line.trim_end().to_owned() + "\n"
}

/// Formats the profiled run: one line per part with its time, share, calls and rate.
fn parts(parts: &[PartReport]) -> String {
    let total: f64 = parts.iter().map(|part| part.seconds).sum();
    let line = |part: &PartReport| {
        let (milliseconds, share) = (part.seconds * 1e3, 100.0 * part.seconds / total);
        let rate = rate(part);
        let (calls, name) = (part.calls, &part.part);
        format!("{milliseconds:>12.2} ms {share:>5.1} % {calls:>6}x {rate:>11}  {name}\n")
    };
    parts.iter().map(line).collect()
}

fn rate(part: &PartReport) -> String {
    let billions = |work: usize| work as f64 / part.seconds / 1e9;
    match (part.operations, part.bytes) {
        (Some(operations), _) => format!("{:.0} GOP/s", billions(operations)),
        (None, Some(bytes)) => format!("{:.1} GB/s", billions(bytes)),
        (None, None) => String::new(),
    }
}
