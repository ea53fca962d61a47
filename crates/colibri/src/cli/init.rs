//! `colibri init`: a folder that `colibri deploy` takes as it is.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::deploy::folder_name;
use super::error::CliError;

/// Arguments of `colibri init`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri init hello --runtime python
  colibri init greet --runtime nodejs --template cloudevent
  colibri init hello --runtime python && colibri deploy hello")]
pub struct InitArgs {
    /// Folder, made if it is not there; its name is the function's
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Language of the code
    #[arg(long, value_enum, default_value_t = Runtime::Python)]
    runtime: Runtime,
    /// What the function is called with
    #[arg(long, value_enum, default_value_t = Template::Http)]
    template: Template,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// Python 3
    Python,
    /// JavaScript
    Nodejs,
    /// Any executable that serves HTTP; here one in C
    Binary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Template {
    /// An HTTP request
    Http,
    /// A CloudEvent
    Cloudevent,
}

/// A file's name and its text.
type File = (&'static str, &'static str);

/// A sample event, for `colibri invoke --event`.
const EVENT: File = ("event.json", include_str!("../../templates/event.json"));

/// Writes the files; none that is there already.
pub fn run(args: &InitArgs) -> Result<(), CliError> {
    let files = files(args.runtime, args.template)?;
    let name = folder_name(&args.dir);
    if !base::names::is_dns1035_label(&name) {
        return Err(CliError::new(format!("the folder's name gives the function the name {name:?}"))
            .cured_by("take one of lower-case letters, digits and -, that begins with a letter"));
    }
    let manifest = manifest(&name, args.runtime, args.template);
    let all: Vec<(&str, &str)> = [("function.yml", manifest.as_str())].into_iter().chain(files).collect();
    for (file, _) in &all {
        let path = args.dir.join(file);
        if path.exists() {
            return Err(CliError::new(format!("{} is there already; nothing was written", path.display()))
                .cured_by("name another folder, or move the file away"));
        }
    }
    fs::create_dir_all(&args.dir).map_err(|error| failed(&args.dir, &error))?;
    for (file, text) in all {
        write(&args.dir.join(file), text)?;
        eprintln!("wrote {}", args.dir.join(file).display());
    }
    for line in next(args, &name) {
        eprintln!("{line}");
    }
    Ok(())
}

fn files(runtime: Runtime, template: Template) -> Result<Vec<File>, CliError> {
    Ok(match (runtime, template) {
        (Runtime::Python, Template::Http) => vec![
            ("main.py", include_str!("../../templates/python/http.py")),
            ("test_main.py", include_str!("../../templates/python/http_test.py")),
        ],
        (Runtime::Python, Template::Cloudevent) => vec![
            ("main.py", include_str!("../../templates/python/cloudevent.py")),
            ("test_main.py", include_str!("../../templates/python/cloudevent_test.py")),
            EVENT,
        ],
        (Runtime::Nodejs, Template::Http) => vec![
            ("index.mjs", include_str!("../../templates/nodejs/http.mjs")),
            ("index.test.mjs", include_str!("../../templates/nodejs/http.test.mjs")),
        ],
        (Runtime::Nodejs, Template::Cloudevent) => vec![
            ("index.mjs", include_str!("../../templates/nodejs/cloudevent.mjs")),
            ("index.test.mjs", include_str!("../../templates/nodejs/cloudevent.test.mjs")),
            EVENT,
        ],
        (Runtime::Binary, Template::Http) => vec![
            ("server.c", include_str!("../../templates/binary/server.c")),
            ("Makefile", include_str!("../../templates/binary/Makefile")),
            (".colibriignore", "server.c\nMakefile\n"),
        ],
        (Runtime::Binary, Template::Cloudevent) => {
            return Err(CliError::new("--template cloudevent is for python and nodejs: a binary gets HTTP requests")
                .cured_by("take --template http, and read the event as the CloudEvents HTTP binding says"));
        }
    })
}

fn manifest(name: &str, runtime: Runtime, template: Template) -> String {
    let (runtime, handler) = match runtime {
        Runtime::Python => ("python", "main.handle"),
        Runtime::Nodejs => ("nodejs", "index.handle"),
        Runtime::Binary => ("binary", "server"),
    };
    let signature = match template {
        Template::Http => "",
        Template::Cloudevent => "  signature: cloudevent\n",
    };
    format!(
        "apiVersion: functions.colibri.dev/v1\nkind: Function\nmetadata:\n  name: {name}\nspec:\n  runtime: {runtime}\n  handler: {handler}\n{signature}"
    )
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| failed(path, &error))?;
    file.write_all(text.as_bytes()).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> CliError {
    let cure = if error.kind() == ErrorKind::PermissionDenied { "choose a folder that you may write to" } else { "" };
    CliError::new(format!("{} cannot be written: {error}", path.display())).cured_by(cure)
}

/// What to type next.
fn next(args: &InitArgs, name: &str) -> Vec<String> {
    let dir = args.dir.display();
    let test = match args.runtime {
        Runtime::Python => "python3 -m unittest",
        Runtime::Nodejs => "node --test",
        Runtime::Binary => "make",
    };
    let invoke = match args.template {
        Template::Http => format!("colibri invoke {name}"),
        Template::Cloudevent => format!("colibri invoke {name} --event {}", args.dir.join(EVENT.0).display()),
    };
    vec![format!("next: (cd {dir} && {test})"), format!("      colibri deploy {dir}"), format!("      {invoke}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(dir: &Path, runtime: Runtime, template: Template) -> Result<(), CliError> {
        run(&InitArgs { dir: dir.to_owned(), runtime, template })
    }

    #[test]
    fn what_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("greet");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("main.py"), "mine").unwrap();
        let error = init(&dir, Runtime::Python, Template::Http).unwrap_err();
        assert!(error.message.contains("main.py is there already; nothing was written"), "{error}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(dir.join("main.py")).unwrap(), "mine");
        init(&dir, Runtime::Nodejs, Template::Cloudevent).unwrap();
        assert!(fs::read_to_string(dir.join("function.yml")).unwrap().contains("name: greet\n"));
    }

    #[test]
    fn a_name_that_no_function_may_have_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = init(&dir.path().join("1st"), Runtime::Python, Template::Http).unwrap_err();
        assert!(error.message.contains("the name \"1st\""), "{error}");
        assert!(!dir.path().join("1st").exists());
        let error = init(&dir.path().join("a"), Runtime::Binary, Template::Cloudevent).unwrap_err();
        assert!(error.message.contains("a binary gets HTTP requests"), "{error}");
    }
}
