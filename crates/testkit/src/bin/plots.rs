//! Plays the autoscaler's scenarios, one process each, and writes what was seen, the pictures and the page's table.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::Parser;
use testkit::plots::{book, scenario};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes docs/plots and the table of docs/autoscaling.md again.
#[derive(Parser)]
struct Args {
    /// The book's folder
    #[arg(default_value = "docs")]
    docs: PathBuf,
    /// Play this scenario alone, and draw nothing
    #[arg(long)]
    play: Option<String>,
    /// Draw only, from what was seen before
    #[arg(long)]
    draw: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.play {
        Some(name) => play(&args.docs, name.clone()),
        None => make(&args.docs, args.draw),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(docs: &Path, name: String) -> anyhow::Result<()> {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("COLIBRI_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let scenario = scenario::find(&name).with_context(|| format!("there is no scenario {name:?}"))?;
    let docs = docs.to_owned();
    // A thread of its own: its hash maps are seeded from the first on.
    let playing = std::thread::Builder::new().stack_size(64 << 20).spawn(move || book::play(&docs, &scenario))?;
    playing.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))).with_context(|| format!("scenario {name}"))
}

fn make(docs: &Path, draw_only: bool) -> anyhow::Result<()> {
    if !draw_only {
        let program = std::env::current_exe()?;
        let start =
            |scenario: scenario::Scenario| Command::new(&program).args(["--play", scenario.name]).arg(docs).spawn();
        let players = scenario::all().into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
        for mut player in players {
            ensure!(player.wait()?.success(), "a scenario could not be played");
        }
    }
    for (path, text) in book::drawn(docs)? {
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
