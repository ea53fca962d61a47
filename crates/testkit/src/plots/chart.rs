//! A series as a picture: three panels over one axis of time, as SVG that reads well on light and dark pages.
//!
//! Colours are Okabe and Ito's; whatever shares a panel also differs in its stroke or filling.

use std::fmt::{self, Write};

use super::scenario::Scenario;
use super::series::Row;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
/// Height of the title and what stands below it.
const HEAD: f64 = 50.0;
/// Height of a panel's heading.
const HEADING: f64 = 26.0;
/// Height of the axis of time with its text.
const FOOT: f64 = 34.0;
/// Width of a character, about.
const CHARACTER: f64 = 6.3;

const STYLE: &str = "
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .heading { font-weight: 600 }
  .minor { fill: #59636e }
  .page { fill: #ffffff }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .axis { stroke: #59636e; stroke-width: 1 }
  .line { fill: none; stroke-width: 1.6; stroke-linejoin: round }
  .area { stroke-width: 1 }
  .load { stroke: #0072b2; fill: #0072b2; fill-opacity: .2 }
  .ready { stroke: #56b4e9; fill: #56b4e9; fill-opacity: .45 }
  .desired { stroke: #d55e00 }
  .ideal { stroke: #1f2328; stroke-dasharray: 2 3 }
  .queued { stroke: #cc79a7; fill: #cc79a7; fill-opacity: .45 }
  .refused { stroke: #d55e00; stroke-dasharray: 7 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .minor { fill: #9198a1 }
    .page { fill: #0d1117 }
    .grid { stroke: #2f3742 }
    .axis { stroke: #9198a1 }
    .ideal { stroke: #e6edf3 }
    .load { stroke: #4aa3df; fill: #4aa3df }
    .desired, .refused { stroke: #ff8c3a }
  }
";

/// One quantity in a panel.
struct Line {
    name: &'static str,
    class: &'static str,
    filled: bool,
    of: fn(&Row) -> f64,
}

/// Quantities with one scale.
struct Panel {
    heading: &'static str,
    height: f64,
    lines: &'static [Line],
}

const PANELS: [Panel; 3] = [
    Panel {
        heading: "Load",
        height: 84.0,
        lines: &[Line {
            name: "requests in work if none had to wait",
            class: "load",
            filled: true,
            of: |row| row.load,
        }],
    },
    Panel {
        heading: "Pods",
        height: 150.0,
        lines: &[
            Line { name: "ready", class: "ready", filled: true, of: |row| f64::from(row.ready) },
            Line { name: "desired", class: "desired", filled: false, of: |row| f64::from(row.desired) },
            Line { name: "the model's ideal", class: "ideal", filled: false, of: |row| f64::from(row.ideal) },
        ],
    },
    Panel {
        heading: "Requests without a pod",
        height: 84.0,
        lines: &[
            Line { name: "queued", class: "queued", filled: true, of: |row| f64::from(row.queued) },
            Line { name: "refused", class: "refused", filled: false, of: |row| f64::from(row.refused) },
        ],
    },
];

/// The picture of what was seen of a scenario.
pub fn svg(scenario: &Scenario, rows: &[Row]) -> String {
    let height = HEAD + FOOT + PANELS.iter().map(|panel| HEADING + panel.height).sum::<f64>();
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"22\">{title}</text>\n\
         <text class=\"minor\" x=\"{LEFT}\" y=\"40\">{given}</text>\n",
        title = scenario.title,
        given = given(scenario),
    );
    let mut top = HEAD;
    for panel in &PANELS {
        top += HEADING;
        // Writing to a string cannot fail.
        let _ = write_panel(&mut text, panel, top, scenario, rows);
        top += panel.height;
    }
    let _ = write_time(&mut text, top, scenario);
    text.push_str("</svg>\n");
    text
}

fn given(scenario: &Scenario) -> String {
    let Scenario { concurrency, max_scale, timeout_seconds, ref work_ms, row_ms, .. } = *scenario;
    let limit =
        if max_scale > 0 { format!(", max-scale {max_scale}, timeout {timeout_seconds} s") } else { String::new() };
    let (least, most, each) = (work_ms.start, work_ms.end - 1, time(row_ms, row_ms));
    let unit = if least >= 1_000 { "s" } else { "ms" };
    let (least, most) = if least >= 1_000 { (least / 1_000, most / 1_000) } else { (least, most) };
    format!("Requests of {least} to {most} {unit}, containerConcurrency {concurrency}{limit}; a value each {each}")
}

/// A time, in the unit in which `step` is a whole number.
fn time(ms: u64, step: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
    let (unit, name) = units.into_iter().find(|(unit, _)| step.is_multiple_of(*unit)).unwrap_or((1, "ms"));
    if ms == 0 { "0".to_owned() } else { format!("{} {name}", ms / unit) }
}

fn write_panel(text: &mut String, panel: &Panel, top: f64, scenario: &Scenario, rows: &[Row]) -> fmt::Result {
    let bottom = top + panel.height;
    let most = panel.lines.iter().flat_map(|line| rows.iter().map(line.of)).fold(0.0, f64::max);
    let (step, edge) = scale(most);
    let y = |value: f64| bottom - value / edge * panel.height;

    let is_none = |line: &Line| rows.iter().all(|row| (line.of)(row) == 0.0);

    let mut x = LEFT;
    writeln!(text, "<text class=\"heading\" x=\"{x}\" y=\"{:.1}\">{}</text>", top - 9.0, panel.heading)?;
    x += 16.0 + panel.heading.len() as f64 * (CHARACTER + 0.9);
    for line in panel.lines {
        let (class, middle, none) = (line.class, top - 13.0, is_none(line));
        let name = if none { format!("none {}", line.name) } else { line.name.to_owned() };
        if none {
            x -= 28.0;
        } else if line.filled {
            writeln!(
                text,
                "<rect class=\"area {class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"22\" height=\"9\"/>",
                middle - 4.5
            )?;
        } else {
            writeln!(text, "<path class=\"line {class}\" d=\"M{x:.1} {middle:.1}h22\"/>")?;
        }
        writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 28.0, top - 9.0, name)?;
        x += 28.0 + (name.len() as f64 + 3.0) * CHARACTER;
    }

    let mut value = 0.0;
    while value <= edge {
        let (class, right) = (if value == 0.0 { "axis" } else { "grid" }, WIDTH - RIGHT);
        writeln!(text, "<path class=\"{class}\" d=\"M{LEFT} {y:.1}H{right}\"/>", y = y(value))?;
        let (x, y) = (LEFT - 7.0, y(value) + 4.0);
        writeln!(text, "<text class=\"minor\" x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{value}</text>")?;
        value += step;
    }
    for line in panel.lines.iter().filter(|line| !is_none(line)) {
        let path = steps(rows.iter().map(line.of), scenario, &y);
        if line.filled {
            let (right, class) = (WIDTH - RIGHT, line.class);
            writeln!(text, "<path class=\"area {class}\" d=\"M{LEFT} {bottom:.1}{path}H{right}V{bottom:.1}Z\"/>")?;
        } else {
            let start = path.strip_prefix('V').and_then(|path| path.split_once('H'));
            let (first, rest) = start.unwrap_or_default();
            writeln!(text, "<path class=\"line {}\" d=\"M{LEFT} {first}H{rest}\"/>", line.class)?;
        }
    }
    Ok(())
}

/// Values as steps, each from its begin to the next that differs; starts with a `V` and ends with an `H`.
fn steps(values: impl Iterator<Item = f64>, scenario: &Scenario, y: &impl Fn(f64) -> f64) -> String {
    let width = (WIDTH - LEFT - RIGHT) / scenario.rows() as f64;
    let mut path = String::new();
    let mut before = None;
    let mut count = 0;
    for value in values {
        if before != Some(value) {
            if before.is_some() {
                let _ = write!(path, "H{:.1}", LEFT + f64::from(count) * width);
            }
            let _ = write!(path, "V{:.1}", y(value));
            before = Some(value);
        }
        count += 1;
    }
    let _ = write!(path, "H{:.1}", LEFT + f64::from(count) * width);
    path
}

/// Distance of the ticks for values up to `most`, and what the panel's top edge stands for. Ticks are whole numbers: what
/// is shown is counted.
fn scale(most: f64) -> (f64, f64) {
    let steps = (0..).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)));
    let step = steps.into_iter().find(|step| most / step <= 5.0).unwrap_or(1.0);
    (step, (most * 1.08).max(step))
}

fn write_time(text: &mut String, top: f64, scenario: &Scenario) -> fmt::Result {
    const STEPS_MS: [u64; 12] =
        [100, 200, 500, 1_000, 10_000, 30_000, 60_000, 120_000, 240_000, 600_000, 3_600_000, 10_800_000];
    let step = STEPS_MS.into_iter().find(|step| scenario.length_ms / step <= 10).unwrap_or(scenario.length_ms);
    for at_ms in (0..=scenario.length_ms).step_by(step as usize) {
        let x = LEFT + (WIDTH - LEFT - RIGHT) * at_ms as f64 / scenario.length_ms as f64;
        let anchor = if at_ms == scenario.length_ms { "end" } else { "middle" };
        writeln!(text, "<path class=\"axis\" d=\"M{x:.1} {top:.1}v5\"/>")?;
        let (x, y) = (if anchor == "end" { WIDTH - RIGHT } else { x }, top + 20.0);
        writeln!(
            text,
            "<text class=\"minor\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            time(at_ms, step)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plots::scenario;

    #[test]
    fn ticks_are_whole_and_few() {
        for (most, expected) in [
            (0.0, (1.0, 1.0)),
            (0.4, (1.0, 1.0)),
            (5.0, (1.0, 5.4)),
            (6.0, (2.0, 6.48)),
            (50.0, (10.0, 54.0)),
            (1_300.0, (500.0, 1_404.0)),
        ] {
            assert_eq!(scale(most), expected, "{most}");
        }
    }

    #[test]
    fn equal_values_are_one_step() {
        let scenario = scenario::Scenario { length_ms: 4, row_ms: 1, ..scenario::all().remove(0) };
        let path = steps([1.0, 1.0, 2.0, 2.0].into_iter(), &scenario, &|value| 10.0 - value);
        assert_eq!(path, "V9.0H398.0V8.0H744.0");
    }
}
