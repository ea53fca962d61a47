//! `colibri kubeconfig`.

use clap::Args;

use super::access::Target;
use super::error::{CliError, print};

/// Arguments of `colibri kubeconfig`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  export KUBECONFIG=$(colibri kubeconfig --path)
  colibri kubeconfig > admin.yml")]
pub struct KubeconfigArgs {
    #[command(flatten)]
    target: Target,
    /// Print where the file is, not what it says
    #[arg(long)]
    path: bool,
}

/// Prints the kubeconfig of a platform on this machine.
pub fn run(args: &KubeconfigArgs) -> Result<(), CliError> {
    let file = args.target.kubeconfig_file();
    let text = std::fs::read_to_string(&file).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => CliError::new(format!(
            "the kubeconfig {} belongs to another user. Run the command with sudo",
            file.display()
        )),
        _ => CliError::unreachable(format!(
            "no platform found: {} is not there. Start one with: sudo colibri up. Or name its --data-dir",
            file.display()
        )),
    })?;
    if args.path {
        print(&format!("{}\n", file.display()));
    } else {
        print(&text);
    }
    Ok(())
}
