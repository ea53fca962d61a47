//! The book's plots show what the autoscaler does now. `make plots` makes them again.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::plots::{book, scenario, series};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// A day takes too long here; its traffic is the ramp's, slower, and at night the sparse one.
#[test]
fn the_autoscaler_still_does_what_the_plots_show() {
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("book");
    for scenario in scenario::all().into_iter().filter(|scenario| scenario.name != "daily") {
        let plots = env!("CARGO_BIN_EXE_plots");
        let played =
            Command::new(plots).args(["--play", scenario.name]).arg(&fresh).output().expect("plots can be started");
        assert!(played.status.success(), "{}", String::from_utf8_lossy(&played.stderr));
        let (rows, summary) = book::read(&docs(), &scenario).expect("the book's series can be read");
        let (new_rows, new_summary) = book::read(&fresh, &scenario).expect("the fresh series can be read");
        let difference = series::difference((&rows, &summary), (&new_rows, &new_summary));
        assert_eq!(difference, None, "{}: if this is as it should be, `make plots`", scenario.name);
    }
}

#[test]
fn pictures_and_table_are_those_of_the_series() {
    for (path, text) in book::drawn(&docs()).expect("the book can be drawn") {
        let present = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(present == text, "{} is not what its series says: `make plots`", path.display());
    }
}
