//! The book's share: a folder `plots` with the series and pictures, and the table in `autoscaling.md`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::scenario::{self, Scenario};
use super::series::{Row, Summary, from_csv, table, to_csv};
use super::{chart, stage};

/// Around the table in the page.
const BEGIN: &str = "<!-- table: written by `make plots` -->";
const END: &str = "<!-- end of the table -->";

/// What was seen of a scenario.
pub type Seen = (Vec<Row>, Summary);

/// The file of a scenario in the book's folder.
fn file(docs: &Path, scenario: &Scenario, extension: &str) -> PathBuf {
    docs.join("plots").join(scenario.name).with_extension(extension)
}

/// Plays a scenario, as [`stage::play`], and writes what was seen.
///
/// # Errors
///
/// When it cannot be played or written.
pub fn play(docs: &Path, scenario: &Scenario) -> anyhow::Result<()> {
    let (rows, summary) = stage::play(scenario)?;
    fs::create_dir_all(docs.join("plots"))?;
    fs::write(file(docs, scenario, "csv"), to_csv(&rows, scenario.row_ms))?;
    fs::write(file(docs, scenario, "json"), format!("{}\n", serde_json::to_string_pretty(&summary)?))?;
    Ok(())
}

/// What was seen of a scenario when it was last played.
///
/// # Errors
///
/// When its files cannot be read.
pub fn read(docs: &Path, scenario: &Scenario) -> anyhow::Result<Seen> {
    let text = |extension| {
        let path = file(docs, scenario, extension);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    Ok((from_csv(&text("csv")?)?, serde_json::from_str(&text("json")?)?))
}

/// Everything that follows from what was seen: each file, and what it should hold.
///
/// # Errors
///
/// When a file cannot be read, or the page has no place for the table.
pub fn drawn(docs: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    let mut summaries = Vec::new();
    for scenario in scenario::all() {
        let (rows, summary) = read(docs, &scenario)?;
        files.push((file(docs, &scenario, "svg"), chart::svg(&scenario, &rows)));
        summaries.push(summary);
    }
    let path = docs.join("autoscaling.md");
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, after) = page.split_once(BEGIN).context("the page has no place for the table")?;
    let (_, after) = after.split_once(END).context("the table in the page has no end")?;
    ensure!(!after.contains(BEGIN), "the page has more than one place for the table");
    files.push((path, format!("{before}{BEGIN}\n\n{}\n{END}{after}", table(&summaries))));
    Ok(files)
}
