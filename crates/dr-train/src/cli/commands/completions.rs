//! `dr-train completions`.

use super::print;
use crate::cli::{Cli, CommandError};
use crate::experiment::Registry;
use clap::Args;
use clap_complete::{Shell, generate};

/// `dr-train completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(dr-train completions bash)
  dr-train completions zsh > ~/.zfunc/_dr-train
  dr-train completions fish > ~/.config/fish/completions/dr-train.fish")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Prints a script for a shell.
///
/// # Errors
/// If it cannot be written.
pub fn completions(registry: &Registry, args: &CompletionsArgs) -> Result<(), CommandError> {
    let mut script = vec![];
    generate(args.shell, &mut Cli::of(registry), "dr-train", &mut script);
    print(&String::from_utf8_lossy(&script))
}
