//! `colibri image`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use node::images::Reference;
use node::images::pack::{self, PackConfig};
use serde_json::Value;

use super::access::Target;
use super::error::{CliError, causes, print};
use super::output::OutputArgs;
use super::table;
use super::uploads::Stores;

/// Where a store takes and lists images.
const IMAGES_PATH: &str = "images";
/// Longest archive that is loaded.
const ARCHIVE_LIMIT_BYTES: u64 = 4 << 30;

/// Arguments of `colibri image`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  docker save web:latest | colibri image load -
  colibri image pack target/release/web --tag web:latest --load")]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ImageCommand {
    /// Load images from an OCI layout (folder or tar) or an archive of docker save
    Load(LoadArgs),
    /// List the images that the platform has
    List(ListArgs),
    /// Make an image from a static binary or a folder, always the same for the same input
    Pack(PackArgs),
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  docker save web:latest | colibri image load -
  skopeo copy docker://docker.io/library/nginx oci-archive:nginx.tar && colibri image load nginx.tar --tag nginx:latest")]
struct LoadArgs {
    /// Layout or archive; - is standard input
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Name for the one image of the archive
    #[arg(long, short)]
    tag: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri image list -o name")]
struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri image pack web --tag web:latest --load
  colibri image pack rootfs/ --tag web:latest --entrypoint /bin/web --output web.tar")]
struct PackArgs {
    /// Static binary, or folder that becomes the image's root
    source: PathBuf,
    /// Name of the image, such as hello:latest
    #[arg(long, short)]
    tag: String,
    /// File that the OCI layout is written to, as a tar
    #[arg(long, short, required_unless_present = "load")]
    output: Option<PathBuf>,
    /// Load the image into the platform
    #[arg(long)]
    load: bool,
    /// Command, one word each time [default: the binary]
    #[arg(long)]
    entrypoint: Vec<String>,
    /// Environment variable, as NAME=VALUE
    #[arg(long)]
    env: Vec<String>,
    /// Port, as 8080/tcp
    #[arg(long)]
    port: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Runs one of the image commands.
pub async fn run(args: ImageArgs) -> Result<(), CliError> {
    match args.command {
        ImageCommand::Load(args) => {
            let stores = Stores::open(&args.target.open().await?.client).await?;
            for path in &args.paths {
                load(&stores, path, args.tag.as_deref()).await?;
            }
            Ok(())
        }
        ImageCommand::List(args) => list(args).await,
        ImageCommand::Pack(args) => pack(args).await,
    }
}

async fn load(stores: &Stores, path: &Path, tag: Option<&str>) -> Result<(), CliError> {
    let (shown, source) = (path.display(), path.to_path_buf());
    let read = tokio::task::spawn_blocking(move || read(&source)).await;
    let archive = match read {
        Ok(Ok(archive)) => archive,
        Ok(Err(error)) => return Err(CliError::new(format!("{shown} cannot be read: {error}"))),
        Err(error) => return Err(CliError::new(format!("{shown} cannot be read: {error}"))),
    };
    if archive.len() as u64 > ARCHIVE_LIMIT_BYTES {
        let text = format!("{shown} is longer than {} GiB; push it to a registry instead", ARCHIVE_LIMIT_BYTES >> 30);
        return Err(CliError::new(text));
    }
    let query = |tag| url::form_urlencoded::Serializer::new(String::new()).append_pair("tag", tag).finish();
    let url = tag.map_or_else(|| IMAGES_PATH.to_owned(), |tag| format!("{IMAGES_PATH}?{}", query(tag)));
    let answer = stores.post(&url, archive).await.map_err(|error| {
        let made = "docker save IMAGE -o image.tar, or skopeo copy docker://IMAGE oci-archive:image.tar";
        CliError { message: format!("{shown} was not loaded: {}", error.message), ..error }
            .cured_by(&format!("make it again: {made}"))
    })?;
    report(&answer, path)
}

/// A tar of the layout or archive, held in memory: the API client sends whole bodies only.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    let limit = ARCHIVE_LIMIT_BYTES + 1;
    if path.as_os_str() == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut archive)?;
    } else if path.is_dir() {
        let mut builder = tar::Builder::new(archive);
        builder.append_dir_all("", path)?;
        return builder.into_inner();
    } else {
        File::open(path)?.take(limit).read_to_end(&mut archive)?;
    }
    Ok(archive)
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let answer = Stores::open(&access.client).await?.items(IMAGES_PATH).await?;
    let names = || {
        let name = |image: &Value| text(image, "reference").map(|name| format!("{name}\n"));
        images(&answer).iter().filter_map(name).collect()
    };
    args.output.show(&answer, names, || render(images(&answer)));
    Ok(())
}

