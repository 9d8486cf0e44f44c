//! The `dr-train` program: a thin shell over the library.
//!
//! Whatever goes wrong is one `error:` line, with a `hint:` line where there is something to try. The exit code is 2 for arguments that make
//! no sense and 1 for what cannot be done; a training that Ctrl-C stops exits with 130.

mod args;
pub mod commands;
mod config_file;
mod default_device;
mod distillation;
mod error;
mod limits;
mod memory;
mod pictures;
mod resolve;
mod settings;
mod usage;
mod values;

pub use args::{Cli, Command};
pub use distillation::ResolvedDistillation;
pub use error::CommandError;
pub use memory::keep_freed_memory;
pub use pictures::PictureArgs;
pub use resolve::ResolvedTraining;
pub use settings::{Settings, TrainArgs};

use crate::experiment::Registry;
use crate::note::{self, Verbosity};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program with the arguments of the process, and what the registry knows. It changes the environment: call it before
/// there are other threads.
#[must_use]
pub fn run(registry: &Registry) -> ExitCode {
    keep_freed_memory();
    limits::files_too_large_are_errors();
    default_device::default_to_flex();
    let result = match Cli::read(registry, std::env::args_os()) {
        Ok(cli) => execute(registry, cli),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A closed pipe is no reason to complain.
            let _ = error.print();
            Ok(())
        }
        Err(error) => Err(usage::one_line(&error, std::env::args_os().nth(1).as_deref())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

impl Cli {
    /// The arguments of a program, whose first is its name.
    ///
    /// # Errors
    /// What clap says of them, that help is asked for, too.
    pub fn read(
        registry: &Registry, args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        Self::from_arg_matches(&Self::of(registry).try_get_matches_from(args)?)
    }

    /// All commands and flags, with the names that the registry knows.
    fn of(registry: &Registry) -> clap::Command {
        values::with_names(Self::command(), registry)
    }
}

fn execute(registry: &Registry, cli: Cli) -> Result<(), CommandError> {
    note::set_verbosity(match cli {
        Cli { quiet: true, .. } => Verbosity::Errors,
        Cli { verbose: true, .. } => Verbosity::Details,
        _ => Verbosity::Usual,
    });
    match cli.command.unwrap_or_default() {
        Command::Train(args) => match args.distillation(registry)? {
            Some(of_file) => commands::distill(&of_file, args.json),
            None => commands::train(registry, args.resolve(registry)?, args.dashboard, args.json),
        },
        Command::Eval(args) => commands::eval(registry, &args),
        Command::Export(args) => commands::export(registry, &args),
        Command::Quantize(args) => commands::quantize(registry, &args),
        Command::Import(args) => commands::import(registry, &args),
        Command::ImportCheck(args) => commands::import_check(&args),
        Command::Scenes(args) => commands::scenes(registry, &args),
        Command::Draw(args) => commands::draw(&args),
        Command::Generate(args) => commands::generate(&args),
        Command::Predict(args) => commands::predict(&args),
        Command::Info(args) => commands::info(&args),
        Command::Latency(args) => commands::latency(&args),
        Command::Hessian(args) => commands::hessian(registry, &args),
        Command::Search(args) => commands::search(registry, &args),
        Command::Worker(args) => commands::worker(&args),
        Command::Completions(args) => commands::completions(registry, &args),
    }
}
