//! The `dr-train` program: a thin shell over the library.
//!
//! Whatever goes wrong is one `error:` line, with a `hint:` line where there is something to try, and exit code 2. A training that Ctrl-C stops exits with 130.

mod args;
pub mod commands;
mod config_file;
mod error;
mod memory;
mod resolve;
mod usage;
mod values;

pub use args::{
    Cli, Command, DrawArgs, EvalArgs, ExportArgs, GenerateArgs, HessianArgs, ImportArgs, ImportCheckArgs,
    InfoArgs, LatencyArgs, QuantizeArgs, ScenesArgs, SearchArgs, Settings, SwitchAfter, SwitchAfterError,
    TrainArgs,
};
pub use error::CommandError;
pub use memory::keep_freed_memory;
pub use resolve::ResolvedTraining;

use clap::Parser;
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    keep_freed_memory();
    run_with(std::env::args_os())
}

fn run_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = match Cli::try_parse_from(args) {
        Ok(cli) => execute(cli),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A closed pipe is no reason to complain.
            let _ = error.print();
            Ok(())
        }
        Err(error) => Err(usage::one_line(&error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn execute(cli: Cli) -> Result<(), CommandError> {
    match cli.command.unwrap_or_default() {
        Command::Train(args) => commands::train(args.resolve()?, args.dashboard),
        Command::Eval(args) => commands::eval(&args),
        Command::Export(args) => {
            let files = [("out", Some(args.out.as_path())), ("samples", args.samples.as_deref())];
            resolve::check_output_files(files, &args.model)?;
            commands::export(&args)
        }
        Command::Quantize(args) => {
            resolve::check_output_file(&args.out, &args.model)?;
            commands::quantize(&args)
        }
        Command::Import(args) => {
            resolve::check_output_file(&args.out, &args.weights)?;
            commands::import(&args)
        }
        Command::ImportCheck(args) => commands::import_check(&args),
        Command::Scenes(args) => commands::scenes(&args),
        Command::Draw(args) => commands::draw(&args),
        Command::Generate(args) => commands::generate(&args),
        Command::Info(args) => commands::info(&args),
        Command::Latency(args) => commands::latency(&args),
        Command::Hessian(args) => {
            resolve::check_output_files(
                [("out", args.out.as_deref()), ("plot", args.plot.as_deref())],
                &args.model,
            )?;
            commands::hessian(&args)
        }
        Command::Search(args) => {
            resolve::check_output_files(
                [("out", args.out.as_deref()), ("pareto", args.pareto.as_deref())],
                &args.model,
            )?;
            commands::search(&args)
        }
    }
}
