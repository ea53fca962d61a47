//! What was seen of a scenario: rows for the picture, and a summary.

use std::fmt::Write;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// What was seen in one row's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Requests that would be in work if none had to wait, on average.
    pub load: f64,
    /// Pods of the model.
    pub ideal: u32,
    /// Pods that the autoscaler wanted at the end.
    pub desired: u32,
    /// Pods that the gateway sent requests to at the end.
    pub ready: u32,
    /// Most requests that waited for a pod.
    pub queued: u32,
    /// Requests that were answered by anything but a pod.
    pub refused: u32,
}

const COLUMNS: &str = "seconds,load,ideal,desired,ready,queued,refused";

/// Rows as CSV; each is named after its begin.
pub fn to_csv(rows: &[Row], row_ms: u64) -> String {
    let mut text = format!("{COLUMNS}\n");
    for (index, row) in rows.iter().enumerate() {
        let seconds = (index as u64 * row_ms) as f64 / 1_000.0;
        let Row { load, ideal, desired, ready, queued, refused } = row;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{seconds},{load:.2},{ideal},{desired},{ready},{queued},{refused}");
    }
    text
}

/// Rows from CSV.
///
/// # Errors
///
/// When it is not what [`to_csv`] writes.
pub fn from_csv(text: &str) -> anyhow::Result<Vec<Row>> {
    let mut lines = text.lines();
    ensure!(lines.next() == Some(COLUMNS), "the first line is not {COLUMNS}");
    let row = |line: &str| {
        let [_, load, ideal, desired, ready, queued, refused] = line.split(',').collect::<Vec<_>>()[..] else {
            anyhow::bail!("not seven columns");
        };
        let (load, ideal, desired) = (load.parse()?, ideal.parse()?, desired.parse()?);
        Ok(Row { load, ideal, desired, ready: ready.parse()?, queued: queued.parse()?, refused: refused.parse()? })
    };
    lines.map(|line| row(line).with_context(|| format!("the row {line:?}"))).collect()
}

/// A scenario in a few numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The scenario.
    pub name: String,
    /// Requests sent.
    pub requests: u64,
    /// Those answered by anything but a pod.
    pub refused: u64,
    /// What the platform added to the time of those that a pod answered: median.
    pub wait_p50_ms: u64,
    /// Of 100 requests 99 waited less.
    pub wait_p99_ms: u64,
    /// The longest.
    pub wait_max_ms: u64,
    /// Most requests that waited at a time.
    pub most_queued: u32,
    /// Most pods that were ready at a time.
    pub most_ready: u32,
    /// Most pods of the model.
    pub most_ideal: u32,
    /// Seconds that pods were there, starting and ending ones included.
    pub pod_seconds: u64,
    /// Seconds of the model's pods.
    pub ideal_pod_seconds: u64,
}

/// The page's table.
pub fn table(summaries: &[Summary]) -> String {
    let mut text =
        "| Traffic | Requests | Refused | Added wait p50 / p99 / max | Most queued | Most pods ready (ideal) | \
                    Pod-seconds (ideal) |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for summary in summaries {
        let Summary { name, requests, refused, wait_p50_ms, wait_p99_ms, wait_max_ms, most_queued, .. } = summary;
        let Summary { most_ready, most_ideal, pod_seconds, ideal_pod_seconds, .. } = summary;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {name} | {requests} | {refused} | {wait_p50_ms} / {wait_p99_ms} / {wait_max_ms} ms | {most_queued} | \
             {most_ready} ({most_ideal}) | {pod_seconds} ({ideal_pod_seconds}) |"
        );
    }
    text
}

/// Share of the rows that may differ: an event that comes a little earlier or later moves the edge of a step.
const MOVED: f64 = 0.03;

