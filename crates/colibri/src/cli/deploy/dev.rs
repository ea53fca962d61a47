//! `colibri dev`: each save becomes a version, its errors and logs in the terminal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use jiff::Timestamp;
use tokio::time::Instant;

use super::manifest::{self, Document};
use super::progress::{self, Stages};
use super::{Prepared, folder, folder_name, prepare, said, send};
use crate::cli::access::{Access, Target};
use crate::cli::error::CliError;
use crate::cli::logs;
use crate::cli::style::Style;
use crate::cli::workload::Workload;

/// Time between two looks at the folder.
const LOOK: Duration = Duration::from_millis(40);
/// Longest wait until a version is ready.
const LIMIT: Duration = Duration::from_secs(120);

/// Arguments of `colibri dev`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri dev hello                     the folder hello; Ctrl-C ends it, and the function goes on serving
  colibri dev hello --rm                and the function goes at the end
  colibri dev hello --name hello-me     under a name of your own")]
pub struct DevArgs {
    /// Folder with function.yml and the code
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Name of the function [default: that in function.yml, else the folder's]
    #[arg(long)]
    name: Option<String>,
    /// Delete the function at the end
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    target: Target,
}

/// Deploys at the start and at each save, until Ctrl-C.
pub async fn run(args: DevArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let mut watched = Watched::new(&args.dir);
    let mut dev = Dev { args: &args, access: &access, deployed: None, logs: None };
    let ctrl_c = tokio::signal::ctrl_c();
    tokio::pin!(ctrl_c);
    loop {
        let began = Instant::now();
        let work = async {
            if let Err(error) = dev.deploy(began).await {
                let style = Style::stderr();
                eprintln!("{} {}", style.bad("error:"), error.message);
            }
            std::future::pending::<()>().await;
        };
        // A save while a version is on its way: the newer one counts.
        tokio::select! {
            () = work => {}
            () = watched.change() => {}
            _ = &mut ctrl_c => break,
        }
    }
    dev.end().await
}

/// What was deployed so far.
struct Dev<'a> {
    args: &'a DevArgs,
    access: &'a Access,
    deployed: Option<Deployed>,
    logs: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Clone, PartialEq)]
struct Deployed {
    name: String,
    namespace: String,
}

impl Dev<'_> {
    async fn deploy(&mut self, began: Instant) -> Result<(), CliError> {
        let prepared = read(&self.args.dir, self.args.name.as_deref())?;
        let mut stages = Stages::quiet();
        let sent = send(&self.args.target, self.access, prepared, &mut stages).await?;
        let deployed = Deployed { name: sent.name.clone(), namespace: sent.access.namespace.clone() };
        if self.deployed.as_ref() != Some(&deployed) {
            self.follow(&deployed);
            self.deployed = Some(deployed);
        } else if sent.change == "unchanged" {
            return Ok(());
        }
        let full_name = format!("{}/{}", sent.kind, sent.name);
        let ready = progress::wait(&sent.access, &full_name, Instant::now() + LIMIT, &mut stages).await?;
        let took = progress::shown(began.elapsed());
        let version = ready.version().unwrap_or_default();
        let url = ready.url().unwrap_or_default();
        eprintln!("{} {version} in {took}  {url}", Style::stderr().good("ready"));
        Ok(())
    }

    /// Shows the logs of every version from now on.
    fn follow(&mut self, deployed: &Deployed) {
        if let Some(logs) = self.logs.take() {
            logs.abort();
        }
        let target = Target { namespace: Some(deployed.namespace.clone()), ..self.args.target.clone() };
        let args = logs::LogsArgs::following(&format!("function/{}", deployed.name), Timestamp::now(), target);
        self.logs = Some(tokio::spawn(async move {
            if let Err(error) = logs::run(args).await {
                eprintln!("warning: the logs cannot be shown: {}", error.message);
            }
        }));
    }

    async fn end(mut self) -> Result<(), CliError> {
        if let Some(logs) = self.logs.take() {
            logs.abort();
        }
        let Some(deployed) = self.deployed.take() else { return Ok(()) };
        let access = Access { namespace: deployed.namespace, ..self.access.clone() };
        let name = &deployed.name;
        if !self.args.rm {
            eprintln!("{name} goes on serving; colibri delete {name} removes it");
            return Ok(());
        }
        let workload = Workload::find(&access, &format!("function/{name}")).await?;
        crate::cli::delete::delete(&access, &workload.name(), true).await?;
        eprintln!("function {name} deleted");
        Ok(())
    }
}

/// The folder's function with its code.
fn read(dir: &Path, name: Option<&str>) -> Result<Prepared, CliError> {
    let file = manifest::find(dir).map_err(said)?;
    let documents = manifest::read(&file, &folder_name(dir)).map_err(said)?;
    let only = "colibri dev needs a function.yml with one Function; colibri deploy takes more";
    let [Document::Function(mut function)] =
        <[Document; 1]>::try_from(documents).map_err(|_| CliError::new(format!("{}: {only}", file.display())))?
    else {
        return Err(CliError::new(format!("{}: {only}", file.display())));
    };
    if let Some(name) = name {
        function.metadata.name = Some(name.to_owned());
    }
    prepare(dir, Document::Function(function))
}

/// A folder whose changes are awaited.
struct Watched {
    dir: PathBuf,
    seen: Stamps,
}

/// When each file was changed, and how long it is.
type Stamps = BTreeMap<PathBuf, (SystemTime, u64)>;

impl Watched {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), seen: folder::stamps(dir) }
    }

    /// Returns after a change, once two looks see the same: an editor writes in several steps.
    async fn change(&mut self) {
        let mut last: Option<Stamps> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = folder::stamps(&self.dir);
            if now == self.seen {
                last = None;
            } else if last.as_ref() == Some(&now) {
                self.seen = now;
                return;
            } else {
                last = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_save_is_noticed_and_what_is_left_out_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write(".colibriignore", "*.log\n");
        write("main.py", "one");
        write("function.yml", "spec: {}");
        let mut watched = Watched::new(dir.path());
        let noticed = |watched: &mut Watched| folder::stamps(&watched.dir) != watched.seen;
        write("a.log", "x");
        assert!(!noticed(&mut watched));
        for (name, text) in [("main.py", "three"), ("new.py", ""), ("function.yml", "spec: {runtime: python}")] {
            write(name, text);
            tokio::time::timeout(Duration::from_secs(60), watched.change()).await.expect(name);
            assert!(!noticed(&mut watched), "{name}");
        }
        fs::remove_file(dir.path().join("new.py")).unwrap();
        tokio::time::timeout(Duration::from_secs(60), watched.change()).await.expect("a file that went");
    }

    #[test]
    fn one_function_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let said = |text: &str| {
            fs::write(dir.path().join("function.yml"), text).unwrap();
            fs::write(dir.path().join("main.py"), "").unwrap();
            read(dir.path(), Some("other")).map(|prepared| match prepared.document {
                Document::Function(function) => function.metadata.name.unwrap(),
                Document::Service(_) => "a service".to_owned(),
            })
        };
        assert_eq!(said("spec: {runtime: python}").unwrap(), "other");
        for text in ["spec: {runtime: python}\n---\nspec: {runtime: python}\n", ""] {
            let error = said(text).unwrap_err();
            assert!(error.message.contains("colibri dev needs a function.yml with one Function"), "{error}");
        }
    }
}