async fn pack(args: PackArgs) -> Result<(), CliError> {
    let failed = |error: &dyn std::error::Error| CliError::new(causes(error));
    let reference: Reference = args.tag.parse().map_err(|error| failed(&error))?;
    let config = PackConfig {
        reference: Some(reference),
        entrypoint: args.entrypoint.clone(),
        env: args.env.clone(),
        exposed_ports: args.port.clone(),
        ..PackConfig::default()
    };
    let unwritable =
        |path: &Path, error: io::Error| CliError::new(format!("{} cannot be written: {error}", path.display()));
    if let Some(output) = &args.output {
        let file = File::create(output).map_err(|error| unwritable(output, error))?;
        let made = pack::pack(&args.source, &config, io::BufWriter::new(file));
        let made = made.map_err(|error| failed(&error))?;
        print(&format!("packed {} {} into {}\n", args.tag, made.digest, output.display()));
    }
    if args.load {
        let access = args.target.open().await?;
        let mut layout = Vec::new();
        pack::pack(&args.source, &config, &mut layout).map_err(|error| failed(&error))?;
        let answer = Stores::open(&access.client).await?.post(IMAGES_PATH, layout).await?;
        report(&answer, &args.source)?;
    }
    Ok(())
}

/// Says what was loaded.
fn report(answer: &Value, source: &Path) -> Result<(), CliError> {
    let loaded = images(answer);
    if loaded.is_empty() {
        return Err(CliError::new(format!("{} holds no image", source.display())));
    }
    for image in loaded {
        let name = text(image, "reference").unwrap_or("(no name)");
        print(&format!("loaded {name} {}\n", text(image, "digest").unwrap_or_default()));
    }
    Ok(())
}

/// The images of an answer.
fn images(answer: &Value) -> &[Value] {
    answer.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn render(images: &[Value]) -> String {
    let row = |image: &Value| {
        let loaded = image.get("loaded").and_then(Value::as_bool).unwrap_or(false);
        vec![
            text(image, "reference").unwrap_or_default().to_owned(),
            text(image, "digest").unwrap_or_default().chars().take("sha256:".len() + 12).collect(),
            table::size(image.get("size").and_then(Value::as_u64).unwrap_or(0)),
            if loaded { "loaded" } else { "registry" }.to_owned(),
        ]
    };
    table::render(&["REFERENCE", "DIGEST", "SIZE", "FROM"], &images.iter().map(row).collect::<Vec<_>>())
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed() {
        let answer = serde_json::json!({"items": [
            {"reference": "docker.io/library/hello:latest", "digest": format!("sha256:{}", "a".repeat(64)), "size": 1_572_864, "loaded": true},
        ]});
        expect_test::expect![[r#"
            REFERENCE                        DIGEST                SIZE      FROM
            docker.io/library/hello:latest   sha256:aaaaaaaaaaaa   1.5 MiB   loaded
        "#]]
        .assert_eq(&render(images(&answer)));
    }

    #[test]
    fn a_layout_in_a_folder_is_sent_as_a_tar() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("oci-layout"), "{}").unwrap();
        let archive = read(dir.path()).unwrap();
        let mut archive = tar::Archive::new(archive.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(names.iter().any(|name| name.ends_with("oci-layout")), "{names:?}");
    }
}
