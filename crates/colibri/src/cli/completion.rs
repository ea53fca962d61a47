//! `colibri completion`.

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell as Generator;

use super::error::print_bytes;

/// The shells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Arguments of `colibri completion`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  source <(colibri completion bash)     in ~/.bashrc
  colibri completion zsh > \"${fpath[1]}/_colibri\"
  colibri completion fish > ~/.config/fish/completions/colibri.fish")]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script of a shell for `command`.
pub fn run(args: &CompletionArgs, mut command: Command) {
    let shell = match args.shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "colibri", &mut script);
    print_bytes(&script);
}