/// What a picture or the table shows differently in `new` than in `old`; differences that no eye sees do not count, so
/// that a change elsewhere that delays a request by a millisecond goes unnoticed.
pub fn difference(old: (&[Row], &Summary), new: (&[Row], &Summary)) -> Option<String> {
    let ((rows, summary), (new_rows, new_summary)) = (old, new);
    if rows.len() != new_rows.len() {
        return Some(format!("{} rows, not {}", new_rows.len(), rows.len()));
    }
    let pairs = || rows.iter().zip(new_rows);
    let moved = |what: &str, of: fn(&Row) -> f64, slack: f64| {
        let far = pairs().filter(|(old, new)| !is_near(of(old), of(new), slack)).count();
        (far as f64 > MOVED * rows.len() as f64).then(|| format!("{what} differs in {far} of {} rows", rows.len()))
    };
    let other = |what: &str, of: fn(&Summary) -> f64, slack: f64| {
        let (old, new) = (of(summary), of(new_summary));
        (!is_near(old, new, slack)).then(|| format!("{what}: {new}, not {old}"))
    };
    moved("the load", |row| row.load, 0.01)
        .or_else(|| moved("the model", |row| f64::from(row.ideal), 0.0))
        .or_else(|| moved("the number of pods wanted", |row| f64::from(row.desired), 0.5))
        .or_else(|| moved("the number of pods ready", |row| f64::from(row.ready), 0.5))
        .or_else(|| moved("the queue", |row| f64::from(row.queued), 10.0))
        .or_else(|| other("requests", |summary| summary.requests as f64, 0.0))
        .or_else(|| other("refused requests", |summary| summary.refused as f64, 0.0))
        .or_else(|| other("added wait p50, ms", |summary| summary.wait_p50_ms as f64, 5.0))
        .or_else(|| other("added wait p99, ms", |summary| summary.wait_p99_ms as f64, 20.0))
        .or_else(|| other("most queued", |summary| f64::from(summary.most_queued), 10.0))
        .or_else(|| other("most pods ready", |summary| f64::from(summary.most_ready), 0.5))
        .or_else(|| other("pod-seconds", |summary| summary.pod_seconds as f64, 10.0))
}

/// Within a slack, or a twentieth.
fn is_near(old: f64, new: f64, slack: f64) -> bool {
    (old - new).abs() <= slack.max(old.abs() / 20.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(load: f64, pods: u32) -> Row {
        Row { load, ideal: pods, desired: pods, ready: pods, queued: 0, refused: 0 }
    }

    fn summary() -> Summary {
        Summary {
            name: "given".to_owned(),
            requests: 1_000,
            refused: 0,
            wait_p50_ms: 0,
            wait_p99_ms: 40,
            wait_max_ms: 60,
            most_queued: 7,
            most_ready: 8,
            most_ideal: 8,
            pod_seconds: 800,
            ideal_pod_seconds: 700,
        }
    }

    #[test]
    fn rows_are_the_same_after_csv() {
        let rows = [row(0.25, 1), Row { queued: 3, refused: 2, ..row(17.0, 5) }];
        assert_eq!(from_csv(&to_csv(&rows, 500)).unwrap(), rows);
        assert_eq!(to_csv(&rows, 500), format!("{COLUMNS}\n0,0.25,1,1,1,0,0\n0.5,17.00,5,5,5,3,2\n"));
        assert!(from_csv(&format!("{COLUMNS}\n1,2,3\n")).is_err());
    }

    #[test]
    fn what_the_eye_sees_is_a_difference() {
        let rows = vec![row(20.0, 6); 100];
        let check = |change: fn(&mut [Row], &mut Summary), expected: Option<&str>| {
            let (mut new, mut new_summary) = (rows.clone(), summary());
            change(&mut new, &mut new_summary);
            let found = difference((&rows, &summary()), (&new, &new_summary));
            assert_eq!(found.as_deref(), expected);
        };
        check(|_, _| {}, None);
        check(|rows, summary| (rows[4].ready, summary.wait_p99_ms) = (5, 41), None);
        check(|rows, _| rows[..4].fill(row(20.0, 7)), Some("the model differs in 4 of 100 rows"));
        check(
            |rows, _| rows[..9].iter_mut().for_each(|row| row.desired += 1),
            Some("the number of pods wanted differs in 9 of 100 rows"),
        );
        check(|_, summary| summary.refused = 1, Some("refused requests: 1, not 0"));
        check(|_, summary| summary.pod_seconds = 900, Some("pod-seconds: 900, not 800"));
        check(|_, summary| summary.wait_p99_ms = 80, Some("added wait p99, ms: 80, not 40"));
    }
}
